"""The numbers in README.md and in the ledger of claims: written from the published tables, between markers.

A whole table stands between `<!-- headline:digits -->` and `<!-- end -->`. A single number stands behind
`<!-- digits/headline final_accuracy fixed -->`: study, table, quantity, and policy (`-` where the table has none).
"""

import re
from pathlib import Path

import pandas as pd

from modules.comparison import readable, show, speed_table
from modules.files import atomic_write
from modules.parameters import PUBLISHED

DOCUMENTS = (Path("README.md"), PUBLISHED / "README.md")
TABLES = {
    "headline": "headline.csv",
    "bounds": "range_test_bounds.csv",
    "policies": "policies.csv",
    "ablation": "ablation.csv",
    "best_lr": "best_lr.csv",
    "mlp": "mlp.csv",
}
WHOLE = re.compile(rf"(<!-- ({'|'.join(TABLES)}|speed):([\w-]+) -->)\n(.*?)(<!-- end -->)", re.DOTALL)
SINGLE = re.compile(r"(<!-- ([\w-]+)/(\w+) (\w+) ([\w -]+?) -->)(.*?)(<!-- end -->)")


def table(kind: str, name: str) -> str:
    """A published table as Markdown.

    Args:
        kind: one of `TABLES` of a study, or `speed` of a network.
        name: the study's, or the network's.
    """
    if kind == "speed":
        found = speed_table(pd.read_csv(PUBLISHED / "benchmarks" / "throughput.csv"), name)
    else:
        found = pd.read_csv(PUBLISHED / name / "tables" / TABLES[kind])
        found = readable(found.rename(columns={"bound": "quantity"})).astype(str)
    rows = [list(found.columns), ["---"] * len(found.columns), *found.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def number(study: str, name: str, quantity: str, policy: str) -> str:
    """One number of a published table, with its interval.

    Raises:
        KeyError: the table has no such row.
    """
    found = pd.read_csv(PUBLISHED / study / "tables" / f"{name}.csv").rename(columns={"bound": "quantity"})
    found = found[(found.quantity == quantity) & (found.get("policy", "-") == policy)]
    if len(found) != 1:
        raise KeyError(f"{study}/{name} has no row {quantity} {policy}")
    row = found.iloc[0]
    return show(quantity, row["value"], row["low"], row["high"])


def filled(text: str) -> str:
    """A document's text with every number between markers as it is published; the rest as it was."""

    def whole(found: re.Match) -> str:
        start, kind, name, _, end = found.groups()
        known = kind == "speed" or (PUBLISHED / name / "tables" / TABLES[kind]).exists()
        return f"{start}\n{table(kind, name)}\n{end}" if known else found[0]

    def single(found: re.Match) -> str:
        start, study, name, quantity, policy, _, end = found.groups()
        known = (PUBLISHED / study / "tables" / f"{name}.csv").exists()
        return f"{start}{number(study, name, quantity, policy)}{end}" if known else found[0]

    return SINGLE.sub(single, WHOLE.sub(whole, text))


def update() -> None:
    """Write the published numbers into the documents."""
    for path in DOCUMENTS:
        atomic_write(path, filled(path.read_text()))
