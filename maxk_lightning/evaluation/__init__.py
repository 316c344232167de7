"""Evaluation: samples on disk, curves with intervals, tables, tests and figures.

Three lines from outputs of `evaluate` to a table and a figure:

    from maxk_lightning.evaluation import load, table, curves
    print(table(runs := load("out/base", "out/trained")))
    curves(runs).savefig("curves.png")
"""

from maxk_lightning.evaluation.figures import curves
from maxk_lightning.evaluation.runs import load, published
from maxk_lightning.evaluation.tables import table

__all__ = ["curves", "load", "published", "table"]
