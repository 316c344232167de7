"""Can a policy hear the k that a template tells it? Before any training, for one template of `ToldK` after the other.

    python scripts/told_templates.py                              # templates of the built-in benchmark, and the page
    python scripts/told_templates.py --templates "{k} {prompt}"   # your own
    python scripts/told_templates.py --report                     # the page, from what is kept

Two numbers, over problems and answers that the policy samples when it is told nothing:

cosine      of the gradients of log pi(answer | problem, told a) and log pi(answer | problem, told b). Near 1, what one
            k teaches is taught to every other as well: a step changes both alike, and the policy cannot become another
            for every k.
divergence  KL(told nothing || told k) of answers, in nats: what telling alone does to the policy.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from study_report import filled
from study_results import markdown_table
from torch import Tensor

from maxk_lightning.data import Builtin, PromptTemplate
from maxk_lightning.policy import Policy, load_model, load_tokenizer
from maxk_lightning.policy.packing import pack
from maxk_lightning.rollouts import TransformersEngine
from maxk_lightning.types import Problem, Sampling

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs/results/told_templates.json"
PAGE = ROOT / "docs/told_k.md"
KS = (1, 2, 4, 8)
TEMPLATES = (
    "{prompt} Print {k}.",
    "{prompt} {k}",
    "{prompt} {k} {k}",
    "{prompt} {k} {k} {k}",
    "Print {k}. {prompt}",
    "{k}: {prompt}",
    "{k} {prompt}",
    "{k} {k} {prompt}",
    "{k} {k} {k} {prompt}",
)


def main() -> None:
    """Measure what is asked for, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="builtin-vague", help="directory, hub name or a built-in one")
    parser.add_argument("--variant", default="vague", help="variant of the built-in benchmark")
    parser.add_argument("--templates", nargs="*", help="`data.template.user` with {prompt} and {k}")
    parser.add_argument("--num_problems", type=int, default=32, help="the first of the validation problems")
    parser.add_argument("--report", action="store_true", help="write the page only")
    options = parser.parse_args()
    if not options.report:
        problems = Builtin("validation", options.num_problems, variant=options.variant).load()
        rows = measure(options.policy, problems, options.templates or TEMPLATES)
        print(table(rows))
        if options.templates:
            return
        KEPT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), {"templates": table(kept)}), encoding="utf-8")


def measure(policy_name: str, problems: Sequence[Problem], templates: Sequence[str]) -> list[dict[str, object]]:
    """One record per template: its mean cosine over pairs of `KS`, and its mean divergence over `KS`."""
    policy, tokenizer = Policy(load_model(policy_name)), load_tokenizer(policy_name)
    prompts = [PromptTemplate().render(problem, tokenizer, seed) for seed, problem in enumerate(problems)]
    groups = TransformersEngine(policy_name).generate(prompts, Sampling(num_completions=1, max_new_tokens=128))
    answers = [group[0].token_ids for group in groups]

    def logprob(token_ids: Sequence[int], answer: Sequence[int]) -> Tensor:
        return policy(pack([token_ids], [[answer]]), 1.0).logprobs_BT.sum()

    def gradient(token_ids: Sequence[int], answer: Sequence[int]) -> Tensor:
        gradients = torch.autograd.grad(logprob(token_ids, answer), list(policy.parameters()))
        return torch.cat([part.flatten() for part in gradients]).double()

    rows: list[dict[str, object]] = []
    for user in templates:
        template = PromptTemplate(user=user)
        cosines, divergences = [], []
        for problem, prompt, answer in zip(problems, prompts, answers, strict=True):
            told = [template.render(problem, tokenizer, prompt.seed, k).token_ids for k in KS]
            gradients = [gradient(token_ids, answer) for token_ids in told]
            for one, other in itertools.combinations(gradients, 2):
                cosines.append(float(torch.cosine_similarity(one, other, dim=0)))
            with torch.no_grad():
                plain = logprob(prompt.token_ids, answer)
                divergences += [float(plain - logprob(token_ids, answer)) for token_ids in told]
        rows.append(
            {
                "template": user,
                "num_problems": len(problems),
                "cosine": round(statistics.mean(cosines), 4),
                "divergence": round(statistics.mean(divergences), 4),
            }
        )
        print(rows[-1], flush=True)
    return rows


def table(rows: Sequence[dict]) -> str:
    """The table of the page."""
    lines = [[f"`{row['template']}`", f"{row['cosine']:.3f}", f"{row['divergence']:.2f}"] for row in rows]
    return markdown_table(["template", "cosine", "divergence, nats"], lines)


if __name__ == "__main__":
    main()
