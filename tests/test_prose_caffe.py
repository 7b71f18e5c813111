"""The numbers README and the ledger give of Caffe's larger network follow from its published runs."""

from prose import LEDGER, README, curves, points

from modules import analysis


def test_the_papers_own_table():
    phases, control = curves("cifar10-jpeg/policies", "triangular2_phases", "no_cycle_mean")
    below = 81.4 - 100 * phases.iloc[-1].mean()
    assert f"*triangular2* ends {below:.1f} points below the paper's single number" in README
    assert f"lower by {below:.1f} points, the whole interval below" in LEDGER
    assert analysis.interval_of_mean(phases.iloc[-1], 0, 1)["t_high"] < 0.814
    lead = phases - control
    assert f"{points(lead.loc[4_000])} after 4,000 iterations and {points(lead.loc[8_000])} after 8,000" in README
    assert f"over all {len(lead)} evaluations the cycle is worth {points(lead.mean())}." in README


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
