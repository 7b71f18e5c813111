"""The numbers in README.md and in the pages of results: written from the published tables, between markers.

A whole table stands between `<!-- headline:digits -->`, table and study, and `<!-- end -->`. A single number stands
behind `<!-- digits/headline final_accuracy fixed -->`: study, table, quantity, and policy (`-` where it has none; of a
table of notes, the note's name). With its interval, where it has one; `<!-- ... fixed : value -->` is the number alone,
and so are `interval`, `low`, `high`, `runs`, `note`, and any other column of the table, such as `gap`.
"""

import math
import re
from pathlib import Path

import pandas as pd

from modules.report.formatting import FORMS, by_schedule, markdown, readable, show, speed_table
from modules.report.tables import read_table
from modules.statistics import AnalysisError
from modules.study.parameters import PUBLISHED

#: Where documents with numbers or figures lie.
FOLDERS = (".", "benchmarks", "modules", "studies", PUBLISHED)
WHOLE = re.compile(r"(<!-- (\w+):([\w-]+) -->)\n(.*?)(<!-- end -->)", re.DOTALL)
SINGLE = re.compile(r"(<!-- ([\w-]+)/(\w+) (\w+) ([\w .-]+?)(?: : (\w+))? -->)(.*?)(<!-- end -->)")


class DocumentError(ValueError):
    """A document asks for a number that no table has; the message is one line for the user."""


def table(path: Path, kind: str, name: str) -> str:
    """A published table as Markdown.

    Args:
        path: the table's CSV.
        kind: a table of a study, or `speed` of a network.
        name: the study's, or the network's.

    Raises:
        DocumentError: there is no such table.
    """
    if kind == "speed":
        found = speed_table(_read(path, pd.read_csv), name)
        if found.empty:
            raise DocumentError(f"{path} has no network {name}")
    elif kind == "rate_finders_summary":
        found = by_schedule(_read(path, read_table))
    else:
        found = readable(_read(path, read_table))
    return markdown(found)


def _read(path: Path, read: object) -> pd.DataFrame:
    if not path.exists():
        raise DocumentError(f"a marker names {path}, which does not exist")
    return read(path)


def number(path: Path, quantity: str, policy: str, form: str = "all") -> str:
    """One number of a published table.

    Args:
        path: the table's CSV.
        quantity, policy: of one of its rows; `-` where it has no policies.
        form: of `formatting.FORMS`, or a column.

    Raises:
        DocumentError: the table has no such row, or the row no such number.
    """
    found = _read(path, read_table)
    found = found[(found.quantity == quantity) & (found.policy == policy)]
    if len(found) != 1:
        raise DocumentError(f"{path} has {'no' if found.empty else 'more than one'} row {quantity} {policy}")
    row = found.iloc[0]
    if form not in FORMS and form not in found:
        raise DocumentError(f"{path}: {quantity} {policy} has no {form}")
    try:
        if form in ("runs", "note", "method", "reproduced", "pooled_reproduced"):
            said = row.get(form)
            text = "" if pd.isna(said) else f"{said:.0f}" if form == "runs" else str(said)
        elif form in FORMS:
            text = show(quantity, row["value"], row.get("low", math.nan), row.get("high", math.nan), form)
        else:
            text = show("accuracy_difference" if form == "gap" else quantity, row[form])
    except AnalysisError as error:
        raise DocumentError(f"{path}: {error}") from error
    if text.strip(" %points") in ("", "-"):
        raise DocumentError(f"{path}: {quantity} {policy} has no {'value' if form == 'all' else form} here")
    return text


def filled(text: str, results: dict[str, Path] | None = None) -> str:
    """A document's text with every number between markers as it is published; the rest as it was.

    Args:
        text: the document's.
        results: folders to take a study's tables from, by its name, in place of those that are published; in a study's
            conclusions `this` is its name.

    Raises:
        DocumentError: a marker that names a study, a table, a row or a form that does not exist, or is none.
    """

    def place(study: str, name: str) -> Path:
        return (results or {}).get(study, PUBLISHED / study) / "tables" / f"{name}.csv"

    def whole(found: re.Match) -> str:
        start, kind, name, _, end = found.groups()
        path = PUBLISHED / "benchmarks" / "throughput.csv" if kind == "speed" else place(name, kind)
        return f"{start}\n{table(path, kind, name)}\n{end}"

    def single(found: re.Match) -> str:
        start, study, name, quantity, policy, form, _, end = found.groups()
        return f"{start}{number(place(study, name), quantity, policy, form or 'all')}{end}"

    ends = text.count("<!-- end -->")
    if ends != len(WHOLE.findall(text)) + len(SINGLE.findall(text)):
        rest = SINGLE.sub("", WHOLE.sub("", text))
        near = rest[: rest.find("<!-- end -->")].splitlines()[-1:] or [""]
        raise DocumentError(f"no marker that can be read before an end: ...{near[0][-80:]!r}")
    return SINGLE.sub(single, WHOLE.sub(whole, text))


def without_markers(text: str) -> str:
    """A filled text as it is read, where nothing will fill it again."""
    return re.sub(r"<!-- .*? -->", "", text)


def documents() -> list[Path]:
    """The texts that may have numbers between markers, or figures."""
    return sorted(path for folder in FOLDERS for path in Path(folder).glob("*.md"))


def updated(results: dict[str, Path] | None = None) -> dict[Path, str]:
    """The documents' texts as they should be; arguments and errors as for `filled`, which name the document."""
    texts = {}
    for path in documents():
        try:
            texts[path] = filled(path.read_text(encoding="utf-8"), results)
        except DocumentError as error:
            raise DocumentError(f"{path}: {error}") from error
    return texts
