"""The parameters of a study: what its YAML files and the command line say, checked before anything runs."""

import json
import re
from contextlib import suppress
from pathlib import Path

import nbformat
import yaml

from modules.checks import did_you_mean, short
from modules.report.notes import check_notes

NOTEBOOKS, STUDIES, PUBLISHED = map(Path, ("notebooks", "studies", "results/published"))
NOTES = "notes.yaml"
HEADLINE = ("02", "03", "04")
EVERYWHERE = ("dataset", "data_dir", "workers")


class StudyError(ValueError):
    """Something asked of a study that cannot be done; the message is one line for the user."""


def cells(notebook: nbformat.NotebookNode, tag: str) -> str:
    """The source of a notebook's cells with a tag."""
    return "\n".join(cell.source for cell in notebook.cells if tag in cell.metadata.get("tags", []))


def assigned(source: str) -> dict:
    """The variables a piece of notebook source leaves behind."""
    namespace: dict = {}
    exec(source, namespace)
    return {key: value for key, value in namespace.items() if not key.startswith("__")}


def published_folder(results: Path) -> Path:
    """Where a results folder's committed counterpart is: itself, when it lies among what is published."""
    return results if PUBLISHED.resolve() in results.resolve().parents else PUBLISHED / results.name


def parameters(study: str, results: Path, overrides: dict[str, object]) -> dict[str, dict]:
    """What papermill passes to each notebook of a study, by the notebook's name.

    Args:
        study: a folder of `studies/`, or the path of one.
        results: the study's results folder.
        overrides: the user's `-p` values. `06.batch_size` goes to notebook 06. A plain name in `EVERYWHERE` goes to all
            notebooks that have it; any other to those of the headline (`HEADLINE`) that have it, else to all that do.

    Raises:
        StudyError: an unknown study; a parameter that is unknown or of the wrong kind; YAML that cannot be read.
    """
    folder = STUDIES / study
    files = [file for file in sorted(folder.glob("*.yaml")) if file.name != NOTES]
    if not files:
        known = ", ".join(sorted(path.name for path in STUDIES.iterdir() if path.is_dir()))
        hint = did_you_mean(study, known.split(", "))
        raise StudyError(f"unknown study {study!r} (choose one of {known}{hint})")
    plan, known = {}, {}
    for file in files:
        source = NOTEBOOKS / f"{file.stem}.ipynb"
        if not source.exists():
            raise StudyError(f"{file} belongs to no notebook: {source} does not exist")
        known[file.stem] = assigned(cells(nbformat.read(source, 4), "parameters"))
        try:
            plan[file.stem] = yaml.safe_load(file.read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise StudyError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(plan[file.stem], dict):
            raise StudyError(f"{file}: parameters as `name: value` are needed, not {short(plan[file.stem])}")
        for key, value in plan[file.stem].items():
            if key not in known[file.stem]:
                hint = did_you_mean(str(key), known[file.stem])
                raise StudyError(f"{file}: {file.stem} has no parameter {key!r} (value {short(value)}{hint})")
    for given, value in overrides.items():
        number, _, key = given.rpartition(".")
        owners = [name for name in plan if key in known[name] and number in ("", name, name.partition("_")[0])]
        if not owners:
            hint = did_you_mean(key, {name for names in known.values() for name in names})
            raise StudyError(f"no notebook has a parameter {given!r} (value {short(value)}{hint})")
        if key not in EVERYWHERE and not number:
            owners = [name for name in owners if name.startswith(HEADLINE)] or owners
        for name in owners:
            plan[name][key] = value
    places = {"results_dir": str(results), "published_dir": str(published_folder(results))}
    for name, values in plan.items():
        values.update({key: value for key, value in places.items() if key in known[name]})
        plan[name] = {key: _typed(f"{name}: {key}", known[name][key], value) for key, value in values.items()}
    return plan


def study_notes(study: str) -> dict[str, list]:
    """The notes in a study's file, by experiment; none without one.

    Raises:
        StudyError: YAML that cannot be read.
        RunError: a note that says too little, or too much.
    """
    file = STUDIES / study / NOTES
    try:
        notes = (yaml.safe_load(file.read_text()) or {}) if file.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    check_notes(notes)
    return notes


def _typed(name: str, default: object, value: object) -> object:
    """A value of its default's kind; what a notebook leaves open with None, its own check looks at.

    Raises:
        StudyError: it is of another kind.
    """
    text = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)  # YAML takes 1e-3 for text
    if (isinstance(default, float) and not isinstance(value, bool)) or (default is None and text):
        with suppress(TypeError, ValueError, OverflowError):
            return float(value)
    elif default is None or (type(value) is type(default)):
        return value
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "a list"}
    kind = kinds[type(default)]
    raise StudyError(f"{name}={short(value)}: {kind} is needed, such as {default!r}")


def check(plan: dict[str, dict]) -> None:
    """Run every notebook's own check of its parameters, before anything is computed.

    Raises:
        StudyError: a check refused, with the notebook's name and what the check said.
    """
    for name, values in plan.items():
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
        namespace: dict = {}
        exec(cells(notebook, "parameters"), namespace)
        namespace.update(values)
        try:
            exec(cells(notebook, "check"), namespace)
        except ValueError as error:
            raise StudyError(f"{name}: {error}") from error


def value(text: str) -> object:
    """A `-p` value from the command line: None, a truth value, a number, JSON (for lists), or else text."""
    if text == "None":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return text
