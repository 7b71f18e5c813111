"""README's code runs, its links lead somewhere, its numbers are those of the CSVs."""

import re
from pathlib import Path

import pytest

from modules.files import RunFiles
from modules.study import PUBLISHED, readme_table

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
    marked = re.findall(r"<!-- (headline|bounds):([\w-]+) -->\n(.*?)\n?<!-- end -->", README, re.DOTALL)
    assert {kind for kind, _, _ in marked} == {"headline", "bounds"}
    for kind, name, table in marked:
        assert table == readme_table(kind, name)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_published_runs_are_as_they_were_written():
    tables = list((ROOT / PUBLISHED).glob("*/*/*-seed*.csv"))
    assert tables
    for path in tables:
        RunFiles(path.parent, path.stem).read()
