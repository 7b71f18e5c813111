"""The numbers in README.md and in the ledger of claims: written from the published tables, between markers.

A whole table stands between `<!-- headline:digits -->`, table and study, and `<!-- end -->`. A single number stands
behind `<!-- digits/headline final_accuracy fixed -->`: study, table, quantity, and policy (`-` where it has none).
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from modules.report.formatting import readable, show, speed_table
from modules.study.parameters import PUBLISHED

DOCUMENTS = (Path("README.md"), PUBLISHED / "README.md")
WHOLE = re.compile(r"(<!-- (\w+):([\w-]+) -->)\n(.*?)(<!-- end -->)", re.DOTALL)
SINGLE = re.compile(r"(<!-- ([\w-]+)/(\w+) (\w+) ([\w -]+?) -->)(.*?)(<!-- end -->)")


class DocumentError(ValueError):
    """A document asks for a number that no table has; the message is one line for the user."""


def table(path: Path, kind: str, name: str) -> str:
    """A published table as Markdown.

    Args:
        path: the table's CSV.
        kind: a table of a study, or `speed` of a network.
        name: the study's, or the network's.
    """
    if kind == "speed":
        found = speed_table(pd.read_csv(path), name)
    else:
        found = readable(pd.read_csv(path).rename(columns={"bound": "quantity"})).astype(str)
    rows = [list(found.columns), ["---"] * len(found.columns), *found.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def number(path: Path, quantity: str, policy: str) -> str:
    """One number of a published table, with Student's interval where it has one: of few runs the bootstrap's is narrow.

    Args:
        path: the table's CSV.
        quantity, policy: of one of its rows; `-` where it has no policies.

    Raises:
        DocumentError: the table has no such row.
    """
    found = pd.read_csv(path).rename(columns={"bound": "quantity"})
    found = found[(found.quantity == quantity) & (found.get("policy", "-") == policy)]
    if len(found) != 1:
        raise DocumentError(f"{path} has no row {quantity} {policy}")
    row = found.iloc[0]
    ends = ("low", "high") if pd.isna(row.get("t_low", np.nan)) else ("t_low", "t_high")
    return show(quantity, row["value"], *row[list(ends)])


def filled(text: str, results: dict[str, Path] | None = None) -> str:
    """A document's text with every number between markers as it is published; the rest as it was.

    Args:
        text: the document's.
        results: folders to take a study's tables from, by its name, in place of those that are published.

    Raises:
        DocumentError: a table has no such row.
    """

    def place(study: str, name: str) -> Path:
        return (results or {}).get(study, PUBLISHED / study) / "tables" / f"{name}.csv"

    def whole(found: re.Match) -> str:
        start, kind, name, _, end = found.groups()
        path = PUBLISHED / "benchmarks" / "throughput.csv" if kind == "speed" else place(name, kind)
        return f"{start}\n{table(path, kind, name)}\n{end}" if path.exists() else found[0]

    def single(found: re.Match) -> str:
        start, study, name, quantity, policy, _, end = found.groups()
        path = place(study, name)
        return f"{start}{number(path, quantity, policy)}{end}" if path.exists() else found[0]

    return SINGLE.sub(single, WHOLE.sub(whole, text))


def updated(results: dict[str, Path] | None = None) -> dict[Path, str]:
    """The documents' texts as they should be; arguments and errors as for `filled`."""
    return {path: filled(path.read_text(), results) for path in DOCUMENTS}
