"""A policy that ends in numbers that are none: rows kept, flagged, and said in tables and figures."""

import json
import re

import pandas as pd
import pytest
from run_small import EVERY, LENGTH, NETWORK
from small_study import HEADLINE

from modules.runs.spec import spec
from modules.runs.training import train


@pytest.mark.ci
def test_diverged_runs_are_in_tables_and_figures_as_what_they_are(study, tally, tmp_path):
    wild = dict(clr_policy="exp_range_both", gamma=1.3)
    small = study(
        notebooks={"03_headline_experiment": HEADLINE | wild, "04_headline_figures": {"challenger": "exp_range_both"}}
    )
    status, output = small.run()
    assert status == 0, output
    assert "diverged runs: 2" in output
    assert len(re.findall(r"exp_range_both-seed\d: .* iterations, diverged$", output, re.MULTILINE)) == 2
    expected = {}
    for seed in (1, 2):
        policy = dict(name="exp_range_both", base_lr=0.0025, max_lr=0.01, step_size=LENGTH // 4, gamma=1.3)
        settings = dict(dataset="digits", evaluate_every=EVERY, iterations=LENGTH // 2, **NETWORK)
        path = train(spec(policy=policy, seed=seed, **settings), tmp_path)
        expected[path.stem] = path.read_bytes()
        record = json.loads((small.results / "headline" / f"{path.stem}.json").read_text())
        assert record["diverged"] is True
        assert 1 <= expected[path.stem].count(b"\n") - 1 < LENGTH // 2 // EVERY
    table = pd.read_csv(small.results / "tables" / "headline.csv").set_index(["quantity", "policy"])
    assert table.loc[("final_accuracy", "exp_range_both"), "diverged"] == 2
    assert pd.isna(table.loc[("final_accuracy", "exp_range_both"), "value"])
    assert table.loc[("final_accuracy", "fixed"), "value"] > 0.5
    assert (small.results / "figures" / "run.png").stat().st_size > 10_000
    found = {name: content for name, content in small.csvs("headline").items() if name in expected}
    tally("divergence to infinity", 2, found, expected)
