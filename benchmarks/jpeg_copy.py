"""What does a JPEG copy of CIFAR-10 cost a network? The same specifications and seeds on both.

    python benchmarks/jpeg_copy.py

It trains nothing. It reads the published runs of both codings and writes
`results/published/jpeg-copy/tables/jpeg_copy.csv`: for each arm and iteration the accuracies on CIFAR-10 itself, those
on the copy, and their difference, in pairs of a seed and without. A seed gives both runs the same initial weights.
It does not give them the same batches: the copy is read folder by folder, CIFAR-10 in the order of its files. What is
coded again is read as the copy is; there batches have the same images. What is not trained on both has no row.
"""

from pathlib import Path

import pandas as pd

from modules.report import tables
from modules.report.formatting import readable
from modules.statistics import AnalysisError

PUBLISHED = Path(__file__).resolve().parents[1] / "results" / "published"
#: The runs of an experiment: on CIFAR-10 itself, and on the copy.
CODINGS = {
    "quick": ("cifar10-quick/policies", "cifar10-jpeg-quick/policies"),
    "headline": ("cifar10/headline", "cifar10-jpeg/headline"),
}
#: Where accuracies are compared: named before a difference was computed; accuracies of single runs had been seen.
COMPARED = [
    ("quick", "caffe_quick", 4000),
    ("quick", "caffe_quick", 5000),
    ("quick", "caffe_clr", 5000),
    ("quick", "caffe_clr_paper", 5000),
    ("quick", "port_quick", 5000),
    ("headline", "triangular", 4000),
    ("headline", "triangular", 8000),
    ("headline", "triangular", 20000),
    ("headline", "triangular", 32000),
    ("headline", "fixed", 60000),
    ("headline", "fixed", 70000),
]
#: One coding more, of the copy: arms of its own folders, each less CLR on the copy after as many iterations.
AGAIN = ("coded_again_75", "coded_again_50")


def curve(folder: str, arm: str) -> pd.DataFrame:
    """An arm's published accuracies, `[iterations, seeds]`; none where there are none."""
    try:
        return tables.curves(tables.read_runs(PUBLISHED / folder), arm)
    except AnalysisError:
        return pd.DataFrame()


def compared(name: str, ours: pd.DataFrame, copy: pd.DataFrame, at: int) -> list[dict]:
    """Rows of one comparison: both accuracies over the seeds that both have, and the difference in pairs."""
    if at not in ours.index or at not in copy.index:
        return []
    seeds = ours.columns.intersection(copy.columns)
    if len(seeds) < 2:
        return []
    a, b = ours.loc[at, seeds], copy.loc[at, seeds]
    count, found = tables.difference_of(a, b, "pairs")
    _, unpaired = tables.difference_of(a, b)
    welch = {"quantity": "accuracy_difference", "policy": f"{name} unpaired", "runs": count}
    return [
        {"quantity": "accuracy", "policy": name, "runs": count} | tables.mean_row(a, 0, 1),
        {"quantity": "accuracy", "policy": f"{name} copy", "runs": count} | tables.mean_row(b, 0, 1),
        {"quantity": "accuracy_difference", "policy": name, "runs": count} | tables.row_of(found, "pairs", -1, 1),
        welch | tables.row_of(unpaired, tables.METHODS["welch"], -1, 1),
    ]


def table() -> pd.DataFrame:
    """All comparisons that the published runs allow."""
    rows = []
    for kind, arm, at in COMPARED:
        itself, copy = (curve(folder, arm) for folder in CODINGS[kind])
        rows += compared(f"{arm} at {at}", itself, copy, at)
    on_copy = curve("cifar10-jpeg/headline", "triangular")
    for again in AGAIN:
        rows += compared(f"{again} at 8000", curve(f"cifar10-jpeg/{again}", again), on_copy, 8000)
    return tables.table_of(rows)


def main() -> None:
    """The command line."""
    found = table()
    tables.write(found, PUBLISHED / "jpeg-copy" / "tables" / "jpeg_copy.csv")
    print(readable(found).to_string(index=False))


if __name__ == "__main__":
    main()
