"""The numbers that texts quote besides the tables of a study, by the notebook whose runs they are of.

A study's file names the function as `quoted` among a notebook's parameters; the notebook's last cell writes the rows to
`tables/<experiment>_notes.csv`, where a marker finds them by their names.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from modules.checks import RunError, did_you_mean, short
from modules.report import notes
from modules.report.notes import Arm, Experiment, Found, Theirs
from modules.report.tables import table_of, write

REFERENCES = Path("studies/references")
Rows = dict[str, list[Found]]


def cifar10_range_test(results: Path) -> Rows:
    """Beside coxy1989/clr's range test."""
    theirs = REFERENCES / "coxy1989_clr_range_test.csv"
    (ramp,) = Experiment(results / "range_test").arms("range_test")
    return {
        "range_test": [
            notes.upper_bounds_one_by_one("single tests max", ramp),
            notes.lower_bound("coxy curve base", theirs),
            notes.upper_bound("coxy curve max", theirs),
        ]
    }


def cifar10_headline(results: Path) -> Rows:
    """coxy1989/clr's headline, on the way, at other targets, and beside their own runs."""
    fixed, clr = Experiment(results / "headline").arms("fixed", "triangular")
    their_fixed, their_clr = Theirs(REFERENCES / "coxy1989_clr_headline.csv").arms("fixed", "triangular")
    whole = "end of its last whole cycle"
    ends, between = range(4000, 32001, 4000), range(3000, 33001, 2000)
    rows = [
        notes.accuracy("clr at 4000", clr.at(4000), note="its first cycle's end"),
        notes.accuracy("clr at 16000", clr.at(16000)),
        notes.accuracy("clr at 20000", clr.at(20000)),
        notes.accuracy("clr at 24000", clr.at(24000)),
        notes.accuracy("clr at 28000", clr.at(28000)),
        notes.accuracy("clr at 32000", clr.at(32000), note=whole),
        # At 20,000: the first of the project's two primary contrasts. The same accuracy sooner?
        *(notes.difference(f"clr at {at} - fixed", clr.at(at), fixed) for at in (16000, 20000, 24000, 28000)),
        notes.difference("clr at 32000 - fixed", clr.at(32000), fixed, note=whole),
        # The same runs at other iterations: pairs.
        notes.difference(
            "first cut",
            fixed.at(61000),
            fixed.at(57000, 58000, 59000, 60000),
            "pairs",
            note="fixed, 61,000 less 57,000 to 60,000",
        ),
        notes.difference(
            "cycle end - mid-cycle", clr.at(32000), clr.at(35000), "pairs", note="clr, 32,000 less 35,000"
        ),
        notes.difference(
            "cycle ends - neighbours",
            clr.at(*ends),
            clr.at(*between),
            "pairs",
            note="clr, eight ends less the middles beside them",
        ),
        *(notes.factor(f"target {at}", clr, fixed, at / 100) for at in (40, 50, 60, 65, 70, 72, 73, 74, 75)),
        notes.ratio("clr mean rate over fixed", clr, "mean", fixed, "lr"),
        *_counting_range_tests(results, clr, fixed),
        # coxy1989/clr's own runs, where it has them.
        notes.difference("fixed - coxy", fixed.at(70000), their_fixed.at(70000)),
        *(notes.difference(f"clr - coxy at {at}", clr.at(at), their_clr.at(at)) for at in (8000, 20000, 32000)),
        notes.prediction("one more fixed", fixed),
        notes.prediction("one more clr at 20000", clr.at(20000)),
    ]
    return {"headline": rows}


def _counting_range_tests(results: Path, clr: Arm, fixed: Arm) -> list[Found]:
    tests = Experiment(results / "range_test")
    return [
        notes.factor_counting("counting one range test", clr, fixed, tests, 1),
        notes.factor_counting("counting five range tests", clr, fixed, tests, 5),
    ]


def caffe_quick(results: Path) -> Rows:
    """Beside the headline's runs, which stand in the folder of its study: `cifar10` of `cifar10-quick`."""
    quick, clr, own, paper = Experiment(results / "policies").arms(
        "caffe_quick", "caffe_clr", "caffe_clr_own", "caffe_clr_paper"
    )
    study = results.with_name(results.name.removesuffix("-quick"))
    fixed, triangular = Experiment(study / "headline").arms("fixed", "triangular")
    (ramp,) = Experiment(results / "policies_range_test").arms("range_test")
    return {
        "policies": [
            notes.prediction("one more caffe_quick", quick),
            notes.difference("caffe_quick - fixed", quick, fixed),
            notes.difference("caffe_quick - clr at 20000", quick, triangular.at(20000)),
            notes.difference("caffe_quick - clr at 28000", quick, triangular.at(28000)),
            notes.difference("caffe_quick - clr at 32000", quick, triangular.at(32000)),
            notes.difference("caffe_clr - caffe_quick", clr, quick),
            notes.difference("caffe_clr_own - caffe_quick", own, quick),
            notes.difference("caffe_clr_paper - caffe_quick", paper, quick),
            notes.crossing("caffe_quick reaches fixed", quick, fixed),
        ],
        "policies_range_test": [notes.lower_bound("the rule base", ramp), notes.upper_bound("the rule max", ramp)],
    }


def headline_controls(results: Path) -> Rows:
    """Beside the headline's runs, which stand in the folder of `cifar10`."""
    mean, drop = Experiment(results / "policies").arms("mean_rate", "mean_rate_drop")
    fixed, clr = Experiment(results.with_name("cifar10") / "headline").arms("fixed", "triangular")
    return {
        "policies": [
            notes.crossing("mean_rate reaches fixed", mean, fixed),
            notes.crossing("mean_rate_drop reaches fixed", drop, fixed),
            *(notes.difference(f"clr at 20000 - {arm.name}", clr.at(20000), arm) for arm in (mean, drop)),
            *(notes.difference(f"{arm.name} - fixed", arm, fixed) for arm in (mean, drop)),
        ]
    }


def digits_policies(results: Path) -> Rows:
    """When each arm has what *fixed* has at its best."""
    fixed, *others = Experiment(results / "policies").arms("fixed", "triangular", "mean_rate", "linear")
    return {"policies": [notes.crossing(f"{arm.name} reaches fixed", arm, fixed) for arm in others]}


def fashion_headline(results: Path) -> Rows:
    """The headline on the way, and what its factor is when range tests count."""
    fixed, clr = Experiment(results / "headline").arms("fixed", "triangular")
    return {
        "headline": [
            notes.accuracy("fixed at 400", fixed.at(400)),
            notes.accuracy("clr at 400", clr.at(400)),
            notes.accuracy("fixed at 12000", fixed.at(12000), note="just before its first cut"),
            *_counting_range_tests(results, clr, fixed),
            notes.ratio("clr mean rate over fixed", clr, "mean", fixed, "lr"),
            notes.ratio("upper bound over lower", clr, "max_lr", clr, "base_lr"),
        ]
    }


def fashion_policies(results: Path) -> Rows:
    """CLR beside its mean rate along the way, and how much each arm's runs differ."""
    clr, mean, cut = Experiment(results / "policies").arms("triangular", "mean_rate", "mean_rate_cut")
    (fixed,), ends = Experiment(results / "headline").arms("fixed"), range(800, 6401, 800)
    return {
        "policies": [
            notes.crossing("clr crosses", clr, fixed),
            notes.crossing("mean rate crosses", mean, fixed),
            notes.difference("at cycle ends", clr.at(*ends), mean.at(*ends), note="its eight cycle ends"),
            notes.difference("at all evaluations", clr.last(32), mean.last(32), note="all evaluations"),
            notes.deviation("sd of mean rate late", mean.last(12), note="last twelve evaluations"),
            notes.deviation("sd of mean rate end", mean),
            notes.deviation("sd of clr late", clr.last(12), note="last twelve evaluations"),
            notes.deviation("sd of two cuts late", cut.last(4), note="last four evaluations"),
        ]
    }


def mnist_sweeps(results: Path) -> Rows:
    """What the sweeps took, and what they say one by one."""
    sweeps = Experiment(results / "best_lr_sweep")
    (cycle,) = Experiment(results / "best_lr").arms("cycle")
    return {
        "best_lr": [
            notes.best_rates_one_by_one("single sweeps", sweeps),
            notes.epochs("longest sweep", sweeps, max),
            notes.epochs("all sweeps", sweeps, sum),
            notes.lowest_run("lowest run after the first cycle", cycle.at(3748)),
        ]
    }


def mnist_mlp(results: Path) -> Rows:
    """The cycle beside its mean rate, with small batches, before the run's end."""
    clr, mean = Experiment(results / "mlp").arms("clr_small_batch", "mean_small_batch")
    before = "200 iterations before its last whole cycle ends"
    return {
        "mlp": [
            notes.difference("small batch at 7800", clr.at(7800), mean.at(7800), note=before),
            notes.difference("small batch at 8400", clr.at(8400), mean.at(8400)),
        ]
    }


def wide_resnet(results: Path) -> Rows:
    """What best_lr's recipe took."""
    return {
        "best_lr": [
            notes.hours("training", [Experiment(results / "best_lr")]),
            notes.minutes("sweep", [Experiment(results / "best_lr_sweep")]),
        ]
    }


def sigmoid(results: Path) -> Rows:
    """Beside the paper's Figure 6, and CLR and its mean rate by where CLR stands in its cycle."""
    policies = Experiment(results / "policies")
    fixed, clr, mean = policies.arms("fixed", "clr", "mean_rate")
    reference, figure = REFERENCES / "sigmoid.csv", "the paper (4.1.1, Figure 6)"
    stands = {
        "at ends": range(4000, 60001, 4000),
        "at tops": range(2000, 58001, 4000),
        "rising": range(1000, 57001, 4000),
        "falling": range(3000, 59001, 4000),
    }
    return {
        "policies": [
            notes.hours("hours", [policies], workers=2),
            notes.theirs_less_ours("paper fixed", fixed, reference, figure),
            notes.theirs_less_ours("paper clr", clr, reference, figure),
            notes.prediction("one more fixed", fixed),
            notes.prediction("one more clr", clr),
            notes.difference("clr - fixed last ten", clr.last(10), fixed.last(10)),
            *(notes.difference(f"clr - mean_rate {where}", clr.at(*at), mean.at(*at)) for where, at in stands.items()),
            notes.difference("clr - mean_rate everywhere", clr.last(60), mean.last(60)),
        ]
    }


def sigmoid_short(results: Path) -> Rows:
    """After two cycles of CLR, whose runs and its mean rate's stand in the folder of the longer study."""
    policies = Experiment(results / "policies")
    longer = Experiment(results.with_name(results.name.removesuffix("-short")) / "policies")
    found = [*policies.arms("low", "drop", "warm_drop"), *longer.arms("clr", "mean_rate")]
    arms = {arm.name: arm for arm in found}

    def less(a: str, b: str, at: int) -> Found:
        return notes.difference(f"{a} - {b} at {at}", arms[a].at(at), arms[b].at(at))

    return {
        "policies": [
            notes.hours("hours", [policies], workers=2),
            *(notes.accuracy(f"{name} at 8000", arms[name].at(8000)) for name in ("clr", "mean_rate")),
            *(notes.accuracy(f"{name} at 6000", arms[name].at(6000)) for name in ("drop", "warm_drop", "low", "clr")),
            *(less("clr", name, 8000) for name in ("low", "drop", "warm_drop")),
            *(less("drop", "mean_rate", at) for at in (6000, 8000)),
            *(less("warm_drop", "drop", at) for at in (6000, 8000)),
        ]
    }


def papers_table(results: Path) -> Rows:
    """The paper's table on Caffe's larger network: its cycle against its controls, and what the paper has."""
    names = ("fixed", "triangular2_phases", "decay", "exp", "exp_range")
    controls = ("no_cycle_mean", "no_cycle_upper", "no_cycle_lower")
    experiment = Experiment(results / "policies")
    arms = {arm.name: arm for arm in experiment.arms(*names, *controls)}
    fixed, cycle, decay, exp, exp_range = (arms[name] for name in names)
    mean, upper, lower = (arms[name] for name in controls)
    said = {cycle: "triangular2"} | {arm: name for name, arm in arms.items() if arm is not cycle}
    # The arms that end at a rate of a tenth or less of 0.001, where runs differ little; decay and exp_range do not.
    # They were named after these runs had been seen, and before any further ones.
    pooled = [fixed, cycle, exp, mean, upper, lower]

    def by_pooled(a: Arm, b: Arm) -> Found:
        return notes.difference(f"{said[a]} - {said[b]} pooled", a, b, "pooled", pooled)

    def paper(name: str, arm: Arm, source: str = "the paper (Table 1)") -> Found:
        return notes.theirs_less_ours(name, arm, REFERENCES / "policies.csv", source)

    def before_the_cut() -> float:
        return fixed.curve.loc[:60000].mean(axis=1).max()

    tests, ablation = Experiment(results / "policies_range_test"), Experiment(results / "ablation")
    ends = (4000, 8000, 12000, 16000, 18000, 20000, 22000, 23000, 24000, 25000)
    late, of_fixed = (21000, 22000, 23000, 24000, 25000), "fixed's best mean before its first cut"
    policies = [
        # The second of the project's two primary contrasts: is it the cycle?
        notes.difference_from_mean("cycle against both controls", cycle, [mean, upper], pooled=pooled),
        # What the paper claims, the same accuracy sooner.
        by_pooled(cycle, fixed),
        *(by_pooled(cycle, control) for control in (mean, upper, lower)),
        by_pooled(exp, fixed),
        *(notes.prediction(f"one more {said[arm]}", arm) for arm in (fixed, cycle, decay, exp, exp_range)),
        *(notes.prediction(f"one more {said[arm]} pooled", arm, pooled) for arm in (fixed, cycle, exp)),
        # Theirs less ours; what the tables of the reference say of each row, by its arm's name.
        *(paper(f"paper {said[arm]}", arm) for arm in (fixed, cycle, decay)),
        paper("paper exp", exp, "the paper (4.1.1: its best)"),
        paper("paper exp_range", exp_range),
        paper("paper exp_range best", exp_range.at_best()),
        # On the way.
        notes.best_mean("fixed best before its cut", fixed, until=60000),
        notes.best_mean_at("fixed best before its cut at", fixed, until=60000),
        *(
            notes.reaches(f"{said[arm]} has it", arm, before_the_cut, note=of_fixed)
            for arm in (cycle, mean, upper, lower)
        ),
        notes.reaches("fixed passes the end of triangular2", fixed, lambda: cycle.values.mean()),
        notes.reaches("fixed passes the best of exp_range", fixed, lambda: exp_range.curve.mean(axis=1).max()),
        notes.best_mean("exp_range best mean", exp_range),
        notes.best_mean_at("exp_range best mean at", exp_range),
        notes.difference("fixed first cut", fixed.at(61000), fixed.at(60000), "pairs"),
        notes.difference("decay - fixed late", decay.at(*late), fixed.at(*late)),
        notes.difference("no_cycle_lower - decay late", lower.last(5), decay.last(5)),
        notes.difference(
            "no_cycle_lower - decay before its cut", lower.at(8000, 12000, 16000), decay.at(8000, 12000, 16000)
        ),
        notes.difference("triangular2 - no_cycle_upper at 16000", cycle.at(16000), upper.at(16000)),
        notes.difference("no_cycle_upper first cut", upper.at(17000), upper.at(16000), "pairs"),
        notes.difference("triangular2 - no_cycle_mean at cycle ends", cycle.at(*ends), mean.at(*ends)),
        notes.difference("triangular2 - no_cycle_mean at all evaluations", cycle.last(25), mean.last(25)),
        *(notes.difference(f"cycle end {end}", cycle.at(end), mean.at(end)) for end in ends[:7]),
        notes.accuracy("exp_range at 32000", exp_range.at(32000)),
        notes.accuracy("exp_range at 36000", exp_range.at(36000)),
        notes.accuracy("exp_range at 40000", exp_range.at(40000), note="end of its last whole cycle"),
        notes.difference("exp_range falls after its last cycle", exp_range.at(40000), exp_range, "pairs"),
        notes.difference("exp_range at 40000 - fixed", exp_range.at(40000), fixed),
        notes.difference("exp_range at 40000 - exp", exp_range.at(40000), exp),
        *(
            notes.difference(f"exp_range - exp {name}", exp_range.at(*at), exp.at(*at), note=note)
            for name, at, note in (
                ("at tops", range(2000, 42001, 4000), "at the same rate"),
                ("at ends", range(4000, 40001, 4000), "at a sixth of the rate"),
                ("at the first end", (4000,), None),
                ("at the last end", (40000,), None),
            )
        ),
        notes.hours("hours", [experiment, tests, ablation], workers=2, note="on two cores"),
    ]
    names = ("port", "caffe", "port_caffe_pixels", "torch_init", "floor_pooling", "no_multipliers")
    switched = {arm.name: arm for arm in ablation.arms(*names)}
    pairs = [("port_caffe_pixels", "port"), ("port_caffe_pixels", "caffe")]
    pairs += [(name, "caffe") for name in ("torch_init", "floor_pooling", "no_multipliers")]
    (ramp,) = tests.arms("range_test")
    return {
        "policies": policies,
        "ablation": [notes.difference(f"{a} - {b}", switched[a], switched[b]) for a, b in pairs],
        "policies_range_test": [
            notes.accuracy("at 0.0005", ramp.at(100)),
            notes.accuracy("at 0.006", ramp.at(1200)),
            notes.best_mean("highest", ramp),
            notes.accuracy("at the end", ramp),
            notes.falls("falls up to 0.006", ramp, last=1200),
            notes.falls("falls above 0.006", ramp, first=1300, last=2600),
            notes.roughness("roughness up to 0.006", ramp, last=1200),
            notes.roughness("roughness above 0.006", ramp, first=1300),
            notes.lower_bound("the rule base", ramp),
            notes.upper_bound("the rule max", ramp),
        ],
    }


def smoke_headline(results: Path) -> Rows:
    """For tests."""
    fixed, clr = Experiment(results / "headline").arms("fixed", "triangular")
    return {
        "headline": [
            notes.accuracy("clr at the end", clr),
            notes.difference("clr - fixed", clr.at(28), fixed.at(28)),
            notes.accuracy("lost", clr.at(29)),
        ]
    }


#: What `quoted` may be.
QUOTED: dict[str, Callable[[Path], Rows]] = {
    function.__name__: function
    for function in (
        cifar10_range_test,
        cifar10_headline,
        caffe_quick,
        headline_controls,
        digits_policies,
        fashion_headline,
        fashion_policies,
        mnist_sweeps,
        mnist_mlp,
        wide_resnet,
        sigmoid,
        sigmoid_short,
        papers_table,
        smoke_headline,
    )
}


def check_quoted(name: str | None) -> None:
    """Raise RunError when a notebook's `quoted` is neither None nor one of `QUOTED`."""
    if name is not None and name not in QUOTED:
        raise RunError(f"quoted={short(name)}: one of {', '.join(QUOTED)} is needed{did_you_mean(name, QUOTED)}")


def write_quoted(name: str | None, results: str | Path) -> pd.DataFrame | None:
    """Write what texts quote of a notebook's runs to `tables/<experiment>_notes.csv`.

    Args:
        name: of `QUOTED`; None where no text quotes more than the tables.
        results: the results folder.

    Returns:
        All the rows, a table with `tables.TABLE_COLUMNS`; a note's name is in the column `policy`.
    """
    if name is None:
        return None
    found = QUOTED[name](Path(results))
    for experiment, rows in found.items():
        write(table_of(rows), Path(results) / "tables" / f"{experiment}_notes.csv")
    return table_of([row for rows in found.values() for row in rows])
