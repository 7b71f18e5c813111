"""README's code runs, its links lead somewhere, its numbers are those of the CSVs."""

import re
from pathlib import Path

import pandas as pd
import pytest

from modules.files import RunFiles
from modules.study import MARKED, PUBLISHED, readme_table

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_snippet_runs_and_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    found = re.search(r"base_lr (\S+), max_lr (\S+)\naccuracy (\S+)", capsys.readouterr().out)
    base_lr, max_lr, accuracy = map(float, found.groups())
    assert 1e-5 < base_lr < max_lr < 1
    assert accuracy > 0.75


def test_tables_are_those_of_the_published_results():
    marked = [found.groups() for found in MARKED.finditer(README)]
    assert {kind for _, kind, _, _, _ in marked} == {"headline", "bounds", "speed"}
    for _, kind, name, table, _ in marked:
        assert table.strip() == readme_table(kind, name)


def test_speed_is_quoted_with_its_date_and_machine():
    about = pd.read_csv(ROOT / PUBLISHED / "benchmarks" / "throughput.csv").iloc[0]
    assert f"{about.date}, two cores of {about.processor.split(',')[0]}, torch {about.torch}" in " ".join(
        README.split()
    )


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_published_runs_are_as_they_were_written():
    tables = list((ROOT / PUBLISHED).glob("*/*/*-seed*.csv"))
    assert tables
    for path in tables:
        RunFiles(path.parent, path.stem).read()
