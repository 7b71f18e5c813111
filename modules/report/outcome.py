"""What a study found, for its last lines: a few sentences, one row an experiment, and what is not as published."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from modules.report.comparison import COMPARED, REPRODUCED, TABLES, counts
from modules.report.formatting import readable, show
from modules.report.tables import read_table

SENTENCES = 5
ENDS = "final_accuracy"
EXCEPTIONS = 10

#: Tables that have a sentence, the most telling first.
SAID = (
    *("headline", "policies", "mlp", "tournament_2", "rate_finders_summary", "best_lr"),
    *("range_test_bounds", "your_data"),
)

#: Of a table the row that tells most, the first of these that it has.
KEYS = ("final_accuracy_difference", "regret", "best_lr", "max_lr", "final_accuracy")


def sentences(results: str | Path) -> list[str]:
    """What a study found, by its own tables: each sentence one number or two."""
    found = []
    for name in SAID:
        if (path := Path(results) / "tables" / f"{name}.csv").exists():
            found += _said(name, read_table(path))
    return found[:SENTENCES]


def _said(name: str, table: pd.DataFrame) -> Iterator[str]:
    table = table[table.policy.str.match(TABLES[name].judged)]
    rows = {(row.quantity, row.policy): row for row in table.itertuples()}

    def number(quantity: str, policy: str) -> str:
        row = rows[quantity, policy]
        return show(quantity, row.value, row.low, row.high)

    if name == "range_test_bounds":
        yield f"The range test's bounds are {number('base_lr', '-')} and {number('max_lr', '-')}."
        return
    if name == "tournament_2":
        verdicts: dict[str, list[str]] = {}
        for row in rows.values():
            if row.quantity == "registered_difference":
                difference, _, verdict = str(row.note).partition(": ")
                verdicts.setdefault(verdict.split("; ")[0], []).append(difference)
        if verdicts:
            said = [f"{', '.join(differences)} {verdict}" for verdict, differences in verdicts.items()]
            yield f"By the registered rule: {'; '.join(said)}."
        if whole := rows.get(("share", "cycle any time")):
            yield f"CLR is {whole.note}."
        return
    if name == "your_data":
        for quantity, policy in rows:
            if quantity == "lr" and rows[quantity, policy].note == "advised":
                rate, end = number(quantity, policy), number(ENDS, policy)
                yield f"Take the schedule {policy} at a rate of {rate}; with it trainings end at {end}."
        return
    if ("best_lr", "sweep") in rows:
        ends = [f"{policy} ends at {number(quantity, policy)}" for quantity, policy in rows if quantity == ENDS]
        yield f"The sweep's rate is {number('best_lr', 'sweep')}: {', '.join(ends)}."
    if name == "headline":
        arms = [policy for quantity, policy in rows if quantity == ENDS]
        yield f"{' and '.join(f'{arm} ends at {number(ENDS, arm)} after {_iterations(rows, arm)}' for arm in arms)}."
        for quantity, policy in rows:
            if quantity == "crossing_iteration":
                reached = number(quantity, policy)
                yield f"{policy} reaches the best mean accuracy of {arms[0]} at iteration {reached}."
        return
    for quantity, policy in rows:
        if quantity in ("final_accuracy_difference", "regret"):
            row = rows[quantity, policy]
            if quantity == "regret":
                yield f"{policy} costs {number(quantity, policy)}."
            else:
                seen = ": no difference is seen" if row.low <= 0 <= row.high else ""
                yield f"{policy.replace(' - ', ' less ')} is {number(quantity, policy)} at the end ({name}){seen}."
            return


def _iterations(rows: dict, arm: str) -> str:
    row = rows.get(("iterations", arm))
    return f"{row.value:,.0f} iterations" if row else "its last iteration"


def by_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """One row a table of a comparison: its key number here and as published, and how many of its numbers came out."""
    rows = []
    for name, part in comparison.groupby("table", sort=False):
        shown = readable(part.reset_index(drop=True))
        order = {quantity: place for place, quantity in enumerate(KEYS)}
        key = min(range(len(part)), key=lambda place: order.get(part.quantity.iloc[place], len(KEYS)))
        good = part.verdict.isin(REPRODUCED).sum()
        rows.append(
            {
                "table": name,
                "key number": f"{part.quantity.iloc[key]} {part.policy.iloc[key]}".removesuffix(" -").removeprefix(
                    "final_accuracy_difference "
                ),
                "here [95 %]": shown["value [95 % interval]"][key],
                "published": shown.published[key],
                "as published": f"{good} of {len(part)}",
            }
        )
    return pd.DataFrame(rows)


def report(comparison: pd.DataFrame, results: Path, published: Path) -> str:
    """The last lines of a study: what it found, a row a table, and what is not as published.

    Args:
        comparison: as `compare` gives it.
        results, published: the folders that were compared.
    """
    lines = ["Result", "", *sentences(results)]
    if comparison.empty:
        return "\n".join(lines) if len(lines) > 2 else ""
    asked = comparison[comparison.verdict.isin(COMPARED)]
    if asked.empty:
        lines += ["", by_table(comparison).drop(columns=["published", "as published"]).to_string(index=False), ""]
        lines += [f"Nothing to compare with in {published}: {counts(comparison)}."]
        return "\n".join(lines)
    good = asked.verdict.isin(REPRODUCED).sum()
    rows = by_table(comparison)
    rows = rows.drop(columns="published") if good == len(comparison) else rows
    lines += ["", rows.to_string(index=False), ""]
    lines += [f"{good} of {len(asked)} numbers as published in {published}: {counts(comparison)}."]
    if good < len(asked):
        others = asked[~asked.verdict.isin(REPRODUCED)].reset_index(drop=True)
        lines += ["", readable(others[:EXCEPTIONS]).to_string(index=False)]
        if len(others) > EXCEPTIONS:
            lines += [f"and {len(others) - EXCEPTIONS} more"]
    return "\n".join(lines)
