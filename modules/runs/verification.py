"""A complete run's first rows, trained again: the same bytes, or not?"""

import re
import tempfile
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import torch

from modules.checks import RunError, whole
from modules.data.datasets import DataError, load
from modules.runs import packed
from modules.runs.files import RunFiles, as_csv, complete_runs, experiments
from modules.runs.provenance import processor
from modules.runs.spec import spec
from modules.runs.stacked import rows_so_far, train_together
from modules.runs.training import train


def runs_in(place: str | Path) -> list[RunFiles]:
    """The complete runs at a place.

    Args:
        place: one run, as `<folder>/<name>` with or without `.csv`; an experiment's folder or its `runs.csv`; or a
            study's results.

    Raises:
        RunError: there are none.
    """
    place = Path(place)
    folder = place.parent if place.name in (packed.TABLE, packed.RECORDS) else place
    one = RunFiles(place.parent, re.sub(r"\.(csv|json)$", "", place.name))
    if folder == place and one.complete:
        return [one]
    found = complete_runs(folder) or [run for name in experiments(folder) for run in complete_runs(folder / name)]
    if not found:
        raise RunError(f"{place} holds no complete run: a run, or a folder of runs, is needed")
    return found


def verify(files: RunFiles, rows: int = 1, data_dir: str | Path | None = None) -> str | None:
    """Train a complete run again from its start, as its JSON says, and compare the first rows of its CSV.

    Args:
        files: the run's.
        rows: how many; all of them where the run has fewer.
        data_dir: as for `datasets.load`.

    Returns:
        None when the rows are the same bytes; else what differs, in one line.

    Raises:
        RunError: the run's files are missing or not as it wrote them, or its data are not those in `data_dir`.
        DataError: the data cannot be read.
    """
    whole("rows", rows)
    table, record = files.read()
    asked = spec(**record["spec"])
    known = record["data"]
    trained_on = f"{files.place} was trained on {known['label']}, fingerprint {known['fingerprint'][:12]}"
    name_it = 'name the folder that has them: PARAMS="--data-dir <folder>"'
    try:
        fingerprint = load(asked.dataset, data_dir).fingerprint
    except DataError as error:
        raise DataError(f"{trained_on}; {name_it}, or mend what was found instead: {error}") from error
    if fingerprint != known["fingerprint"]:
        raise RunError(f"{trained_on}, and the data here have {fingerprint[:12]}: {name_it}")
    device = "cpu" if record["device"] == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError(f"{files.place} was trained on {record['device']}: a GPU is needed to train it again")
    with tempfile.TemporaryDirectory() as folder:
        again, stop = RunFiles(folder, asked.name), rows * asked.evaluate_every
        if "together" in record:  # sums are taken in another order than alone; whoever shared the group changes nothing
            train_together([asked], folder, data_dir, device, stop_after=stop)
        else:
            train(asked, folder, data_dir, device, stop_after=stop)
        if again.complete:
            trained = again.read()[0]
        elif "together" in record:
            trained = as_csv(rows_so_far(asked, folder, fingerprint))
        else:
            trained = as_csv(again.saved(asked, fingerprint)["rows"])
    for number, pair in enumerate(zip_longest(*(text.splitlines()[: 1 + rows] for text in (table, trained)))):
        if pair[0] != pair[1]:
            made, here = (
                f"{record['processor']}, {record['device']}, torch {record['versions']['torch']}",
                f"{processor()}, {device}, torch {version('torch')}",
            )
            return f"row {number} is {pair[1]} here, not {pair[0]} (made on {made}; here is {here})"
    return None
