"""What the tests of prose share: the texts, the published runs, and numbers as the texts print them."""

import json
from pathlib import Path

import pandas as pd

from modules.report import tables
from modules.report.formatting import show
from modules.study.parameters import PUBLISHED, read_study

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / PUBLISHED
README, LEDGER = (" ".join((ROOT / path).read_text().split()) for path in ("README.md", PUBLISHED / "README.md"))


def curves(experiment: str, *policies: str) -> list[pd.DataFrame]:
    """Accuracy of each policy's published runs: a row an evaluation, a column a run."""
    runs = tables.read_runs(FOLDER / experiment)
    return [tables.curves(runs, policy) for policy in policies]


def runs_of(experiment: str) -> list[tuple[Path, pd.DataFrame]]:
    """Path and rows of an experiment's published runs."""
    return [(path, pd.read_csv(path)) for path in sorted((FOLDER / experiment).glob("*-seed*.csv"))]


def record(path: str | Path) -> dict:
    return json.loads((FOLDER / path).read_text())


def conclusion(study: str, notebook: str) -> str:
    """What a study's file concludes from a notebook's results."""
    return " ".join(read_study(study)["conclusions"][notebook].split())


def accuracy(runs: pd.Series) -> str:
    """A mean over runs as README prints it, with Student's interval."""
    found = tables.interval_of_mean(runs, 0, 1)
    return show("accuracy", found["value"], found["t_low"], found["t_high"])


def points(runs: pd.Series) -> str:
    """A mean of differences over runs as README prints it, with Student's interval."""
    found = tables.interval_of_mean(runs, -1, 1)
    return show("difference", found["value"], found["t_low"], found["t_high"])


def unsigned(runs: pd.Series) -> str:
    """`points` where the sentence says which way."""
    return points(runs).replace("+", "")
