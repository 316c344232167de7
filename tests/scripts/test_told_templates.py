"""scripts/told_templates.py: whether a policy can hear the k that a template tells it."""

import json

import told_templates
from study_report import filled

from maxk_lightning.data import Builtin


def test_a_template_that_says_nothing_is_not_heard_and_changes_nothing() -> None:
    problems = Builtin("validation", 3, variant="vague").load()
    silent, telling = told_templates.measure("builtin-vague", problems, ["{prompt}", "{k} {k} {prompt}"])
    assert (silent["cosine"], silent["divergence"]) == (1.0, 0.0)
    assert telling["cosine"] < 0.9
    assert telling["divergence"] > 0.0


def test_the_page_says_what_is_kept() -> None:
    page = told_templates.PAGE.read_text(encoding="utf-8")
    kept = json.loads(told_templates.KEPT.read_text(encoding="utf-8"))
    assert filled(page, {"templates": told_templates.table(kept)}) == page
    assert [row["template"] for row in kept] == list(told_templates.TEMPLATES)
