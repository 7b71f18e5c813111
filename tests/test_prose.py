"""The numbers in the prose of README, the ledger and notebook 2 follow from the published runs."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from prose import FOLDER, LEDGER, README, ROOT, accuracy, conclusion, curves, points, record, runs_of

from modules.range_test import best_rate, suggest_bounds
from modules.report import tables
from modules.report.crossing import crossing
from modules.report.formatting import show

DRAWS = np.array(list(product(range(5), repeat=5)))  # every bootstrap sample of five runs


def test_the_headline_on_cifar10():
    fixed, clr = curves("cifar10-jpeg/headline", "fixed", "triangular")
    assert f"{accuracy(clr.loc[20_000])} at 20,000 iterations" in README
    assert f"{accuracy(clr.loc[32_000])} at 32,000, its highest mean" in README
    mean, best = clr.mean(axis=1), fixed.mean(axis=1).max()
    assert mean.idxmax() == 32_000
    assert f"{100 * (mean[20_000] - best):.2f} points above" in README
    assert f"after 24,000 iterations, is {100 * (mean[24_000] - best):.1f} points above" in README
    assert f"the difference is {points(clr.loc[20_000] - fixed.iloc[-1])}" in README
    assert f"is {points(clr.loc[32_000] - fixed.iloc[-1])} above the end of *fixed*" in README
    assert f"{accuracy(fixed.loc[61_000])} at 61,000" in README
    before = fixed.loc[57_000:60_000]
    assert len(before) == 4
    assert f"{points(fixed.loc[61_000] - before.mean())} above its four evaluations before it" in README


def test_the_crossing_on_cifar10():
    fixed, clr = curves("cifar10-jpeg/headline", "fixed", "triangular")
    means, challengers = fixed.to_numpy()[:, DRAWS].mean(axis=2), clr.to_numpy()[:, DRAWS].mean(axis=2)
    best = means.max(axis=0)

    def first(targets):
        return clr.index.to_numpy()[(challengers >= targets - 1e-9).argmax(axis=0)]

    paired, apart = first(best), np.concatenate([first(target) for target in best])
    assert set(paired) == {20_000, 24_000}
    assert f"{100 * np.mean(paired == 20_000):.0f} % of the resamples cross at the first" in README
    assert f"{100 * np.mean(apart == 16_000):.0f} % cross after 16,000 already" in README
    low, high = np.quantile(70_000 / apart, (0.025, 0.975), method="inverted_cdf")
    assert f"the factor's interval is [{low:.2f}, {high:.2f}]" in README
    took = fixed.index.to_numpy()[means.argmax(axis=0)] / paired
    low, high = np.quantile(took, (0.025, 0.975), method="inverted_cdf")
    at = fixed.mean(axis=1).idxmax()
    factor = at / crossing(fixed, clr).iteration
    assert f"has its best mean accuracy at {at:,}; CLR" in README
    assert f"and of {factor:.2f} [{low:.2f}, {high:.2f}] against those {at:,}" in README


def test_others_runs_on_cifar10():
    theirs = pd.read_csv(ROOT / "studies/references/coxy1989_clr_headline.csv")
    theirs = theirs.groupby(["policy", "iteration"]).val_acc.mean()
    fixed, clr, best = theirs["fixed", 70_000], theirs["triangular", 20_000], theirs["triangular", 32_000]
    says = f"{100 * fixed:.1f} % for *fixed*, for CLR {100 * clr:.1f} % at 20,000 and {100 * best:.1f} % at 32,000"
    assert says in README
    ours = [curve.mean(axis=1) for curve in curves("cifar10-jpeg/headline", "fixed", "triangular")]
    gaps = 100 * (fixed - ours[0][70_000]), 100 * (clr - ours[1][20_000]), 100 * (best - ours[1][32_000])
    assert f"stay {min(gaps):.1f} to {max(gaps):.1f} points below coxy1989/clr's at the same iteration" in README
    claimed = 76 - 100 * ours[0][70_000], 76 - 100 * ours[1][20_000]
    for ours_below, theirs_below in zip(claimed, gaps, strict=False):
        assert f"lower by {ours_below:.1f} points (by {theirs_below:.1f} than" in LEDGER


def test_what_bfloat16_loses_at_most():
    rows = pd.read_csv(FOLDER / "cifar10-jpeg" / "tables" / "bfloat16.csv").set_index("quantity")
    assert f"bfloat16 loses no more than {-100 * rows.t_low['final_accuracy_difference']:.2f} points" in README


def test_the_end_of_a_cycle_in_the_ledger():
    (clr,) = curves("cifar10-jpeg/headline", "triangular")
    assert f"less that in mid-cycle (35,000): {points(clr.loc[32_000] - clr.loc[35_000])};" in LEDGER
    ends = range(4_000, 32_001, 4_000)
    lead = sum(clr.loc[end] - (clr.loc[end - 1000] + clr.loc[end + 1000]) / 2 for end in ends) / 8
    assert f"at all eight ends less the mean of 1,000 iterations before and after: {points(lead)} |" in LEDGER


def test_numbers_in_the_prose_on_fashion_mnist():
    fixed, clr = curves("fashion-mnist/headline", "fixed", "triangular")
    cycle, constant, cut = curves("fashion-mnist/policies", "triangular", "mean_rate", "mean_rate_cut")
    for challenger in (clr, cycle, constant):
        found = crossing(fixed, challenger)
        says = show("crossing_iteration", found.iteration, found.low, found.high)
        assert f"when CLR does, after {says.replace(' [', ' iterations [')}" in README
    assert f"CLR needs {14_000 / found.iteration:.2f} times fewer iterations" in README
    low, high = 100 * fixed.mean(axis=1)[400], 100 * clr.mean(axis=1)[400]
    assert f"after 400 iterations ({low:.0f} %, where CLR has {high:.0f} %)" in README
    assert f"{accuracy(fixed.loc[12_000])} after 12,000, just" in README
    assert f"cycle CLR is {points(cycle.iloc[-1] - constant.iloc[-1])} above" in README
    assert f"against them CLR is {points(cycle.iloc[-1] - cut.iloc[-1])}, below" in README
    assert (cycle.iloc[-1] < cut.iloc[-1]).all()
    ends = cycle.index % 800 == 0
    assert (ends.sum(), len(cycle)) == (8, 32)
    assert f"over its eight cycle ends {points((cycle - constant)[ends].mean())}," in README
    assert f"over all 32 evaluations {points((cycle - constant).mean())}:" in README
    policy = record("fashion-mnist/headline/triangular-seed1.json")["spec"]["policy"]
    assert f"upper bound is {policy['max_lr'] / policy['base_lr']:.1f} times its lower one" in README


def test_what_the_cycle_adds_in_short():
    cycle, constant = curves("fashion-mnist/policies", "triangular", "mean_rate")
    end, average = 100 * (cycle - constant).iloc[-1].mean(), 100 * (cycle - constant).mean(axis=None)
    assert f"{end:+.2f} points at the end of the last cycle, {average:+.2f} on average over the run" in README
    small, of_small = curves("mnist/mlp", "clr_small_batch", "mean_small_batch")
    assert f"beside its own mean rate: {100 * (small - of_small).iloc[-1].mean():+.2f} points" in README


def test_what_the_range_tests_cost():
    cost = {}
    for study in ("digits", "cifar10-jpeg", "fashion-mnist"):
        rows = pd.read_csv(FOLDER / study / "tables" / "headline.csv").set_index(["quantity", "policy"]).value
        test = record(f"{study}/range_test/range_test-seed1.json")["iterations"]
        length, crosses = rows["iterations", "fixed"], rows["crossing_iteration", "triangular"]
        cost[study] = [length / (crosses + count * test) for count in (1, 5)]
    assert "With one it would be {:.1f}, with five {:.2f}: slower".format(*cost["digits"]) in README
    assert f"With one of 4,000 iterations the factor would be {cost['cifar10-jpeg'][0]:.1f} here" in README
    assert f"with five {cost['cifar10-jpeg'][1]:.2f}. On" in README
    assert "it would be {:.1f} with one of 800, and {:.1f} with the five".format(*cost["fashion-mnist"]) in README


def test_what_a_learning_rate_for_cifar10_took():
    cycle = record("cifar10-jpeg/best_lr/cycle-seed1.json")
    sweep = record("cifar10-jpeg/best_lr_sweep/sweep-seed1.json")
    assert (cycle["spec"]["batch_size"], cycle["iterations"]) == (128, 20 * 390)
    assert (sweep["spec"]["batch_size"], sweep["iterations"]) == (128, 400)
    assert (round(cycle["seconds"] / 3600), round(sweep["seconds"] / 60)) == (4, 11)
    assert "20 epochs took four hours, and a sweep of 400 batches of 128 eleven minutes" in README


def test_the_flat_loss_of_that_sweep():
    ((_, sweep),) = runs_of("cifar10-jpeg/best_lr_sweep")
    smoothed = best_rate(sweep.lr, sweep.train_loss).smoothed
    flat = sweep.lr[np.asarray(smoothed) < np.nanmin(smoothed) + 0.05]
    assert f"hardly differs between {flat.min():.2f} and {flat.max():.2f}," in README


def test_single_range_tests():
    runs = tables.read_runs(FOLDER / "cifar10-jpeg" / "range_test")
    top = [suggest_bounds(run.lr, run.val_acc).max_lr for _, run in runs.groupby("seed")]
    assert f"single ones put `max_lr` between {min(top):.4f} and {max(top):.4f}" in README


def test_the_rule_on_someone_elses_curve():
    theirs = pd.read_csv(ROOT / "studies/references/coxy1989_clr_range_test.csv")
    bounds = suggest_bounds(theirs.lr, theirs.val_acc)
    for text in (README, LEDGER):
        assert f"it gives {bounds.base_lr:.4f} and {bounds.max_lr:.4f}" in text


def test_bounds_of_a_line_of_three_pieces():
    """What README and the study's conclusion say the intervals leave out."""
    runs = tables.read_runs(FOLDER / "cifar10-jpeg" / "range_test")
    curve = runs.groupby("iteration").agg(lr=("lr", "first"), accuracy=("val_acc", "mean"))
    lr, last = curve.lr.to_numpy(), len(curve) - 1
    fits = []
    for first, second in combinations(range(len(lr)), 2):
        if min(second - first, last - second) >= 2:
            hinges = [np.ones_like(lr), np.maximum(0, lr - lr[first]), np.maximum(0, lr - lr[second])]
            weights, left_over, *_ = np.linalg.lstsq(np.stack(hinges, 1), curve.accuracy, rcond=None)
            if weights[1] > 0 and weights[2] <= -0.5 * weights[1]:
                fits.append((left_over.item(), lr[first], lr[second]))
    _, base_lr, max_lr = min(fits)
    assert base_lr == lr[0]
    says = f"three segments instead of four put `base_lr` at {base_lr:.4f}, the first rate measured, and `max_lr` at"
    assert f"{says} {max_lr:.4f}," in README
    concluded = conclusion("cifar10", "02_range_test")
    assert f"three segments instead of four, on CIFAR-10 (JPEG copy), put `max_lr` at {max_lr:.4f}" in concluded
    bounds = pd.read_csv(FOLDER / "cifar10-jpeg" / "tables" / "range_test_bounds.csv").set_index("bound")
    others = {"base_lr": base_lr, "max_lr": max_lr}
    factors = [end / row.value for name, row in bounds.iterrows() for end in (row.low, row.high, others[name])]
    assert f"uncertain by a factor of up to {max(*factors, *(1 / factor for factor in factors)):.1f}." in concluded


def test_bounds_beside_the_rule_of_thumb():
    for study, says in (
        ("cifar10-jpeg", "passes the rule of thumb with {:.2f}"),
        ("fashion-mnist", "does not pass the rule of thumb, with {:.2f}"),
        ("digits", "do not pass the rule of thumb, with {:.2f}"),
    ):
        text = conclusion(study.removesuffix("-jpeg"), "02_range_test")
        bounds = pd.read_csv(FOLDER / study / "tables" / "range_test_bounds.csv").set_index("bound").value
        assert says.format(bounds.base_lr / bounds.max_lr) in text
        curve = pd.read_csv(FOLDER / study / "tables" / "range_test_curve.csv")
        assert curve["mean"].idxmax() >= len(curve) - 3


def test_numbers_in_the_prose_on_mnist():
    rates = pd.concat([run.assign(file=path) for path, run in runs_of("mnist/best_lr_sweep")])
    single = [best_rate(run.lr, run.train_loss, window=1).lr for _, run in rates.groupby("file")]
    assert f"Single sweeps gave {min(single):.3f} to {max(single):.3f}: trust one to a factor of two" in README
    assert max(single) / min(single) == pytest.approx(2, abs=0.01)
    assert all(run.val_acc[3] > 0.99 for _, run in runs_of("mnist/best_lr"))
    assert "Every run passed 99 % after the first cycle" in README
    records = [record(f"mnist/best_lr_sweep/sweep-seed{seed}.json") for seed in range(1, 6)]
    epochs = [record["iterations"] * record["spec"]["batch_size"] / 60_000 for record in records]
    assert f"A sweep lasts up to {max(epochs):.1f} epochs, the five together {sum(epochs):.1f}." in README
    assert f"a sweep costs up to {max(epochs):.1f} epochs more" in LEDGER
    assert 4 + max(epochs) < 10 < 8 + max(epochs)


def test_the_cycle_of_the_small_network_near_its_end():
    cycle, constant = curves("mnist/mlp", "clr_small_batch", "mean_small_batch")
    step_size = record("mnist/mlp/clr_small_batch-seed1.json")["spec"]["policy"]["step_size"]
    assert cycle.index[-1] // (2 * step_size) * 2 * step_size - 200 == 7_800
    assert f"cycle ends the difference is {points((cycle - constant).loc[7_800])})" in README
    spread = pd.concat([cycle.iloc[-1], constant.iloc[-1]], axis=1).std()
    assert spread.max() < 0.003  # so the sentence on plateaus is not of these


def test_the_mean_rates_of_the_cycles():
    for study, times, says in (
        ("digits", 17, "CLR's mean rate is seventeen times 0.001"),
        ("cifar10-jpeg", 6, "CLR's mean rate is six times as large"),
        ("fashion-mnist", 9, "nine times that of *fixed*"),
    ):
        policy = record(f"{study}/headline/triangular-seed1.json")["spec"]["policy"]
        assert round((policy["base_lr"] + policy["max_lr"]) / 2 / 0.001) == times
        assert says in README


def test_the_weak_baseline_on_digits():
    (fixed,) = curves("digits/headline", "fixed")
    assert f"one run of five has {100 * fixed.loc[1190].min():.0f} % when its rate is cut at 1,200" in README
    phases, both, lower = curves("digits/policies", "triangular2_phases", "exp_range", "no_cycle_lower")
    ends = [100 * run for run in phases.iloc[-1]]
    assert f"*triangular2_phases* has {ends[0]:.1f} % and {ends[1]:.1f} %, as one run never left" in README
    assert "*exp_range* (both bounds decay) {:.1f} % and {:.1f} %".format(*(100 * both.iloc[-1])) in README
    assert lower.index[-1] == phases.index[-1]
    assert f"two cuts has {100 * lower.iloc[-1].mean():.1f} % in the time of" in README


def test_coverage_of_the_bootstrap_of_five_runs():
    samples = np.random.default_rng(0).normal(size=(2000, 5))
    ends = [np.quantile(sample[DRAWS].mean(axis=1), (0.025, 0.975)) for sample in samples]
    covered = np.mean([low <= 0 <= high for low, high in ends])
    assert f"they cover about {100 * covered:.0f} %" in README
