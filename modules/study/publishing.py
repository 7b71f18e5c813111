"""What a study found, promoted to `results/published/`: complete, with its numbers and figures in the documents."""

import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from modules.report.comparison import TABLES
from modules.report.tables import read_runs
from modules.report.tournament import AVERAGED
from modules.runs.files import atomic_write, experiments, pack_runs, writing
from modules.study import documents
from modules.study.notebooks import conclude
from modules.study.parameters import StudyError, published_folder, read_study

IMAGES = Path("images")


def publish(study: str, results: Path) -> None:
    """Promote a study's complete results to `results/published/`, and the figures that documents show to `images/`.

    Raises:
        StudyError: results are missing, unfinished, failed, or name a place on this machine; or a document shows a
            figure that they do not have.
        DocumentError: a document, or the study's conclusions, need a number that these results do not have.
    """
    target = published_folder(results)
    if not (results / "notebooks").is_dir():
        raise StudyError(f"nothing to publish: {results} has no executed notebooks, run make reproduce first")
    with writing(results):
        _check_complete(study, results)
        here = [re.escape(f"{place}/") for place in (Path.cwd(), Path.home(), Path(sys.prefix)) if place != Path("/")]
        # Also the folders that a notebook was given, wherever they are.
        named = re.compile("|".join([*here, r'(results_dir|published_dir|data_dir|log_dir|reference) = \\"[/~]']))
        for path in results.rglob("*"):
            if path.suffix in (".ipynb", ".json", ".jsonl", ".csv") and named.search(path.read_text(encoding="utf-8")):
                raise StudyError(f"{path} names a folder of this machine: use relative paths for RESULTS and data_dir")
        if lost := sorted(set(experiments(target)) - set(experiments(results))):
            raise StudyError(f"{target} also holds {', '.join(lost)}, which {results} has not: make them there, too")
        texts = documents.updated({target.name: results})  # before anything is replaced
        images = _images(target.name, results, texts.values())
        if results.resolve() != target.resolve():
            new = target.with_name(f".{target.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(results, new, ignore=shutil.ignore_patterns(".*", "comparison.csv", "*.weights.pt"))
            conclude(study, new, new, target.name)
            for experiment in experiments(new):
                pack_runs(new / experiment)
            shutil.rmtree(target, ignore_errors=True)
            new.replace(target)
        else:
            for experiment in experiments(target):
                pack_runs(target / experiment)
    for figure in images:
        (IMAGES / target.name).mkdir(parents=True, exist_ok=True)
        atomic_write(IMAGES / target.name / figure, (target / "figures" / figure).read_bytes())
    changed = {path: text for path, text in texts.items() if text != path.read_text(encoding="utf-8")}
    for path, text in changed.items():
        atomic_write(path, text)
    print(f"published {target}, {len(images)} figures in {IMAGES}, new numbers in {len(changed)} documents")


def _images(name: str, results: Path, texts: Iterable[str]) -> list[str]:
    """The figures of a study that the documents show, as `images/<study>/<figure>`.

    Raises:
        StudyError: the results have no such figure.
    """
    shown = {found for text in texts for found in re.findall(rf"images/{re.escape(name)}/([\w.-]+\.png)", text)}
    for figure in shown:
        if not (results / "figures" / figure).exists():
            raise StudyError(f"{results} has no figures/{figure}, which a document shows as images/{name}/{figure}")
    return sorted(shown)


def _check_complete(study: str, results: Path) -> None:
    """Raise StudyError when something is missing from a study's results, before anything published is touched."""
    notebooks = list(read_study(study)["notebooks"])
    parts = [f"notebooks/{name}.ipynb" for name in notebooks]
    for name, table in TABLES.items():
        if table.notebook in notebooks:
            for experiment in table.experiments:
                for unfinished in results.glob(f"{experiment}/.partial/*"):
                    raise StudyError(f"{unfinished} is of an unfinished run: run make reproduce again first")
            if table.always or any(any(results.glob(experiment)) for experiment in table.experiments):
                parts.append(f"tables/{name}.csv")
    for part in parts:
        if not (results / part).exists():
            raise StudyError(f"{results} is not complete: {part} is missing, run make reproduce again first")
    for name, table in TABLES.items():
        path = results / "tables" / f"{name}.csv"
        if table.compared and table.counts_runs and path.exists():
            counted = pd.read_csv(path)
            policy = counted.get("policy", pd.Series("range_test", counted.index))
            counted = counted[~policy.str.contains(" - ")].groupby(policy).runs.first()
            runs_of = [read_runs(folder) for part in table.experiments if (folder := results / part).exists()]
            found = pd.concat(runs_of).groupby("policy").seed.nunique() if runs_of else {}
            for policy, runs in counted.items():
                if runs != found.get(policy, found.get(policy.removesuffix(AVERAGED), 0)):
                    raise StudyError(
                        f"{path} is not of the runs beside it: it counts {runs} of {policy}, there are "
                        f"{found.get(policy, 0)}: run make reproduce again first, with as many runs"
                    )
