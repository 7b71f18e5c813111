"""README's code runs, its links lead somewhere, its numbers are those of the CSVs."""

import json
import re
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toys import make_images

from modules import analysis, documents, parameters
from modules.files import RunFiles
from modules.formatting import show
from modules.headline import crossing
from modules.parameters import PUBLISHED
from modules.range_test import best_rate, suggest_bounds

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_snippets_run_and_learn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code, "README.md", "exec"), names)
    assert len(names["lr"]) == len(names["acc"]) == len(names["loader"])
    pattern = r"base_lr (\S+), max_lr (\S+)\nleast training loss at (\S+)\naccuracy (\S+)"
    base_lr, max_lr, least, accuracy = map(float, re.search(pattern, capsys.readouterr().out).groups())
    assert 1e-5 < base_lr < max_lr < 1
    assert max_lr < least < 10
    assert accuracy > 0.75


def test_the_command_for_your_images_is_accepted(tmp_path):
    """And asks for the bounds of their own range test, and for nobody's numbers beside theirs."""
    images = make_images(tmp_path / "images", count=60, size=32)
    command = re.search(r'STUDY=cifar10 RESULTS=results/mine \\\n\s+PARAMS="(.*)"', README)[1]
    overrides = {name: parameters.value(text) for name, text in re.findall(r"-p (\S+) (\S+)", command)}
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


def test_numbers_in_the_prose_on_cifar10():
    text = " ".join(README.split())
    runs = analysis.read_runs(ROOT / PUBLISHED / "cifar10-jpeg" / "headline")
    clr = analysis.curves(runs, "triangular")
    for iteration, where in ((20_000, "at 20,000 iterations"), (32_000, "at 32,000, its highest mean")):
        found = analysis.interval_of_mean(clr.loc[iteration], 0, 1)
        assert f"{show('accuracy', found['value'], found['t_low'], found['t_high'])} {where}" in text
    assert clr.mean(axis=1).idxmax() == 32_000

    fixed, mean = analysis.curves(runs, "fixed"), clr.mean(axis=1)
    best = fixed.mean(axis=1).max()
    assert f"{100 * (mean[20_000] - best):.2f} points above" in text
    assert f"after 24,000 iterations, is {100 * (mean[24_000] - best):.1f} points above" in text
    for iteration, says in ((20_000, "the difference is {}"), (32_000, "is {} above the end of *fixed*")):
        lead = analysis.interval_of_mean(clr.loc[iteration] - fixed.iloc[-1], -1, 1)
        assert says.format(show("difference", lead["value"], lead["t_low"], lead["t_high"])) in text
    draws = [list(draw) for draw in product(range(5), repeat=5)]
    reached = [clr.iloc[:, d].mean(axis=1) >= fixed.iloc[:, d].mean(axis=1).max() - 1e-9 for d in draws]
    first = pd.Series([where.idxmax() for where in reached]).value_counts(normalize=True)
    assert set(first.index) == {20_000, 24_000}
    assert f"{100 * first[20_000]:.0f} % of the resamples cross at the first" in text
    for iteration in (60_000, 61_000):
        found = analysis.interval_of_mean(fixed.loc[iteration], 0, 1)
        assert f"{show('accuracy', found['value'], found['t_low'], found['t_high'])} at {iteration:,}" in text


def test_numbers_in_the_prose_on_fashion_mnist():
    text = " ".join(README.split())
    runs, controls = (
        analysis.read_runs(ROOT / PUBLISHED / "fashion-mnist" / part) for part in ("headline", "policies")
    )
    fixed, clr = (analysis.curves(runs, policy) for policy in ("fixed", "triangular"))
    for challenger in (clr, analysis.curves(controls, "triangular"), analysis.curves(controls, "mean_rate")):
        found = crossing(fixed, challenger)
        says = show("crossing_iteration", found.iteration, found.low, found.high)
        assert f"when CLR does, after {says.replace(' [', ' iterations [')}" in text
    assert f"CLR needs {14_000 / found.iteration:.2f} times fewer iterations" in text
    low, high = 100 * fixed.mean(axis=1)[400], 100 * clr.mean(axis=1)[400]
    assert f"after 400 iterations ({low:.0f} %, where CLR has {high:.0f} %)" in text
    found = analysis.interval_of_mean(fixed.loc[12_000], 0, 1)
    assert f"{show('accuracy', found['value'], found['t_low'], found['t_high'])} after 12,000, just" in text
    for control, says in (("mean_rate", "cycle CLR is {} above"), ("mean_rate_cut", "against them CLR is {}, below")):
        lead = analysis.final_difference(controls, "triangular", control)
        assert says.format(show("difference", lead["value"], lead["t_low"], lead["t_high"])) in text
    cycle, constant, cut = (
        analysis.curves(controls, policy) for policy in ("triangular", "mean_rate", "mean_rate_cut")
    )
    assert (cycle.iloc[-1] < cut.iloc[-1]).tolist() == [True] * 5
    ends = cycle.index % 800 == 0
    assert (ends.sum(), len(cycle)) == (8, 32)
    for where, says in ((ends, "over its eight cycle ends {},"), (ends | True, "over all 32 evaluations {}:")):
        lead = analysis.interval_of_mean((cycle - constant)[where].mean(), -1, 1)
        assert says.format(show("difference", lead["value"], lead["t_low"], lead["t_high"])) in text
    record = json.loads((ROOT / PUBLISHED / "fashion-mnist/headline/triangular-seed1.json").read_text())
    policy = record["spec"]["policy"]
    assert f"upper bound is {policy['max_lr'] / policy['base_lr']:.1f} times its lower one" in text


def test_the_end_of_a_cycle_in_the_ledger():
    clr = analysis.curves(analysis.read_runs(ROOT / PUBLISHED / "cifar10-jpeg" / "headline"), "triangular")
    lead = analysis.interval_of_mean(clr.loc[32_000] - clr.loc[35_000], -1, 1)
    says = show("difference", lead["value"], lead["t_low"], lead["t_high"])
    assert f"less that in mid-cycle (35,000): {says} |" in (ROOT / PUBLISHED / "README.md").read_text()


def test_what_the_range_tests_cost():
    text = " ".join(README.split())
    cost = {}
    for study, length in (("cifar10-jpeg", 70_000), ("fashion-mnist", 14_000)):
        tables = ROOT / PUBLISHED / study / "tables"
        rows = pd.read_csv(tables / "headline.csv").set_index(["quantity", "policy"]).value
        crossing_at = rows["crossing_iteration", "triangular"]
        test = json.loads((ROOT / PUBLISHED / study / "range_test/range_test-seed1.json").read_text())["iterations"]
        cost[study] = [length / (crossing_at + count * test) for count in (1, 5)]
        if study == "cifar10-jpeg":
            took = rows["best_mean_iteration", "fixed"] / crossing_at
            assert f"({took:.2f} times fewer than it took to get there)" in text
    assert f"With one of 4,000 iterations the factor would be {cost['cifar10-jpeg'][0]:.1f} here" in text
    assert "it would be {:.1f} with one of 800, and {:.1f} with the five".format(*cost["fashion-mnist"]) in text


def test_what_a_learning_rate_for_cifar10_took():
    text = " ".join(README.split())
    folder = ROOT / PUBLISHED / "cifar10-jpeg"
    cycle, sweep = (
        json.loads((folder / name).read_text())
        for name in ("best_lr/cycle-seed1.json", "best_lr_sweep/sweep-seed1.json")
    )
    assert (cycle["spec"]["batch_size"], cycle["iterations"]) == (128, 20 * 390)
    assert (sweep["spec"]["batch_size"], sweep["iterations"]) == (128, 400)
    assert round(cycle["seconds"] / 3600) == 4
    assert round(sweep["seconds"] / 60) == 11
    assert "20 epochs took four hours, and a sweep of 400 batches of 128 eleven minutes" in text


def test_single_range_tests():
    runs = analysis.read_runs(ROOT / PUBLISHED / "cifar10-jpeg" / "range_test")
    top = [suggest_bounds(run.lr, run.val_acc).max_lr for _, run in runs.groupby("seed")]
    assert f"single ones put `max_lr` between {min(top):.4f} and {max(top):.4f}" in " ".join(README.split())


def test_numbers_in_the_prose_on_mnist():
    text = " ".join(README.split())
    rates = pd.concat([run.assign(file=path) for path, run in _runs("mnist/best_lr_sweep")])
    single = [best_rate(run.lr, run.train_loss, window=1).lr for _, run in rates.groupby("file")]
    assert f"Single sweeps gave {min(single):.3f} to {max(single):.3f}: trust one to a factor of two" in text
    assert max(single) / min(single) == pytest.approx(2, abs=0.01)
    assert all(run.val_acc[3] > 0.99 for _, run in _runs("mnist/best_lr"))
    assert "Every run passed 99 % after the first cycle" in text


def test_the_mean_rates_of_the_cycles():
    text = " ".join(README.split())
    for study, times, says in (
        ("digits", 17, "CLR's mean rate is seventeen times 0.001"),
        ("cifar10-jpeg", 6, "CLR's mean rate is six times as large"),
        ("fashion-mnist", 9, "nine times that of *fixed*"),
    ):
        record = json.loads((ROOT / PUBLISHED / study / "headline/triangular-seed1.json").read_text())
        policy = record["spec"]["policy"]
        assert round((policy["base_lr"] + policy["max_lr"]) / 2 / 0.001) == times
        assert says in text


def test_bounds_of_a_line_of_three_pieces():
    """What README and notebook 2 say the intervals leave out."""
    runs = analysis.read_runs(ROOT / PUBLISHED / "cifar10-jpeg" / "range_test")
    curve = runs.groupby("iteration").agg(lr=("lr", "first"), accuracy=("val_acc", "mean"))
    lr, last = curve.lr.to_numpy(), len(curve) - 1
    fits = []
    for first, second in combinations(range(len(lr)), 2):
        if min(second - first, last - second) >= 2:
            hinges = [np.ones_like(lr), np.maximum(0, lr - lr[first]), np.maximum(0, lr - lr[second])]
            weights, left_over, *_ = np.linalg.lstsq(np.stack(hinges, 1), curve.accuracy, rcond=None)
            if weights[1] > 0 and weights[2] <= -0.5 * weights[1]:
                fits.append((left_over.item(), lr[second]))
    assert f"a line of three pieces instead of four puts `max_lr` at {min(fits)[1]:.4f}" in " ".join(README.split())


def test_bounds_beside_the_rule_of_thumb():
    text = (ROOT / "notebooks" / "02_range_test.ipynb").read_text()
    for study, says in (
        ("cifar10-jpeg", "passes it with {:.2f}"),
        ("fashion-mnist", "does not with {:.2f}"),
        ("digits", "do digits with {:.2f}"),
    ):
        bounds = pd.read_csv(ROOT / PUBLISHED / study / "tables" / "range_test_bounds.csv").set_index("bound").value
        assert says.format(bounds.base_lr / bounds.max_lr) in text
        curve = pd.read_csv(ROOT / PUBLISHED / study / "tables" / "range_test_curve.csv")
        assert curve["mean"].idxmax() >= len(curve) - 3


def test_the_weak_baseline_on_digits():
    at_cut = [
        run.set_index("iteration").val_acc[1190] for path, run in _runs("digits/headline") if "fixed" in path.name
    ]
    assert f"one run of five has {100 * min(at_cut):.0f} % when its rate is cut at 1,200" in " ".join(README.split())


def test_coverage_of_the_bootstrap_of_five_runs():
    everything = np.array(list(product(range(5), repeat=5)))
    samples = np.random.default_rng(0).normal(size=(2000, 5))
    ends = [np.quantile(sample[everything].mean(axis=1), (0.025, 0.975)) for sample in samples]
    covered = np.mean([low <= 0 <= high for low, high in ends])
    assert f"they cover about {100 * covered:.0f} %" in " ".join(README.split())


def _runs(experiment):
    """Path and rows of an experiment's published runs."""
    return [(path, pd.read_csv(path)) for path in sorted((ROOT / PUBLISHED / experiment).glob("*-seed*.csv"))]


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
