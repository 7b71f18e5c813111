"""The format of packed runs: the complete runs of an experiment in `runs.csv` and `runs.jsonl`; nothing is lost.

`runs.csv` has a row an evaluation: `policy` (or the run's variant) and `seed`, which make the run's name, then the
columns of a run's own CSV. The first line of `runs.jsonl` says how many runs there are and what their records have in
common; then each run has a line, with its name and the rest of its record.
"""

import json
import re
from collections.abc import Mapping, Sequence

from modules.checks import RunError, short

TABLE, RECORDS = "runs.csv", "runs.jsonl"


def packed(runs: Mapping[str, tuple[str, dict]]) -> tuple[str, str]:
    """The contents of `runs.csv` and `runs.jsonl`.

    Args:
        runs: by name, each run's CSV and its record, with its checksums; all CSVs have the same columns.
    """
    rows, records = [], [record for _, record in runs.values()]
    for name, (table, _) in runs.items():
        header, *own, _ = table.split("\n")
        rows = rows or [f"policy,seed,{header}"]
        policy, _, seed = name.rpartition("-seed")
        rows += [f"{policy},{seed},{row}" for row in own]
    common = _common(records)
    lines = [{"runs": len(runs), "common": common}]
    lines += [{"run": name, **_rest(record, common)} for name, (_, record) in runs.items()]
    return "\n".join(rows) + "\n", "".join(json.dumps(line) + "\n" for line in lines)


class Pack:
    """The runs of a pack.

    Args:
        table: the content of `runs.csv`.
        records: the content of `runs.jsonl`.

    Raises:
        RunError: they are damaged, or do not belong together.
    """

    def __init__(self, table: str, records: str) -> None:
        # Lines may end as on Windows: whoever unpacks a checkout there has lost nothing.
        first, *lines = records.splitlines() or [""]
        self._records, line = {}, first
        try:
            head = json.loads(first)
            self._common, count = json.dumps(head["common"]), head["runs"]
            for line in lines:
                self._records[_name(json.loads(line)["run"])] = line
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"a damaged line in {RECORDS} ({type(error).__name__}): {short(line)}") from error
        if not count == len(lines) == len(self._records):
            raise RunError(f"{RECORDS} has {len(self._records)} of {short(count)} runs")
        header, *rows = table.splitlines() or [""]
        self._header = header.removeprefix("policy,seed,")
        self._rows: dict[str, list[str]] = {name: [] for name in self._records}
        for row in rows:
            policy, seed, rest = (*row.split(",", 2), "", "")[:3]
            name = f"{policy}-seed{seed}"
            if name not in self._rows:
                raise RunError(f"{RECORDS} has no run for a row of {TABLE}: {short(row)}")
            self._rows[name].append(rest)

    @property
    def names(self) -> list[str]:
        """The names of the runs."""
        return list(self._records)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def run(self, name: str) -> tuple[str, dict]:
        """A run's CSV and its record, with its checksums; whether they fit is not looked at."""
        rest = json.loads(self._records[name])
        del rest["run"]
        return "\n".join([self._header, *self._rows[name]]) + "\n", _merged(json.loads(self._common), rest)


def _name(name: str) -> str:
    """A run's name, which is a file's, too: whoever brings a pack names no file elsewhere."""
    if not re.fullmatch(r"[\w.-]+-seed\d+", name):
        raise ValueError(f"no run is called {name}")
    return name


def _common(records: Sequence[dict]) -> dict:
    """What is the same in all records, dictionaries in them key by key."""
    found = {}
    for key in records[0]:
        if all(key in record for record in records):
            values = [record[key] for record in records]
            if all(isinstance(value, dict) for value in values):
                if inner := _common(values):
                    found[key] = inner
            # By their text: 1, 1.0 and True are equal, and a NaN is not equal to itself.
            elif len({json.dumps(value, sort_keys=True) for value in values}) == 1:
                found[key] = values[0]
    return found


def _rest(record: dict, common: dict) -> dict:
    """A record without what is common."""
    found = {}
    for key, value in record.items():
        if key not in common:
            found[key] = value
        elif isinstance(value, dict) and (inner := _rest(value, common[key])):
            found[key] = inner
    return found


def _merged(common: dict, rest: dict) -> dict:
    """The record again."""
    both = {key: _merged(common[key], rest[key]) for key in rest if key in common}
    return common | rest | both
