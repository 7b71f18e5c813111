"""The bfloat16 benchmark, on runs of a second: pairs that differ in nothing but the precision."""

import json
import runpy
import sys

import pandas as pd
import pytest
from toys import FIXED, ROOT, small

from modules.runs.training import train

SCRIPT = ROOT / "benchmarks" / "precision.py"


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """A function that runs the script beside a headline of three short runs."""
    for seed in (1, 2, 3):
        train(small(FIXED, seed), tmp_path / "headline")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["precision.py", "--results", str(tmp_path), "--policy", *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_pairs_differ_in_precision_only(benchmark, tmp_path, capsys):
    benchmark("fixed", "--iterations", "12")
    assert "final_accuracy_difference bfloat16 - float32    3" in capsys.readouterr().out
    settings = [
        json.loads((tmp_path / folder / f"{name}-seed2.json").read_text())["spec"]
        for folder, name in (("headline", "fixed"), ("bfloat16", "bfloat16"))
    ]
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} == {
        "variant",
        "precision",
        "iterations",
    }
    table = pd.read_csv(tmp_path / "tables" / "bfloat16.csv").set_index(["quantity", "policy"]).value
    for policy, folder, name in (("float32", "headline", "fixed"), ("bfloat16", "bfloat16", "bfloat16")):
        ends = [pd.read_csv(tmp_path / folder / f"{name}-seed{k}.csv").val_acc[1] for k in (1, 2, 3)]
        assert table["final_accuracy", policy] == pytest.approx(sum(ends) / 3)
    difference = table["final_accuracy", "bfloat16"] - table["final_accuracy", "float32"]
    assert table["final_accuracy_difference", "bfloat16 - float32"] == pytest.approx(difference)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fixed", "--iterations", "10"], "iterations=10: a multiple of 6 up to 24"),
        (["fixed", "--iterations", "30"], "iterations=30: a multiple of 6 up to 24"),
        (["triangular"], "headline has no complete run of triangular"),
    ],
)
def test_what_cannot_be_paired_is_refused(benchmark, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        benchmark(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bfloat16").exists()
