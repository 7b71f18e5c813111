"""The whole study on `smoke` through papermill, and what happens when it is asked for nonsense."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from toys import ROOT

from modules.report.comparison import COLUMNS
from modules.runs.files import complete_runs, experiments
from modules.study import cli, documents, notebooks, parameters, publishing, reproduction

NOTEBOOKS = list(parameters.read_study("smoke")["notebooks"])


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """Results of `make reproduce STUDY=smoke`, made once, with its exit status."""
    results = tmp_path_factory.mktemp("results") / "smoke"
    options = ["--results", str(results), "-p", "log_dir", str(results.parent / "logs")]
    return results, cli.main(["reproduce", "--study", "smoke", *options])


def test_smoke_runs_every_notebook(smoke):
    results, status = smoke
    assert status == 0
    assert sorted(path.stem for path in (results / "notebooks").glob("*.ipynb")) == NOTEBOOKS
    tables = ["headline", "range_test_bounds", "range_test_curve", "mean_accuracy", "comparison"]
    for name in [*tables, "policies", "ablation", "best_lr", "mlp", "headline_notes"]:
        assert len(pd.read_csv(results / "tables" / f"{name}.csv")) > 1
    for name in ("run", "lrrt", "schedulers_paper", "schedulers_reset"):
        assert (results / "figures" / f"{name}.png").stat().st_size > 5000
    assert len(list((results / "headline").glob("*.csv"))) == 4


def test_executed_notebooks_have_figures_and_say_nothing_of_the_machine(smoke):
    results, _ = smoke
    for path in (results / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert not any(output.output_type == "error" for output in outputs)
        assert [output.text for output in outputs if output.get("name") == "stderr"] == []
        assert "papermill" not in notebook.metadata
        assert str(ROOT) not in path.read_text()
        figures = sum("image/png" in output.get("data", {}) for output in outputs)
        least = {"00": 4, "01": 10, "02": 1, "03": 0, "04": 2, "05": 3, "06": 2, "07": 1, "08": 3, "09": 3, "10": 2}
        assert figures >= least[path.stem[:2]]


def test_the_answer_stands_first_on_a_users_page(smoke):
    """Before parameters and code, though it is known last."""
    results, _ = smoke
    first = next(cell for cell in nbformat.read(results / "notebooks" / "10_your_data.ipynb", 4).cells[1:])
    answer, *pictures, table = (output.data for output in first.outputs)
    assert "```python\niterations = " in answer["text/markdown"]
    assert "**What it cost.**" in answer["text/markdown"]
    assert ["image/png" in picture for picture in pictures] == [True, True]
    assert "the best is probably" in table["text/html"]


@pytest.mark.ci
def test_a_notebook_executed_again_is_the_same_bytes(smoke):
    """Else who reproduces a published study cannot see what changed."""
    results, _ = smoke
    plan = parameters.parameters("smoke", results, {})
    with notebooks.one_kernel() as kernel:
        for name in ("04_headline_figures", "05_policies"):
            contents = set()
            for _ in range(2):
                notebooks.execute(name, plan, results, kernel)
                contents.add((results / "notebooks" / f"{name}.ipynb").read_bytes())
            assert len(contents) == 1, name


@pytest.mark.ci
def test_second_run_trains_nothing_and_agrees_with_the_first(smoke, tmp_path, monkeypatch, capsys):
    results, _ = smoke
    monkeypatch.setattr(parameters, "PUBLISHED", tmp_path / "published")
    shutil.copytree(results, tmp_path / "published" / "smoke")
    everything = reproduction.parameters
    monkeypatch.setattr(
        reproduction,
        "parameters",
        # One that tabulates what is there, and one that would train.
        lambda *asked: {name: plan for name, plan in everything(*asked).items() if name[:2] in ("04", "06")},
    )
    runs = {path: path.stat().st_mtime_ns for path in results.glob("*/*-seed*.csv")}
    tables = {path: path.read_bytes() for path in results.glob("tables/[!c]*.csv")}
    figures = {path: path.read_bytes() for path in results.glob("figures/*.png")}
    assert cli.main(["reproduce", "--study", "smoke", "--results", str(results)]) == 0
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    assert {path: path.read_bytes() for path in tables} == tables
    assert {path: path.read_bytes() for path in figures} == figures
    comparison = pd.read_csv(results / "tables" / "comparison.csv")
    assert set(comparison.verdict) == {"same bytes"}
    output = capsys.readouterr().out
    count = len(comparison)
    assert f"{count} of {count} numbers as published in" in output
    assert f": {count} same bytes." in output
    assert "0 of them trained now" in output


@pytest.mark.parametrize(
    ("verdict", "status"), [("same bytes", 0), ("equivalent", 0), ("not resolved", 1), ("differs", 1)]
)
def test_strict_fails_unless_all_is_the_same_or_equivalent(tmp_path, monkeypatch, verdict, status):
    monkeypatch.setattr(reproduction, "parameters", lambda *asked: {})
    judged = pd.DataFrame([{name: float("nan") for name in COLUMNS}]).assign(
        table="headline", policy="fixed", quantity="final_accuracy", verdict=verdict
    )
    monkeypatch.setattr(reproduction, "compare", lambda *asked: judged)
    asked = ["reproduce", "--study", "smoke", "--results", str(tmp_path / "results")]
    assert cli.main(asked) == 0
    assert cli.main([*asked, "--strict"]) == status


#: One of each layer that refuses: the study, the run's spec, the notebooks' parameters, the data. The rest is in
#: test_runs and test_bad_input.
BAD = [
    (["--study", "nonsense"], "unknown study 'nonsense'"),
    (["--study", "no/such.yaml"], "STUDY=no/such.yaml: there is no such file in"),
    (["--study", "smoke", "--only", "13"], "ONLY=13: the study has no such notebook (it has 00_learning_rates, 01_"),
    (
        ["--study", "smoke", "-p", "03.runs=2"],
        "-p 03.runs=2: a name and a value are needed, as -p 03.runs 2 (with a space",
    ),
    (["--study", "smoke", "-p", "dataset", "cifar100"], "unknown dataset 'cifar100'"),
    (["--study", "smoke", "-p", "learning_rate", "0.1"], "'learning_rate' (value 0.1"),
    (
        ["--study", "smoke", "-p", "dataset", "images", "-p", "data_dir", "nowhere"],
        "no folder nowhere: data set 'images' needs",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_gets_one_line_before_any_work(arguments, message, tmp_path, capsys):
    results = tmp_path / "results"
    assert cli.main(["reproduce", "--results", str(results), *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert "==" not in output.out
    assert not results.exists()


BOUNDS_OF_THE_RANGE_TEST = "-p 03.base_lr None -p 03.max_lr None"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-p 03.weight_decay 0.5", "weight_decay: 0.0, not 0.5"),
        ("-p clr_policy triangular2", "clr_policy='triangular2': .*headline holds runs of triangular"),
        ("-p 04.baseline square", "baseline='square': one of triangular, triangular2"),
        ("-p 04.reference Makefile", "reference=Makefile: a CSV with columns source"),
        ("-p 0.gamma 0.9", "-p 0.gamma 0.9: smoke has no notebook '0' .it has 00_learning_rates, 01_"),
        ("-p 01.gamma 2", "gamma=2.0: a decay"),
        # Another number of range tests would move the bounds.
        (f"{BOUNDS_OF_THE_RANGE_TEST} -p 03.runs 1", "runs=1: .* holds runs between the bounds of 2 range tests"),
        (f"{BOUNDS_OF_THE_RANGE_TEST} -p 03.runs 3", "runs=3: .* holds runs between the bounds of 2 range tests"),
    ],
)
def test_bad_input_leaves_finished_results_as_they_were(smoke, capsys, given, message):
    results, _ = smoke
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert cli.main(["reproduce", "--study", "smoke", "--results", str(results), *given.split()]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", [[], ["reproduce"], ["publish"], ["verify"], ["html"]])
def test_help_loads_nothing_that_takes_seconds(command):
    code = """
import sys
from modules.study.cli import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({"torch", "numpy", "pandas", "matplotlib", "papermill", "distributed"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("usage: python -m modules")
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.ci
def test_one_notebook_of_a_study_runs_alone(tmp_path, capsys):
    results = tmp_path / "with a space"
    assert cli.main(["reproduce", "--study", "smoke", "--results", str(results), "--only", "00"]) == 0
    assert [path.name for path in (results / "notebooks").glob("*.ipynb")] == ["00_learning_rates.ipynb"]


@pytest.mark.skipif(not shutil.which("make"), reason="make is needed")
@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (["RESULTS=results/my run"], ["reproduce", "--study", "digits", "--results", "results/my run"]),
        (["STUDY=my study.yaml", "ONLY=03"], ["reproduce", "--study", "my study.yaml", "--only", "03"]),
        (["best-lr", "PARAMS=-p epochs 5"], ["reproduce", "--study", "best-lr", "-p", "epochs", "5"]),
        (["verify", "RESULTS=a b/c"], ["verify", "--results", "a b/c"]),
    ],
)
def test_make_passes_on_what_it_is_given(given, asked):
    show = f"{sys.executable} -c 'import sys; print(sys.argv[3:])'"
    target = [] if given[0].islower() and "=" not in given[0] else ["reproduce"]
    command = ["make", "--silent", *target, *given, f"PYTHON={show}", "ENV="]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(asked)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("notebooks: {02_range_test: {datset: digits}}", "no parameter 'datset' (value 'digits', did you mean"),
        (
            "notebooks: {02_range_test: {pooling: caffe}}",
            "no parameter 'pooling' (value 'caffe'): it goes into `settings`",
        ),
        ("notebooks: {02_range_test: digits}", "parameters as `name: value` are needed, not 'digits'"),
        ("notebooks: {02_range: {}}", "there is no notebook '02_range'"),
        ("notebook: {}", "`notebooks:` with the parameters of each is needed"),
        ("notebooks: {}\nconclusion: {}", "'conclusion' is no part of a study, did you mean 'conclusions'?"),
        ("dataset: [\n", "is not valid YAML"),
        (
            "notebooks: {04_headline_figures: {quoted: smoke_headlin}}",
            "did you mean 'smoke_headline'",
        ),
    ],
)
def test_bad_files_of_studies_are_named(tmp_path, capsys, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    results = tmp_path / "results"
    assert cli.main(["reproduce", "--study", str(tmp_path / "mine.yaml"), "--results", str(results)]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1
    assert not results.exists()


@pytest.mark.ci
def test_publish_promotes_complete_results_and_their_figures(smoke, tmp_path, monkeypatch, capsys):
    results, _ = smoke
    monkeypatch.setattr(parameters, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(publishing, "IMAGES", tmp_path / "images")
    readme = tmp_path / "README.md"
    marker = "<!-- smoke/headline iterations fixed -->?<!-- end -->"
    readme.write_text(f"![Run](images/smoke/run.png) ![Ends](published/smoke/figures/policies.png) {marker}")
    (tmp_path / "other.md").write_text("![Another study's](published/not-smoke/figures/other.png)")
    monkeypatch.setattr(documents, "FOLDERS", (tmp_path,))
    mine, study = tmp_path / "results" / "smoke", tmp_path / "smoke.yaml"
    whole = yaml.safe_load((ROOT / "studies" / "smoke.yaml").read_text())
    kept = {name: values for name, values in whole["notebooks"].items() if "02" <= name < "06"}  # in half the time
    study.write_text(yaml.safe_dump(whole | {"notebooks": kept}))
    temporary = re.escape(str(tmp_path.parent).encode()) + rb"[\w/-]*"
    # What was run into an absolute folder names it, and must not be published.
    assert cli.main(["publish", "--study", "smoke", "--results", str(results)]) == 2
    assert "names a folder of this machine" in capsys.readouterr().err
    for path in results.rglob("*"):
        target = mine / path.relative_to(results)
        if path.is_file() and not path.name.startswith(".") and (path.suffix != ".ipynb" or path.stem in kept):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(re.sub(temporary, b"results/smoke", path.read_bytes()))
    assert cli.main(["publish", "--study", str(study), "--results", str(mine)]) == 0
    published = {path: path.read_bytes() for path in (tmp_path / "published").rglob("*") if path.is_file()}
    for experiment in experiments(mine):
        folder = tmp_path / "published" / "smoke" / experiment
        assert {path.name for path in folder.iterdir()} - {"searches.csv"} == {"runs.csv", "runs.jsonl"}
        loose, packed = (
            {run.name: run.read() for run in complete_runs(place)} for place in (mine / experiment, folder)
        )
        assert packed == loose
    assert [path.name for path in (tmp_path / "images" / "smoke").iterdir()] == ["run.png"]
    assert [path.name for path in (tmp_path / "published" / "smoke" / "figures").iterdir()] == ["policies.png"]
    for path in (mine / "notebooks").glob("*.ipynb"):
        concluded = nbformat.read(tmp_path / "published" / "smoke" / "notebooks" / path.name, 4).cells[-1].source
        assert ("trains 56 iterations" in concluded) == (path.stem == "04_headline_figures")
    assert readme.read_text().endswith("<!-- smoke/headline iterations fixed -->56<!-- end -->")
    assert not (tmp_path / "published" / "smoke" / "tables" / "comparison.csv").exists()

    def notebook(change):
        def damage(place):
            path = place / "notebooks" / "03_headline_experiment.ipynb"
            before = path.read_text()
            path.write_text(change(before))
            assert path.read_text() != before

        return damage

    more = tmp_path / "published" / "smoke" / "more"
    for number, (damage, message) in enumerate(
        (
            (lambda place: (place / "headline" / ".partial" / "x.pt").touch(), "x.pt is of an unfinished run"),
            (lambda place: (place / "notebooks" / "05_policies.ipynb").unlink(), "05_policies.ipynb is missing"),
            (lambda place: (place / "headline" / "fixed-seed2.csv").unlink(), "headline.csv is not of the runs beside"),
            (
                lambda place: (place / "range_test" / "range_test-seed2.csv").unlink(),
                "range_test_bounds.csv is not of the runs beside it: it counts 2 of range_test, there are 1",
            ),
            (lambda place: shutil.copytree(place / "mlp", more), "also holds more, which"),
            (
                lambda place: readme.write_text(f"![Nothing](images/smoke/nothing.png) {marker}"),
                "has no figures/nothing.png, which a document shows as images/smoke/nothing.png",
            ),
            (
                lambda place: readme.write_text(marker.replace("fixed", "square")),
                "has no row iterations square",
            ),
            (notebook(lambda text: json.dumps({"path": f"{ROOT}/data"})), "names a folder of this machine"),
            (lambda place: (place / "figures" / "odd.png").symlink_to("/etc/passwd"), "odd.png is a link, or no file"),
            (lambda place: (place / "figures" / "odd.png").symlink_to(tmp_path), "odd.png is a link, or no file"),
            (lambda place: os.mkfifo(place / "figures" / "odd.png"), "odd.png is a link, or no file"),
            (
                notebook(lambda text: text.replace('model = \\"', 'model = \\"theirs/net.py:network\\"  # \\"')),
                "was given a network in a Python file, 'theirs/net.py:network', which is run again: read",
            ),
            (notebook(lambda text: text.replace('model = \\"', 'modell = \\"')), "there is no parameter modell any"),
        )
    ):
        place = tmp_path / str(number) / "smoke"
        shutil.copytree(mine, place)
        (place / "headline" / ".partial").mkdir()
        damage(place)
        assert cli.main(["publish", "--study", str(study), "--results", str(place)]) == 2, message
        assert message in capsys.readouterr().err
        shutil.rmtree(more, ignore_errors=True)
        readme.write_text("")

    table = mine / "tables" / "headline.csv"
    numbers = table.read_text()

    def makes_the_same_table(name, plan, place, kernel):
        (place / "tables").mkdir(exist_ok=True)
        (place / "tables" / "headline.csv").write_text(numbers)

    # All notebooks have been run again above.
    monkeypatch.setattr(publishing, "execute", makes_the_same_table)
    monkeypatch.setattr(publishing, "one_kernel", nullcontext)
    table.write_text(numbers.replace("0.", "0.9", 1))
    assert cli.main(["publish", "--study", str(study), "--results", str(mine)]) == 2
    assert "headline.csv is not what its runs give" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "published").rglob("*") if path.is_file()} == published


@pytest.mark.parametrize("name", [".", "..", "results", "results/..", "results/.hidden", "results/published", "link"])
def test_publish_replaces_nothing_but_a_study_of_that_name(tmp_path, monkeypatch, capsys, name):
    """The folder that is replaced is one of its own, right in the published results, wherever the text leads."""
    published = tmp_path / "results" / "published"
    (published / "digits" / "notebooks").mkdir(parents=True)
    (published / "digits" / "notebooks" / "kept.txt").write_text("kept")
    for folder in ("notebooks", "results/notebooks", "results/.hidden/notebooks", "results/published/notebooks"):
        (tmp_path / folder).mkdir(exist_ok=True, parents=True)
    (published / "link").symlink_to(tmp_path)
    (tmp_path / "link" / "notebooks").mkdir(parents=True)
    monkeypatch.setattr(parameters, "PUBLISHED", published)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["publish", "--study", "smoke", "--results", f"{tmp_path}/{name}"]) == 2
    said = capsys.readouterr().err
    assert "is what is published, such as results/mine" in said or "name the results folder of one study" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_refusal_in_jupyter_is_one_line_and_nothing_runs_behind_it(tmp_path):
    asked = dict(gamma=2.0, results_dir=str(tmp_path))
    with pytest.raises(papermill.PapermillExecutionError):
        papermill.execute_notebook("notebooks/01_schedulers.ipynb", tmp_path / "out.ipynb", asked, progress_bar=False)
    cells = [cell for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells if cell.cell_type == "code"]
    errors = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert [error.traceback for error in errors] == [["RunError: gamma=2.0: a decay above 0 and not above 1 is needed"]]
    assert list(tmp_path.iterdir()) == [tmp_path / "out.ipynb"]


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("results/mine/notebooks", "[`notebooks/01_schedulers.ipynb`](../../../notebooks/01_schedulers.ipynb)"),
        ("/elsewhere/mine/notebooks", "executed copy of `notebooks/01_schedulers.ipynb`."),
    ],
)
def test_an_executed_copy_leads_to_its_source(folder, said):
    notebook = nbformat.read("notebooks/01_schedulers.ipynb", 4)
    notebooks.link_to_source(notebook, "01_schedulers", Path(folder))
    (copy,) = [cell.source for cell in notebook.cells if "copy" in cell.metadata.get("tags", [])]
    assert said in copy
    assert "elsewhere" not in copy


#: By place in the home folder, what would end the study, or change its figures, if it were read.
HOME = {
    ".config/matplotlib/matplotlibrc": "text.usetex: True\nfont.family: no-such-font\nfigure.dpi: 7\n",
    ".config/dask/mine.yaml": "distributed: {worker: {preload: [no_such_module]}, comm: {require-encryption: true}}",
    ".local/share/jupyter/kernels/python3/kernel.json": json.dumps(
        {"argv": ["/bin/false", "{connection_file}"], "display_name": "Mine", "language": "python"}
    ),
    ".ipython/profile_default/startup/00-mine.py": "import torch\ntorch.set_default_dtype(torch.float64)\n",
}


@pytest.mark.ci
def test_a_users_own_settings_change_nothing(smoke, tmp_path):
    """What they have set up for their own work stays outside: matplotlib, dask, Jupyter, IPython, PYTHONPATH."""
    name = "02_range_test"
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"notebooks": {name: parameters.read_study("smoke")["notebooks"][name]}})
    )
    for place, text in HOME.items():
        path = tmp_path / "home" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    other = tmp_path / "checkout" / "modules"  # another checkout that PYTHONPATH names
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('another checkout')", encoding="utf-8")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "JUPYTER", "IPYTHON"))}
    changed = {
        "HOME": str(tmp_path / "home"),
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
        "PYTHONSTARTUP": str(tmp_path / "home" / ".ipython/profile_default/startup/00-mine.py"),
        "PYTHONPATH": str(other.parent),
    }
    command = [sys.executable, "-m", "modules", "reproduce", "--study", str(tmp_path / "mine.yaml")]
    command += ["--results", str(tmp_path / "mine")]
    done = subprocess.run(command, cwd=ROOT, env=plain | changed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = [path for part in ("range_test/*.csv", "figures/*.png") for path in (tmp_path / "mine").glob(part)]
    assert len(files) == 5
    for path in files:
        assert path.read_bytes() == (smoke[0] / path.relative_to(tmp_path / "mine")).read_bytes(), path.name
