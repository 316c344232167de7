"""`compare`: outputs of `evaluate` -> tables, paired tests, figures, report.html."""


def compare(*runs: str, out: str, baseline: str | None = None) -> None:
    """Compare outputs of `evaluate`: tables in the paper's form, paired tests, figures and one self-contained page.

    Args:
        runs: Directories that `evaluate` wrote, the baseline first.
        out: Directory for report.html, report.md, tables.csv, tests.csv and the figures as PNG and SVG.
        baseline: Name of the run that the others are tested against; default: the first.

    Raises:
        ValueError: a directory holds no finished evaluation, or two have the same name on the same benchmark.
    """
    from maxk_lightning.commands.compare.runs import compare_runs  # imports scipy: `--help` must not wait for it

    compare_runs(runs, out, baseline)
