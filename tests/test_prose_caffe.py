"""The numbers README and the ledger give of Caffe's larger network follow from its published runs."""

import pandas as pd
import pytest
from prose import FOLDER, LEDGER, README, ROOT, accuracy, conclusion, curves, points, record, runs_of, unsigned
from scipy.stats import t as student
from scipy.stats import ttest_ind

from modules.range_test import suggest_bounds
from modules.report import tables

SHORT = ("triangular2_phases", "no_cycle_mean", "no_cycle_upper", "no_cycle_lower", "decay")  # 25,000 iterations
POLICIES = (*SHORT, "fixed", "exp", "exp_range")
TOPS, ENDS = range(2_000, 42_001, 4_000), range(4_000, 40_001, 4_000)  # of the cycles of exp_range


@pytest.fixture(scope="module")
def policies() -> dict[str, pd.DataFrame]:
    """Accuracy of each policy's runs: a row an evaluation, a column a run."""
    return dict(zip(POLICIES, curves("cifar10-jpeg/policies", *POLICIES), strict=True))


@pytest.fixture(scope="module")
def paper() -> pd.Series:
    """The paper's accuracy of each policy."""
    rows = pd.read_csv(ROOT / "studies/references/policies.csv")
    return rows[rows.source.str.startswith("the paper")].set_index("policy").value


@pytest.fixture(scope="module")
def below(policies, paper) -> pd.Series:
    """By how many points the mean of each policy's runs ends below the paper's number."""
    return 100 * (paper - pd.Series({name: policies[name].iloc[-1].mean() for name in paper.index}))


@pytest.fixture(scope="module")
def lead(policies) -> pd.DataFrame:
    """exp_range less exp at the same iteration: a row an evaluation, a column a run."""
    return policies["exp_range"] - policies["exp"].loc[:42_000]


@pytest.fixture(scope="module")
def rates() -> pd.DataFrame:
    """The policies' rates, a column each: of the update before an evaluation, an iteration off a cycle's top or end."""
    table = pd.read_csv(FOLDER / "cifar10-jpeg/tables/policies_curves.csv")
    return table.pivot(index="iteration", columns="policy", values="lr")


def test_the_papers_own_table(policies, paper, below):
    says = "*fixed* is {fixed:.1f} points below the paper, *triangular2* {triangular2_phases:.1f}, "
    says += "*decay* {decay:.1f} and *exp_range* {exp_range:.1f} ("
    assert says.format(**below) in README
    assert f"about the {below['fixed']:.1f} points of *fixed*. It would leave two of" in README
    assert round(below["exp_range"] - below["fixed"]) == 2
    found = {name: tables.interval_of_mean(policies[name].iloc[-1], 0, 1) for name in paper.index}
    holds = [name for name in paper.index if found[name]["t_low"] < paper[name] < found[name]["t_high"]]
    assert holds == ["fixed", "decay"]
    assert [name for name in paper.index if found[name]["t_high"] < paper[name]] == ["triangular2_phases", "exp_range"]
    assert f"lower by {below['triangular2_phases']:.1f} points, the whole interval below" in LEDGER
    width = round(100 * (found["decay"]["t_high"] - found["decay"]["t_low"]))
    assert width == 6
    assert "because its interval is six points wide" in README
    assert f"lower by {below['decay']:.1f} points; its interval, six points wide, holds the paper's number" in LEDGER
    apart = 100 * (paper.triangular2_phases - paper.decay)
    assert f"the paper's two numbers are {apart:.1f} apart" in README
    assert f"| triangular2 in phases above decay | {apart:.1f} points" in LEDGER
    late, best = policies["decay"].iloc[-5:].mean(), policies["decay"].max()
    beside = points((policies["decay"] - policies["fixed"].loc[:25_000]).iloc[-5:].mean())
    assert f"it is {beside} from *fixed* at the same iterations" in README
    assert policies["fixed"].loc[:60_000].mean(axis=1).max() < paper.decay
    never = f"the mean of fixed does not reach {100 * paper.decay:.1f} %"
    assert f"{never} before its first cut, at 60,000, either." in README.replace("*", "")
    assert f"{never} at 0.001 either, in 60,000 iterations;" in LEDGER
    assert f"its runs average {accuracy(late)}, at their best {accuracy(best)}." in README
    assert f"the best evaluations of its runs average {accuracy(best)}" in LEDGER


def test_fixed_and_when_the_others_have_what_it_has(policies, paper):
    fixed = policies["fixed"]
    end = {name: policies[name].iloc[-1] for name in POLICIES}
    found = tables.interval_of_mean(end["fixed"], 0, 1)
    assert end["fixed"].max() < paper.fixed < found["t_high"]
    assert f"compatible: lower by {100 * (paper.fixed - found['value']):.1f} points, all three runs below" in LEDGER
    apart = ttest_ind(end["triangular2_phases"], end["fixed"], equal_var=False).confidence_interval()
    assert f"as independent runs they just do, [{100 * apart.low:+.2f}, {100 * apart.high:+.2f}]." in README
    assert max(end[name].max() for name in SHORT) < end["fixed"].min()
    behind = [points(end[name] - end["fixed"]) for name in ("no_cycle_mean", "no_cycle_upper")]
    assert "*no_cycle_mean* {}, *no_cycle_upper* {})".format(*behind) in README
    mean = {name: policies[name].mean(axis=1) for name in POLICIES}
    best = f"the best mean of *fixed*, {100 * mean['fixed'].max():.2f} % at {mean['fixed'].idxmax():,}."
    assert best in README
    assert best.split(" at ")[0].replace("*", "") in LEDGER
    assert all(mean[name].max() < mean["fixed"].max() for name in SHORT)
    before = mean["fixed"].loc[:60_000]
    says = f"before its first cut, {100 * before.max():.2f} %"
    assert f"{says} at {before.idxmax():,}, *triangular2* has" in README
    assert says in LEDGER
    assert mean["decay"].max() < before.max()
    reached = {name: (mean[name] >= before.max()).idxmax() for name in SHORT[:4]}
    assert reached["no_cycle_mean"] == reached["no_cycle_upper"]
    steps = (
        "*triangular2* has after {:,}, *no_cycle_mean* and *no_cycle_upper* after {:,} and *no_cycle_lower* after {:,};"
    )
    some = [reached[name] for name in ("triangular2_phases", "no_cycle_mean", "no_cycle_lower")]
    assert steps.format(*some) in README
    assert "it has after {:,}, and policies without a cycle have it after {:,} to {:,}, all".format(*some) in LEDGER
    late = (mean["fixed"] >= mean["triangular2_phases"].iloc[-1]).idxmax()
    assert f"passed by *fixed* only at {late:,}. But" in README
    cut = points(fixed.loc[61_000] - fixed.loc[60_000])
    assert f"that cut alone gives it {cut} in 1,000 iterations" in README
    above = [100 * (mean[name] - mean["no_cycle_lower"]).iloc[-1] for name in SHORT[:3]]
    assert f"recover {min(above):.1f} to {max(above):.1f} points of it" in README
    pd.testing.assert_frame_equal(fixed.loc[:16_000], policies["no_cycle_lower"].loc[:16_000])


def test_the_best_of_the_papers_table(policies, paper, below, rates):
    runs, fixed = policies["exp_range"], policies["fixed"]
    end, best = runs.iloc[-1], accuracy(runs.max())
    for some in (end, runs.max()):
        assert tables.interval_of_mean(some, 0, 1)["t_high"] < paper.exp_range
    lower = f"lower by {below.exp_range:.1f} points, the whole interval below, also"
    assert f"{lower} that of its runs' best evaluations, {best};" in LEDGER
    assert f"the best evaluations of its runs average {best}. Why is [not known]" in README
    assert paper.idxmax() == "exp_range"
    assert f"That is {100 * paper.exp_range:.1f} %, of *exp_range*." in README
    at_best = 100 * (paper.exp_range - runs.max().mean())
    assert f"best evaluation: {best}, {at_best:.1f} points lower, the whole interval below." in README
    low, high = (100 * value for value in student.interval(0.95, 2, end.mean(), end.std() * (1 + 1 / 3) ** 0.5))
    assert f"a single further run of ours would be expected to end between {low:.1f} and {high:.1f} %." in README
    assert f"would be expected between {low:.1f} and {high:.1f} %" in LEDGER
    mean, last = runs.mean(axis=1), runs.loc[40_000]
    cycles = "{:.2f}, {:.2f} and {:.2f} %: it has levelled off".format(*(100 * mean[[32_000, 36_000, 40_000]]))
    assert f"last three cycles *exp_range* has {cycles}" in README
    assert f"to 42,000 it falls by {unsigned(last - end)}." in README
    assert end.max() < fixed.iloc[-1].min()
    apart = ttest_ind(end, fixed.iloc[-1], equal_var=False).confidence_interval()
    both = f"[{100 * apart.low:+.2f}, {100 * apart.high:+.2f}]"
    assert f"{both} as independent runs, which does;" in README
    assert f"as independent runs, {both}, it is;" in LEDGER
    assert apart.high < paper.exp_range - paper.fixed
    assert f"it is {points(last - fixed.iloc[-1])} from the end of *fixed*." in README
    early, passes = mean.idxmax(), (fixed.mean(axis=1) > mean.max()).idxmax()
    says = f"The {100 * mean.max():.2f} % it has after {early:,} iterations *fixed* passes only at {passes:,}"
    assert says in README
    assert f"by then come down to a rate of {rates.exp_range[early]:.4f}, and" in README
    above = f"{100 * (paper.exp_range - paper.fixed):.1f} points"
    assert f"*Beside fixed.* The paper has it {above} above." in README
    assert f"| exp_range above fixed | {above}," in LEDGER


def test_exp(policies, paper, below):
    exp, fixed = policies["exp"], policies["fixed"]
    assert exp.iloc[-1].min() > paper.exp
    assert "*exp* comes within half a point (all its runs above;" in README
    assert -below.exp < 0.5
    assert f"*exp* ends higher by {-below.exp:.1f} points," in README
    assert f"higher by {-below.exp:.1f} points, all three runs above" in LEDGER
    best = accuracy(exp.max())
    assert f"the best evaluations of these average {best}), or" in README
    assert f"the best evaluations of its runs average {best} |" in LEDGER
    assert exp.iloc[-1].max() < fixed.iloc[-1].min()
    apart = f"{100 * (paper.fixed - paper.exp):.1f} points"
    assert f"where the paper has {apart} between them" in README
    assert f"| exp below fixed | {apart}," in LEDGER


def test_exp_range_beside_its_upper_bound_without_the_cycle(policies, paper, lead, rates):
    exp_range, exp = policies["exp_range"], policies["exp"]
    apart = paper.exp_range - paper.exp
    assert f"*Beside exp.* The paper has it {100 * apart:.1f} points above." in README
    assert f"| exp_range above exp | {100 * apart:.1f} points," in LEDGER
    whole = exp_range.loc[40_000] - exp.iloc[-1]
    for difference in (exp_range.iloc[-1] - exp.iloc[-1], whole):
        assert tables.interval_of_mean(difference, -1, 1)["t_high"] < apart
    assert f"to the end of *exp* it is {points(whole)}." in README
    assert f"its last whole cycle's end, {points(whole)};" in LEDGER
    ends, tops = lead.loc[ENDS], lead.loc[TOPS]
    assert f"*exp_range* less *exp* is {points(tops.mean())}; at the ten ends" in README
    first, last = (100 * ends.mean(axis=1).iloc[k] for k in (0, -1))
    assert f"{points(ends.mean())}, from {first:+.2f} at the first to {last:+.2f} at the last." in README
    assert f"at the same rate {points(tops.mean())}, at a sixth of the rate {points(ends.mean())} |" in LEDGER
    assert rates.exp_range[TOPS].to_numpy() == pytest.approx(rates.exp[TOPS], rel=0.01)
    assert rates.exp_range[ENDS].to_numpy() == pytest.approx(rates.exp[ENDS] / 6, rel=0.01)
    for rate in (rates.exp_range[40_000], rates.exp[70_000]):
        assert f"come down to {rate:.5f} and it stands" in README


def test_what_notebook_5_concludes_of_it(policies, paper, below, lead):
    concluded = conclusion("policies", "05_policies")
    assert below[["fixed", "exp"]].abs().max() < 1
    others = below.drop(["fixed", "exp"])
    assert f"the other three rows stay {others.min():.1f} to {others.max():.1f} points below it" in concluded
    assert (paper - below / 100).idxmax() != "exp_range" == paper.idxmax()
    phases = (policies["triangular2_phases"] - policies["no_cycle_mean"]).iloc[-1]
    tops = lead.loc[TOPS].mean()
    assert f"is {points(tops)} at the tops of its cycles" in concluded
    assert tables.interval_of_mean(tops, -1, 1)["t_high"] == pytest.approx(0.005, abs=0.0005)
    high = 100 * tables.interval_of_mean(phases, -1, 1)["t_high"]
    assert f"do not exclude one of {high:.1f} points in the first, of half a point in the second" in concluded


def test_the_controls_without_the_cycle(policies):
    phases, upper, lower = (policies[name] for name in ("triangular2_phases", "no_cycle_upper", "no_cycle_lower"))
    decay = policies["decay"]
    assert decay.iloc[-1].max() < min(policies[name].iloc[-1].min() for name in SHORT[:-1])
    behind, after = (phases - upper).loc[16_000], upper.loc[17_000] - upper.loc[16_000]
    assert f"worst of the five, {unsigned(behind)} behind it, and gains {unsigned(after)} in the 1,000" in README
    assert upper.loc[16_000].mean() == min(policies[name].loc[16_000].mean() for name in SHORT)
    lead = lower - decay
    before = lead.loc[[8_000, 12_000, 16_000]].mean()
    assert f"12,000 and 16,000 the control is on average {points(before)} ahead" in README
    assert f"averaged over the last five evaluations, {points(lead.iloc[-5:].mean())}." in README


def test_the_cycle_on_the_way(policies):
    lead = policies["triangular2_phases"] - policies["no_cycle_mean"]
    ends = lead.loc[[4_000, 8_000, 12_000, 16_000, 18_000, 20_000, 22_000, 23_000, 24_000, 25_000]]
    says = f"ten cycles are {points(ends.mean())} ahead on average, all {len(lead)} evaluations {points(lead.mean())}."
    assert says in README
    one = [f"{100 * value:+.2f}" for value in ends.mean(axis=1)]
    first, second = (" and ".join((", ".join(some[:-1]), some[-1])) for some in (one[:4], one[4:7]))
    assert (
        f"{first} ahead in the first phase, {second} in the second, and {min(one[7:])} to {max(one[7:])} in" in README
    )


def test_the_range_test_of_the_papers_third_figure():
    curve = pd.read_csv(FOLDER / "cifar10-jpeg" / "tables" / "policies_range_test.csv")
    runs = tables.read_runs(FOLDER / "cifar10-jpeg" / "policies_range_test")
    assert not runs.diverged.any()
    pd.testing.assert_series_equal(
        curve["mean"], runs.groupby("iteration").val_acc.mean().reset_index(drop=True), check_names=False
    )
    mean, rising = curve.set_index("lr")["mean"], curve["mean"].diff()
    top, turn = curve["mean"].idxmax(), curve.lr.searchsorted(0.00601)
    early, rough = rising[1:turn], rising[turn : top + 1]
    first = f"{100 * mean.iloc[0]:.0f} % at the first evaluation ({mean.index[0]:.4f})"
    assert f"{first}, {100 * mean.iloc[turn - 1]:.0f} % at 0.006." in README
    falls = f"{(early < 0).sum()} falls in {len(early)} evaluations up to 0.006"
    falls += f" and {(rough < 0).sum()} in the next {len(rough)}"
    assert f"with {falls}, up to the highest mean" in README
    assert f"the mean has {falls}" in LEDGER
    assert f"the mean first falls at {curve.lr[(rising < 0).idxmax()]:.4f}" in README
    assert f"{100 * mean.max():.1f} % at {mean.idxmax():.3f};" in README
    assert f"{100 * mean.iloc[-1]:.1f} % at {mean.index[-1]:.3f}." in README
    single = runs.pivot_table(index="lr", columns="seed", values="val_acc")
    noise = 100 * (single - (single.shift(1) + single.shift(-1)) / 2).abs()
    below, above = ("{:.1f}, {:.1f} and {:.1f}".format(*part.mean()) for part in (noise[:0.00601], noise[0.00601:]))
    assert f"run by run, by {below} points up to 0.006 and by {above} above" in README
    bounds = suggest_bounds(curve.lr, curve["mean"])
    says = f"{bounds.base_lr:.4f}, the first rate measured, and {bounds.max_lr:.4f}"
    assert says in README
    assert says in LEDGER
    assert bounds.base_lr == curve.lr[0]


def test_how_long_the_study_takes_two_cores():
    parts = [runs_of(f"cifar10-jpeg/{name}") for name in ("policies", "policies_range_test", "ablation")]
    seconds = [record(path.with_suffix(".json"))["seconds"] for part in parts for path, _ in part]
    hours = sum(seconds) / 2 / 3600
    assert README.count(f"some {hours:.0f} hours on two cores") == 2


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
