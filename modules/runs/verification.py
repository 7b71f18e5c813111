"""A complete run's first rows, trained again: the same bytes, or not?"""

import re
import tempfile
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path

import torch

from modules.checks import RunError, printable, short, whole
from modules.data.datasets import DataError, load
from modules.models import own
from modules.runs import packed
from modules.runs.files import RunFiles, as_csv, complete_runs, experiments
from modules.runs.provenance import processor, recorded
from modules.runs.spec import Spec
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


def verify(files: RunFiles, rows: int = 1, data_dir: str | Path | None = None, model: str | None = None) -> str | None:
    """Train a complete run again from its start, as its record says, and compare the first rows of its CSV.

    Where all rows are trained, what the record says of the run's end is compared, too.

    Args:
        files: the run's.
        rows: how many; all of them where the run has fewer.
        data_dir: as for `datasets.load`.
        model: the user's name of the network in a Python file that the run was trained with,
            `path/to/file.py:function`. A record is foreign text: the file that it names is never run on its word.

    Returns:
        None when the rows are the same bytes; else what differs, in one line.

    Raises:
        RunError: the run's files are missing or not as it wrote them, its data are not those in `data_dir`, or its
            network is in a Python file and `model` does not name that.
        DataError: the data cannot be read.
    """
    whole("rows", rows)
    table, record = files.read()
    asked = _with_own_network(recorded(record), model, files.place)
    label, known = printable(record["data"]["label"]), record["data"]["fingerprint"]
    trained_on = f"{files.place} was trained on {label}, fingerprint {printable(known[:12])}"
    name_it = 'name the folder that has them: PARAMS="--data-dir <folder>"'
    try:
        fingerprint = load(asked.dataset, data_dir).fingerprint
    except DataError as error:
        raise DataError(f"{trained_on}; {name_it}, or mend what was found instead: {error}") from error
    if fingerprint != known:
        raise RunError(f"{trained_on}, and the data here have {fingerprint[:12]}: {name_it}")
    device = "cpu" if record["device"] == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError(f"{files.place} was trained on {printable(record['device'])}: a GPU is needed to train it again")
    with tempfile.TemporaryDirectory() as folder:
        again, stop = RunFiles(folder, asked.name), rows * asked.evaluate_every
        if "together" in record:  # sums are taken in another order than alone; whoever shared the group changes nothing
            train_together([asked], folder, data_dir, device, stop_after=stop)
        else:
            train(asked, folder, data_dir, device, stop_after=stop)
        ends = None
        if again.complete:
            trained, ends = again.read()
        elif "together" in record:
            trained = as_csv(rows_so_far(asked, folder, fingerprint))
        else:
            trained = as_csv(again.saved(asked, fingerprint)["rows"])
    made = f"{record['processor']}, {record['device']}, torch {record['versions']['torch']}"
    where = f"(made on {printable(made)}; here is {processor()}, {device}, torch {version('torch')})"
    for number, pair in enumerate(zip_longest(*(text.splitlines()[: 1 + rows] for text in (table, trained)))):
        if pair[0] != pair[1]:
            return f"row {number} is {pair[1]} here, not {pair[0]} {where}"
    if ends is None:  # of its end only what its last row says can be compared
        said, last = record.get("test"), table.splitlines()[-1].rpartition(",")[2]
        if asked.evaluation == "test" and said and str(said["accuracy"]) != last:
            return f"test accuracy is {said['accuracy']} in its record, and {short(last)} in its last row"
        return None
    for part in ("iterations", "diverged", "test", "ema"):
        if (there := _without_images(record.get(part))) != (here := _without_images(ends.get(part))):
            return f"{part} is {short(here)} here, not {short(there)} {where}"
    return None


def _with_own_network(asked: Spec, model: str | None, place: Path) -> Spec:
    """The specification, with a network in a Python file by the user's name for it."""
    if not own.is_own(asked.model):
        return asked
    its = own.PATTERN.fullmatch(asked.model)
    if model is None:
        raise RunError(
            f"{place} was trained with a network in a Python file, {short(asked.model)}: read the file first, then "
            "name it with --model path/to/file.py:function"
        )
    if not own.is_own(model):
        raise RunError(f"model={short(model)}: path/to/file.py:function is needed")
    try:
        named = own.PATTERN.fullmatch(own.identified(model))
    except ValueError as error:
        raise RunError(str(error)) from error
    if (named["checksum"], named["function"]) != (its["checksum"], its["function"]):
        raise RunError(
            f"model={short(model)}: {place} was trained with {its['function']} of a file with the checksum "
            f"{its['checksum']}, not {named['checksum']}"
        )
    return asked.model_copy(update={"model": named[0]})


def _without_images(said: object) -> object:
    """A part of a record without the outcome of each image, which records held once."""
    if isinstance(said, dict):
        return {key: _without_images(value) for key, value in said.items() if key != "correct"}
    return said
