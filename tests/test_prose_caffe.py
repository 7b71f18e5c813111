"""The numbers README and the ledger give of Caffe's larger network follow from its published runs."""

import pandas as pd
import pytest
from prose import FOLDER, LEDGER, README, ROOT, curves, points

from modules import analysis
from modules.range_test import suggest_bounds

ENDS = ("triangular2_phases", "no_cycle_mean", "no_cycle_upper", "decay")


@pytest.fixture(scope="module")
def policies() -> dict[str, pd.DataFrame]:
    """Accuracy of the complete rows' runs: a row an evaluation, a column a run."""
    return dict(zip(ENDS, curves("cifar10-jpeg/policies", *ENDS), strict=True))


@pytest.fixture(scope="module")
def paper() -> pd.Series:
    """The paper's accuracy of each policy."""
    rows = pd.read_csv(ROOT / "studies/policies/reference.csv")
    return rows[rows.source == "the paper (Table 1)"].set_index("policy").value


def test_the_papers_own_table(policies, paper):
    below = {name: 100 * (paper[name] - policies[name].iloc[-1].mean()) for name in ("triangular2_phases", "decay")}
    says = f"*triangular2* by {below['triangular2_phases']:.1f} points and *decay* by {below['decay']:.1f} ("
    assert says in README
    assert f"lower by {below['triangular2_phases']:.1f} points, the whole interval below" in LEDGER
    assert analysis.interval_of_mean(policies["triangular2_phases"].iloc[-1], 0, 1)["t_high"] < paper.triangular2_phases
    found = analysis.interval_of_mean(policies["decay"].iloc[-1], 0, 1)
    assert found["t_low"] < paper.decay < found["t_high"]
    width = round(100 * (found["t_high"] - found["t_low"]))
    assert width == 6
    assert f"lower by {below['decay']:.1f} points; its interval, six points wide, holds the paper's number" in LEDGER
    apart = 100 * (paper.triangular2_phases - paper.decay)
    assert f"the paper's two numbers are {apart:.1f} apart" in README
    assert f"| triangular2 in phases above decay | {apart:.1f} points" in LEDGER
    swing = {name: 100 * policies[name].iloc[-5:].std().mean() for name in ("triangular2_phases", "decay")}
    assert f"still swings by {swing['decay']:.1f} points" in README
    assert f"as *triangular2* does not ({swing['triangular2_phases']:.1f})" in README


def test_the_controls_without_the_cycle(policies):
    phases, mean, upper, decay = (policies[name] for name in ENDS)
    behind = points((phases - upper).loc[16_000]).replace("+", "")
    assert f"*no_cycle_upper* is the worst of the four, {behind} behind *triangular2*" in README
    assert upper.loc[16_000].mean() == min(policy.loc[16_000].mean() for policy in policies.values())
    assert decay.iloc[-1].max() < min(policy.iloc[-1].min() for policy in (phases, mean, upper))
    lead = phases - mean
    assert f"{points(lead.loc[4_000])} after 4,000 iterations and {points(lead.loc[8_000])} after 8,000" in README
    assert f"over all {len(lead)} evaluations the cycle is worth {points(lead.mean())}." in README


def test_the_range_test_of_the_papers_third_figure():
    curve = pd.read_csv(FOLDER / "cifar10-jpeg" / "tables" / "policies_range_test.csv")
    runs = analysis.read_runs(FOLDER / "cifar10-jpeg" / "policies_range_test")
    assert not runs.diverged.any()
    pd.testing.assert_series_equal(
        curve["mean"], runs.groupby("iteration").val_acc.mean().reset_index(drop=True), check_names=False
    )
    mean, rising = curve.set_index("lr")["mean"], curve["mean"].diff()
    top, turn = curve["mean"].idxmax(), curve.lr.searchsorted(0.00601)
    early, rough = rising[1:turn], rising[turn : top + 1]
    first = f"{100 * mean.iloc[0]:.0f} % at the first evaluation ({mean.index[0]:.4f})"
    sixth = f"{100 * mean.iloc[turn - 1]:.0f} % at 0.006"
    assert f"{first}, {sixth}, with {(early < 0).sum()} falls on the way in {len(early)} evaluations" in README
    gained = 100 * (mean.max() - mean.iloc[turn - 1])
    assert f"it falls at {(rough < 0).sum()} of the next {len(rough)}, and still gains {gained:.0f} points" in README
    assert f"the mean falls at {(rough < 0).sum()} of {len(rough)} evaluations" in LEDGER
    assert f"{100 * mean.max():.1f} % at {mean.idxmax():.3f};" in README
    assert f"{100 * mean.iloc[-1]:.1f} % at {mean.index[-1]:.3f}." in README
    single = runs.pivot_table(index="lr", columns="seed", values="val_acc")
    noise = 100 * (single - (single.shift(1) + single.shift(-1)) / 2).abs().mean(axis=1)
    says = f"by {noise[:0.00601].mean():.1f} points up to 0.006 and by {noise[0.00601:].mean():.1f} above"
    assert says in README
    bounds = suggest_bounds(curve.lr, curve["mean"])
    says = f"{bounds.base_lr:.4f}, the first rate measured, and {bounds.max_lr:.4f}"
    assert says in README
    assert says in LEDGER
    assert bounds.base_lr == curve.lr[0]


def test_what_the_port_left_out():
    names = ("caffe", "torch_init", "floor_pooling", "no_multipliers", "unit_pixels", "port", "port_caffe_pixels")
    ends = {n: c.iloc[-1] for n, c in zip(names, curves("cifar10-jpeg/ablation", *names), strict=True)}
    caffe = ends["caffe"]
    assert f"the port gains {points(ends['port_caffe_pixels'] - ends['port'])} and" in README
    assert f"is {points(ends['port_caffe_pixels'] - caffe)} above Caffe's own setting" in README
    assert (ends["unit_pixels"] == 0.1).all()
    assert f"initial weights, {points(ends['torch_init'] - caffe)}, and" in README
    assert f"pooling, {points(ends['floor_pooling'] - caffe)}, the sign is open" in README
    assert f"*cost* {points(ends['no_multipliers'] - caffe).replace('+', '')} here" in README
