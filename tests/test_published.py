"""The studies ask for what is published: the runs that a study's file makes are those of the published JSONs."""

import re
import runpy
import subprocess
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from toys import ROOT, every

from modules.checks import RunError
from modules.data import datasets
from modules.rate_finders import benchmark
from modules.rate_finders.rules import suggest_rate
from modules.report import advice, tables
from modules.runs import parallel
from modules.runs.files import COLUMNS, complete_runs
from modules.runs.spec import Spec
from modules.statistics import AnalysisError
from modules.study import design, documents, notebooks, parameters
from modules.tournament import design as tournament

SIZES = {
    "digits": (1297, 1),
    "digits-8x8": (1297, 1),
    "mnist": (60_000, 1),
    "fashion-mnist": (60_000, 1),
    "cifar10": (50_000, 3),
    "images": (50_000, 3),
}
JPEG = {"dataset": "images", "data_dir": "data/cifar10-jpeg"}


def named(name, data_dir=None):
    """A data set of the right size without its pixels: which runs are asked for depends on no more."""
    count, channels = SIZES[name]

    def part(size):
        pixels = np.zeros((1, channels, 32, 32), dtype=np.uint8)
        return np.broadcast_to(pixels, (size, *pixels.shape[1:])), np.zeros(size, dtype=np.int64)

    return datasets.Dataset(name, name, *part(count), *part(500), ("0",), "")


STUDIES = [
    (
        "digits",
        "digits",
        {},
        {"range_test", "headline", "policies", "ablation", "best_lr_sweep", "best_lr", "mlp", "tournament_2"},
    ),
    ("caffe-quick", "cifar10-quick", {}, {"policies", "ablation", "policies_range_test"}),
    ("fashion-mnist", "fashion-mnist", {}, {"range_test", "headline", "policies", "ablation"}),
    ("mnist", "mnist", {}, {"best_lr_sweep", "best_lr", "mlp"}),
    ("cifar10", "cifar10", {}, {"range_test", "headline"}),
    ("headline-controls", "headline-controls", {}, {"policies", "ablation"}),
    ("policies", "cifar10-jpeg", JPEG, {"policies", "ablation", "policies_range_test"}),
    ("wide-resnet", "cifar10-jpeg", JPEG, {"best_lr_sweep", "best_lr"}),
]


@pytest.mark.parametrize(("study", "published", "overrides", "experiments"), STUDIES)
def test_a_studys_file_makes_the_published_runs(monkeypatch, study, published, overrides, experiments):
    results, asked = ROOT / "results" / "published" / published, {}

    def note(specs, folder, data_dir=None, workers=None):
        asked.setdefault(Path(folder).name, []).extend(specs)

    monkeypatch.setattr(datasets, "load", named)
    monkeypatch.setattr(parallel, "check_all", note)
    monkeypatch.setattr(tournament, "check_all", note)
    monkeypatch.setattr(parallel, "same_data", lambda *given: None)  # these have no pixels
    design.check(parameters.parameters(study, results, overrides))
    assert set(asked) == experiments
    for experiment, specs in asked.items():
        records = [run.read()[1] for run in complete_runs(results / experiment)]
        found = {(run := Spec(**record["spec"])).name: run for record in records}
        assert {run.name: run for run in specs} == found


@every(("study", "published"), [entry[:2] for entry in STUDIES])
def test_conclusions_are_filled_from_the_published_tables(tmp_path, study, published):
    made = parameters.read_study(study)
    assert set(made["conclusions"]) <= set(made["notebooks"])
    (tmp_path / "notebooks").mkdir()
    for name in made["notebooks"]:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")])
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    for _ in range(2):  # the second takes the first one's place
        notebooks.conclude(study, tmp_path, ROOT / "results" / "published" / published, published)
    for name in made["notebooks"]:
        _, *added = nbformat.read(tmp_path / "notebooks" / f"{name}.ipynb", 4).cells
        assert len(added) == (name in made["conclusions"])
        for cell in added:
            assert cell.source.startswith("## What was concluded\n\nOf the published runs, `results/published/")
            assert "<!--" not in cell.source


def test_source_notebooks_conclude_nothing_of_one_study():
    """Every study runs them, and everybody's own images."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "markdown":
                assert not re.search(r"JPEG copy|Fashion-MNIST|[+-]\d+\.\d+ points", cell.source), path


def test_published_runs_are_packed_and_as_they_were_written():
    """The checksums that each run's record has are those of its CSV and of the record, taken out of the pack."""
    damaged, count = [], 0
    for folder in sorted(path for path in (ROOT / "results" / "published").glob("*/*") if path.is_dir()):
        for run in complete_runs(folder):
            count += 1
            try:
                run.read()
            except RunError as error:
                damaged.append(str(error))
    assert damaged == []
    assert count > 5000
    assert not list((ROOT / "results" / "published").glob("*/*/*-seed*"))


def test_every_pack_is_a_data_frame_in_one_line():
    wrong = []
    for path in sorted((ROOT / "results" / "published").glob("*/*/runs.csv")):
        table = pd.read_csv(path)
        if list(table) != ["policy", "seed", *COLUMNS] or not table.val_acc.dropna().between(0, 1).all():
            wrong.append(path)
    assert wrong == []


def test_a_checkout_changes_no_bytes():
    """Whatever git is told elsewhere: line ends that are made anew on the way would change every checksum."""
    files = ["results/published/digits/headline/runs.csv", "studies/registered/tournament.yaml", "modules/checks.py"]
    asked = ["git", "-C", ROOT, "-c", "core.autocrlf=true", "check-attr", "text", "--", *files]
    found = subprocess.run(asked, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("this is no git checkout")
    assert found.stdout.splitlines() == [f"{file}: text: unset" for file in files]


PUBLISHED = ROOT / "results" / "published"
#: The arms whose variance is pooled where a table's method says so, by the study's name.
POOLED = {"cifar10-jpeg": "policies", "cifar10-quick": "caffe-quick", "fashion-mnist": "fashion-mnist"}


def arms_table(folder, table):
    """What the runs of an experiment give in place of its table."""
    runs = tables.read_runs(folder)
    if folder.name == "your_data":  # its choice is made without test images
        runs = advice.deciding_only(runs)
    made = [tables.by_policy(runs, (quantity,)) for quantity in BY_POLICY if quantity in set(table.quantity)]
    keys = {name: key for key, name in tables.METHODS.items()}
    for row in table[table.quantity == "final_accuracy_difference"].itertuples():
        pooled = ()
        if row.method == "pooled":
            study = parameters.read_study(POOLED[folder.parent.name])["notebooks"]["05_policies"]
            pooled = tables.pooled_arms(study["compare"])
        found = tables.final_difference(runs, *row.policy.split(" - "), keys.get(row.method, "welch"), pooled)
        made.append(tables.table_of([found]))
    return pd.concat(made, ignore_index=True)


BY_POLICY = ("iterations", "final_accuracy", "best_accuracy", "seconds")
NUMBERS = ["runs", "diverged", "value", "std", "error", "df", "low", "high"]


def test_published_tables_are_what_their_runs_give():
    """Accuracies, differences, curves and bounds, each from the packed runs; what a text quotes has its own test."""
    wrong, checked = [], 0
    for path in sorted(PUBLISHED.glob("*/tables/*.csv")):
        results, table = path.parents[1], pd.read_csv(path)
        if complete_runs(folder := results / path.stem) and "quantity" in table and "policy" in table:
            if path.stem.startswith("tournament"):
                continue  # of arms that are not called as their runs are
            known = table[table.quantity.isin([*BY_POLICY, "final_accuracy_difference"])]
            expected = arms_table(folder, known)
            keys = ["quantity", "policy"]
            both = known.merge(expected, on=keys, suffixes=("", "_made"))
            checked += len(both)
            if len(both) != len(known):
                wrong.append(f"{path}: other rows")
            for name in NUMBERS:
                made = both[f"{name}_made"].astype(float)
                same = np.isclose(both[name].astype(float), made, rtol=1e-9, atol=1e-12, equal_nan=True)
                wrong += [f"{path}: {name} of {' '.join(row)}" for row in both[keys][~same].to_numpy()]
        elif path.stem in CURVES:
            made = CURVES[path.stem](results)
            checked += len(table)
            numbers = [frame.select_dtypes("number").to_numpy() for frame in (table[made.columns], made)]
            if not np.allclose(*numbers, rtol=1e-9, equal_nan=True):
                wrong.append(str(path))
    assert wrong == []
    assert checked > 1500


@cache
def bounds(results):
    runs = tables.read_runs(results / "range_test")
    exponential = complete_runs(results / "range_test")[0].read()[1]["spec"]["policy"].get("ramp") == "exponential"
    return tables.bounds_table(runs, exponential)


CURVES = {
    "mean_accuracy": lambda results: tables.mean_curves(tables.read_runs(results / "headline")),
    "policies_curves": lambda results: tables.mean_curves(tables.read_runs(results / "policies")),
    "policies_range_test": lambda results: tables.range_test_curve(tables.read_runs(results / "policies_range_test")),
    "range_test_curve": lambda results: bounds(results)[0],
    "range_test_bounds": lambda results: bounds(results)[1],
}


#: As records call them: an older one, and one with AMX.
INTEL = "Intel(R) Xeon(R) Processor @ 2.50GHz, AVX512", "Intel(R) Xeon(R) Processor, AVX512"


def test_the_text_says_which_runs_are_of_another_processor():
    text = (ROOT / "studies" / "README.md").read_text()
    section = text.split("## Same bytes: on which processor?")[1].split("\n## ")[0]
    named = [set(re.findall(r"`([\w-]+)`", part)) for part in section.split("\n\n")[2].split("- *")[2:]]
    made = {kind: {} for kind in INTEL}
    for path in PUBLISHED.glob("*/*/runs.jsonl"):
        kinds = set(re.findall(r'"processor": "([^"]+)"', path.read_text()))
        assert kinds <= {"AMD EPYC, AVX512", *INTEL}
        for kind in kinds & made.keys():
            made[kind].setdefault(path.parts[-3], set()).add(path.parts[-2])
    older, amx = made.values()
    assert named[0] - {"cifar10-jpeg"} == {"fashion-mnist", "mnist"} | older.pop("cifar10-jpeg")
    assert set(older) == {"fashion-mnist", "mnist"}
    assert named[1] == set(amx) | set().union(*amx.values())


def test_every_published_figure_is_on_a_page():
    """All others are in the executed notebooks."""
    texts = "".join((ROOT / path).read_text() for path in documents.documents())
    figures = [path.relative_to(PUBLISHED).as_posix() for path in PUBLISHED.glob("*/figures/*")]
    assert figures
    assert [name for name in figures if name not in texts] == []


def test_the_table_of_a_strangers_loop_is_what_its_trainings_give():
    made = runpy.run_path(str(ROOT / "benchmarks" / "own_loop.py"))
    runs = {seed: pd.read_csv(PUBLISHED / "own-loop" / f"seed{seed}.csv") for seed in made["SEEDS"]}
    published = pd.read_csv(PUBLISHED / "own-loop" / "tables" / "own_loop.csv")
    pd.testing.assert_frame_equal(made["table"](runs).reset_index(drop=True), published, check_dtype=False)


def test_readmes_lines_refuse_the_ramps_that_the_page_counts():
    """Six of the 80 of the held-out tasks, all of `head_fashion`."""
    frozen = pd.read_csv(PUBLISHED / "rate-finders" / "tables" / "rate_finders_frozen_2.csv")
    refused, ramps = [], 0
    for (task, _), part in frozen[~frozen.chosen].groupby(["task", "seed"]):
        loss, accuracy = (part[part.what == what].sort_values("rate") for what in ("ramp", "ramp's accuracy"))
        if len(loss):
            ramps += 1
            curves = [(part.rate.to_numpy(), part.value.to_numpy()) for part in (loss, accuracy)]
            try:
                suggest_rate(*curves[0], "linear", benchmark.at_every_rate(*curves))
            except AnalysisError:
                refused.append(task)
    assert (refused, ramps) == (["head_fashion"] * 6, 80)
