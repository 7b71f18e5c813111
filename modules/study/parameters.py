"""The parameters of a study: what its file and the command line say, checked before anything runs."""

from pathlib import Path

import yaml

from modules.checks import did_you_mean, short
from modules.runs.spec import Spec
from modules.study.design import NOTEBOOKS, SET_BY_EXPERIMENT, StudyError, declared, source, typed

STUDIES = Path("studies")
PUBLISHED = Path("results/published")
EVERYWHERE = ("dataset", "data_dir", "workers")

#: What a study's file may hold: each notebook's parameters, and what is concluded from its published results.
PARTS = ("notebooks", "conclusions")

#: The settings of a run that go through a notebook's `settings`, where it has no parameter of that name.
SETTINGS = tuple(name for name in Spec.model_fields if name not in SET_BY_EXPERIMENT)


def read_study(study: str) -> dict[str, dict]:
    """A study's file: its `PARTS`, by name.

    Args:
        study: the name of a file of `studies/` without `.yaml`, or the path of one with it.

    Raises:
        StudyError: an unknown study, or a file that cannot be read.
    """
    file = Path(study) if study.endswith(".yaml") else STUDIES / f"{study}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in STUDIES.glob("*.yaml"))
        if study.endswith(".yaml"):
            raise StudyError(f"STUDY={study}: there is no such file in {Path.cwd()}{did_you_mean(file.stem, known)}")
        raise StudyError(f"unknown study {study!r} (choose one of {', '.join(known)}{did_you_mean(study, known)})")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise StudyError(f"{file} is not valid YAML: {short(' '.join(str(error).split()))}") from error
    if not isinstance(found, dict) or not isinstance(found.get("notebooks"), dict):
        raise StudyError(f"{file}: `notebooks:` with the parameters of each is needed, not {short(found)}")
    for part, values in found.items():
        if part not in PARTS:
            raise StudyError(f"{file}: {short(part)} is no part of a study{did_you_mean(str(part), PARTS)}")
        if not isinstance(values, dict):
            raise StudyError(f"{file}: {part}: notebooks by name are needed, not {short(values)}")
        for name in values:
            if not (isinstance(name, str) and source(name).is_file()):
                raise StudyError(f"{file}: there is no notebook {short(name)} in {NOTEBOOKS}")
    for name, text in (found.get("conclusions") or {}).items():
        if not isinstance(text, str):
            raise StudyError(f"{file}: conclusions: {name}: text is needed, not {short(text)}")
    for name, values in found["notebooks"].items():
        if not isinstance(values, dict):
            raise StudyError(f"{file}: {name}: parameters as `name: value` are needed, not {short(values)}")
    return {part: found.get(part) or {} for part in PARTS}


def published_folder(results: Path) -> Path:
    """Where a results folder's committed counterpart is: itself, when it lies among what is published."""
    return results if PUBLISHED.resolve() in results.resolve().parents else PUBLISHED / results.name


def counterpart(study: str, results: Path) -> Path:
    """What a results folder is compared with: what is published under its name, or else under its study's."""
    known = published_folder(results)
    return known if known.is_dir() else PUBLISHED / Path(study).stem


def parameters(study: str, results: Path, overrides: dict[str, object]) -> dict[str, dict]:
    """What papermill passes to each notebook of a study, by the notebook's name.

    Args:
        study: as for `read_study`.
        results: the study's results folder.
        overrides: the user's `-p` values, as text. `06.batch_size` goes to notebook 06. A plain name in `EVERYWHERE`
            goes to all notebooks that take it, any other to the one that does. A notebook takes its own parameters and,
            through its `settings`, those in `SETTINGS`.

    Raises:
        StudyError: an unknown study; a parameter that is unknown or of the wrong kind; a file that cannot be read.
    """
    plan = read_study(study)["notebooks"]
    known = {name: declared(name) for name in plan}
    for name, values in plan.items():
        for key, value in values.items():
            if key not in known[name]:
                hint = did_you_mean(str(key), known[name])
                into = ": it goes into `settings`" if key in SETTINGS and "settings" in known[name] else ""
                raise StudyError(f"{study}: {name} has no parameter {key!r} (value {short(value)}{hint}){into}")
            values[key] = typed(f"{name}: {key}", known[name][key], value)
    for given, text in overrides.items():
        (number, _, key), said = given.rpartition("."), " ".join(str(text).split())[:60]
        named = [name for name in plan if number in ("", name, name.partition("_")[0])]
        if not named:
            raise StudyError(f"-p {given} {said}: {study} has no notebook {number!r} (it has {', '.join(plan)})")
        through = [name for name in plan if key in SETTINGS and "settings" in known[name]]
        having = [name for name in plan if key in known[name] or name in through]
        owners = [name for name in named if name in having]
        if not owners:
            here = f"notebook {number} has no" if number and having else "no notebook has a"
            hint = did_you_mean(key, {*SETTINGS, *(name for names in known.values() for name in names)})
            hint = f", {', '.join(having)} have it" if having else hint
            raise StudyError(f"{here} parameter {given!r} (value {short(parsed(text))}{hint})")
        if len(owners) > 1 and not number and key not in EVERYWHERE:
            first = owners[0].partition("_")[0]
            raise StudyError(
                f"-p {key} {said}: several notebooks have it, {', '.join(owners)}: name one, as -p {first}.{key} {said}"
            )
        for name in owners:
            if key in known[name]:
                parameter = known[name][key]
                plan[name][key] = typed(f"{name}: {key}", parameter, parsed(text, parameter.kinds))
            else:
                before = plan[name].get("settings", known[name]["settings"].default)
                plan[name]["settings"] = {**before, key: parsed(text)}
    places = {"results_dir": str(results), "published_dir": str(counterpart(study, results))}
    for name, values in plan.items():
        values.update({key: place for key, place in places.items() if key in known[name]})
    return plan


def chosen(plan: dict[str, dict], only: str | None) -> dict[str, dict]:
    """The part of a study that is asked for: all of it, or one notebook by its number or name.

    Raises:
        StudyError: the study has no such notebook.
    """
    if only is None:
        return plan
    found = {name: values for name, values in plan.items() if only in (name, name.partition("_")[0])}
    if not found:
        raise StudyError(f"ONLY={only}: the study has no such notebook (it has {', '.join(plan)})")
    return found


def parsed(text: object, kinds: tuple[str, ...] = ()) -> object:
    """A `-p` value: what YAML takes its text for, or the text itself where one of the declared kinds is text."""
    if not isinstance(text, str) or (text == "None" and kinds != ("str",)):
        return None if text == "None" else text
    if "str" in kinds:
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
