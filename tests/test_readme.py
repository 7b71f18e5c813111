"""README's code runs, its links lead somewhere, its numbers are those of the CSVs."""

import re
from pathlib import Path

import pandas as pd
import pytest
from toys import make_images

from modules.runs.files import RunFiles
from modules.study import documents, parameters
from modules.study.parameters import PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_snippets_run_and_learn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code, "README.md", "exec"), names)
    assert len(names["lr"]) == len(names["acc"]) == len(names["loader"])
    pattern = r"base_lr (\S+), max_lr (\S+)\nlowest training loss at (\S+)\naccuracy (\S+)"
    base_lr, max_lr, least, accuracy = map(float, re.search(pattern, capsys.readouterr().out).groups())
    assert 1e-5 < base_lr < max_lr < 1
    assert max_lr < least < 10
    assert accuracy > 0.75


def test_the_command_for_your_images_is_accepted(tmp_path):
    """And asks for the bounds of their own range test, and for nobody's numbers beside theirs."""
    images = make_images(tmp_path / "images", count=60, size=32)
    command = re.search(r'STUDY=cifar10 RESULTS=results/mine \\\n\s+PARAMS="(.*)"', README)[1]
    overrides = dict(re.findall(r"-p (\S+) (\S+)", command))
    plan = parameters.parameters("cifar10", tmp_path / "results", {**overrides, "data_dir": str(images)})
    parameters.check(plan)
    asked = plan["03_headline_experiment"]
    assert (asked["dataset"], asked["base_lr"], asked["max_lr"]) == ("images", None, None)
    assert plan["04_headline_figures"]["reference"] is None


def test_numbers_are_those_of_the_published_results():
    assert {found[2] for found in documents.WHOLE.finditer(README)} >= {"headline", "range_test_bounds", "speed"}
    for path in documents.DOCUMENTS:
        text = (ROOT / path).read_text()
        marked = len(documents.WHOLE.findall(text)) + len(documents.SINGLE.findall(text))
        assert marked == text.count("<!-- end -->") > 0
        assert documents.filled(text) == text
    assert documents.updated() == {path: (ROOT / path).read_text() for path in documents.DOCUMENTS}


def test_a_wrong_number_is_noticed_and_put_right():
    text = "about <!-- digits/headline iterations fixed -->9<!-- end --> iterations"
    assert documents.filled(text) == text.replace(">9<", ">1,400<")
    with pytest.raises(documents.DocumentError, match="headline.csv has no row iterations square"):
        documents.filled(text.replace("fixed", "square"))


def test_speed_is_quoted_with_its_date_and_machine():
    about = pd.read_csv(ROOT / PUBLISHED / "benchmarks" / "throughput.csv").iloc[0]
    assert f"{about.date}, two cores of {about.processor.split(',')[0]}, torch {about.torch}" in " ".join(
        README.split()
    )
    assert f"This table is of revision {about.revision[:7]}," in README


def test_cost_of_the_machinery_is_that_of_the_benchmark():
    folder = ROOT / PUBLISHED / "benchmarks"
    most, two = pd.read_csv(folder / "scale.csv").iloc[-1], pd.read_csv(folder / "workers.csv").iloc[-1]
    assert (most.runs, two.workers) == (10_000, 2)
    text = " ".join(README.split())
    assert f"two workers costs {two.seconds - two.training_seconds:.0f} seconds a notebook" in text
    assert f"10,000 trivial runs {1000 * most.seconds_a_run:.0f} milliseconds" in text
    assert f"{most.client_mib:.0f} MiB in the client" in text
    measured = pd.read_csv(folder / "throughput.csv").set_index(["variant", "network"])
    quick, full, mlp = (
        100 * (measured.over_bare_step["the study's runs, float32", name] - 1)
        for name in ("cifar10_quick", "cifar10_full", "mlp")
    )
    assert f"add {quick:.0f} % for `cifar10_quick`, {full:.0f} % for `cifar10_full` and {mlp:.0f} % for the MLP" in text
    assert f"whole step takes {measured.ms['bare step, float32, one process a core', 'mlp']:.0f} milliseconds" in text


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_links_between_published_notebooks_lead_somewhere():
    links = [
        (path, target)
        for path in (ROOT / PUBLISHED).glob("*/notebooks/*.ipynb")
        for target in re.findall(r"\]\(([\w./-]+\.ipynb)\)", path.read_text())
    ]
    assert links
    assert [(path.parts[-3], path.stem, target) for path, target in links if not (path.parent / target).exists()] == []


def test_published_runs_are_as_they_were_written():
    tables = list((ROOT / PUBLISHED).glob("*/*/*-seed*.csv"))
    assert tables
    for path in tables:
        RunFiles(path.parent, path.stem).read()
