"""What the page on others' work counts follows from the times that it cites."""

import re

import pandas as pd
from toys import ROOT

ONE, TWO = 3, 5  # trials that differ in the number of cycles alone


def counted() -> dict[str, tuple[int, int, int]]:
    """In how many studies one cycle, two cycles, or neither is the first to the target, by workload."""
    times = pd.read_csv(ROOT / "studies/references/algoperf_cyclic_lr.csv")
    seconds = times.pivot(index=["workload", "study"], columns="trial", values="seconds")[[ONE, TWO]]
    first = seconds.fillna(float("inf")).idxmin(axis=1).where(seconds.notna().any(axis=1))
    return {
        workload: (int((found == ONE).sum()), int((found == TWO).sum()), int(found.isna().sum()))
        for workload, found in first.groupby("workload")
    }


def test_the_counts_of_one_and_two_cycles_are_those_of_the_times():
    page = (ROOT / "results/published/related.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    said = {name: tuple(map(int, counts)) for name, *counts in rows}
    expected = counted()
    assert said.pop("all") == tuple(map(sum, zip(*expected.values(), strict=True)))
    assert said == expected


def test_the_times_quoted_of_translation_are_there():
    times = pd.read_csv(ROOT / "studies/references/algoperf_cyclic_lr.csv")
    wmt = times[(times.workload == "wmt") & times.seconds.notna()]
    two = wmt[wmt.trial == 4].seconds.sort_values()
    assert len(two) == 5
    assert 22_700 <= two.iloc[0] <= two.iloc[3] <= 24_410
    one = wmt[wmt.cycles == 1].seconds
    assert 40_300 <= one.min() <= one.max() <= 47_100
