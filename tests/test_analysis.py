"""Tables against numbers worked out by hand."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from toys import FIXED, a_record, every, small

from modules.checks import RunError
from modules.report.crossing import best_mean_row, crossing, factor_at, factor_curve, headline, in_words
from modules.report.tables import (
    AnalysisError,
    by_policy,
    check_compare,
    curves,
    differences,
    final_difference,
    mean_curves,
    mean_row,
    other_policy,
    read_bounds,
    read_runs,
)
from modules.runs.files import RunFiles


def record_of(**changes):
    return a_record(small(FIXED, **changes))


def table(curve, policy="fixed", seeds=(1, 2, 3, 4, 5), step=10, noise=0.0, diverged=()):
    rng = np.random.default_rng(0)
    rows = []
    for seed in seeds:
        shift = noise * rng.normal()
        for index, accuracy in enumerate(curve, start=1):
            rows.append(
                (policy, seed, seed in diverged, seed / 2, "toy", index * step, 0.1, 1.0, 1.0, accuracy + shift)
            )
    columns = ["policy", "seed", "diverged", "seconds", "label", "iteration", "lr", "train_loss", "val_loss", "val_acc"]
    return pd.DataFrame(rows, columns=columns)


SLOW = table([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6])
FAST = table([0.2, 0.5, 0.7, 0.8], "triangular")


def test_crossing_by_hand():
    found = crossing(curves(SLOW, "fixed"), curves(FAST, "triangular"))
    assert found.target == pytest.approx(0.6)
    assert found.target_iteration == 60
    assert (found.iteration, found.low, found.high) == (30, 30, 30)
    assert found.ratio == pytest.approx((80 / 30, 80 / 30, 80 / 30))
    assert found.symmetric == pytest.approx((2, 2, 2))
    assert found.never == 0


def test_crossing_that_never_happens():
    found = crossing(curves(FAST, "triangular"), curves(SLOW, "fixed"))
    assert np.isnan(found.iteration)
    assert np.isnan(found.ratio[0])
    assert found.never == 1
    assert (found.low, found.high) == (np.inf, np.inf)
    assert found.table.iteration.tolist() == [np.inf]


def test_crossing_that_happens_in_some_resamples_only():
    slow = curves(table([0.2, 0.5]), "fixed")
    fast = slow.copy()
    fast[:] = [[0.1] * 5, [0.4, 0.4, 0.5, 0.6, 0.7]]
    found = crossing(slow, fast)
    assert found.iteration == 20
    assert 0 < found.never < 0.5
    assert (found.low, found.high) == (20, np.inf)
    assert found.ratio[1] == 0


def test_the_shares_are_those_of_all_pairs_of_resamples():
    rng = np.random.default_rng(1)
    steps = pd.Index([10, 20, 30, 40], name="iteration")
    slow = pd.DataFrame(0.5 + 0.1 * rng.random((4, 3)), index=steps)
    fast = pd.DataFrame(0.45 + 0.1 * rng.random((4, 3)) + np.arange(4)[:, None] / 50, index=steps)
    drawn = [list(draw) for draw in product(range(3), repeat=3)]
    first = []
    for one in drawn:
        for other in drawn:
            reached = fast.to_numpy()[:, other].mean(axis=1) >= slow.to_numpy()[:, one].mean(axis=1).max() - 1e-9
            first.append(steps[reached.argmax()] if reached.any() else np.inf)
    expected = pd.Series(first).value_counts(normalize=True)
    found = crossing(slow, fast).table.set_index("iteration").share
    assert len(expected) > 1
    for iteration, share in expected.items():
        assert found[iteration] == pytest.approx(share)


def test_the_confidence_set_inverts_welchs_test():
    steps = pd.Index([10, 20, 30, 40], name="iteration")
    slow = pd.DataFrame([[0.5, 0.51, 0.52]] * 4, index=steps)
    fast = pd.DataFrame([[0.1, 0.11, 0.12], [0.48, 0.5, 0.52], [0.515, 0.525, 0.535], [0.7, 0.71, 0.72]], index=steps)
    found = crossing(slow, fast)
    assert found.iteration == 30
    assert (found.low, found.high) == (20, 40)
    assert found.table[found.table.in_set].iteration.tolist() == [20, 30, 40]
    interval = stats.ttest_ind(fast.loc[20], slow.loc[10], equal_var=False).confidence_interval()
    assert found.table.set_index("iteration").loc[20, ["low", "high"]].tolist() == pytest.approx(list(interval))


def test_runs_of_one_seed_are_not_drawn_together():
    slow = table([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], noise=0.1)
    fast = table([0.2, 0.4, 0.6, 0.8], "triangular", noise=0.1)
    same, other = crossing(curves(slow, "fixed"), curves(fast, "triangular")), fast.assign(seed=fast.seed + 10)
    pd.testing.assert_frame_equal(same.table, crossing(curves(slow, "fixed"), curves(other, "triangular")).table)
    assert (same.table.share > 0).sum() > 1


def test_many_runs_are_drawn_and_independently_of_each_other():
    slow = table([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], seeds=range(1, 13), noise=0.1)
    fast = table([0.2, 0.4, 0.6, 0.8], "triangular", seeds=range(1, 13), noise=0.1)
    found = crossing(curves(slow, "fixed"), curves(fast, "triangular"))
    assert found.table.share.sum() == pytest.approx(1)
    assert (found.table.share > 0).sum() > 1  # pairs of one seed would all cross at 30


def test_the_factor_is_a_curve_over_the_target():
    curve = factor_curve(curves(SLOW, "fixed"), curves(FAST, "triangular")).set_index("target")
    assert curve.index[0] == pytest.approx(0.21)
    assert curve.index[-1] == pytest.approx(0.6)
    found = curve.loc[0.45]
    assert (found.baseline_iteration, found.challenger_iteration, found.factor) == (50, 20, 2.5)
    assert (found.low, found.high) == (2.5, 2.5)
    never = factor_at(curves(SLOW, "fixed"), curves(FAST, "triangular"), 0.7)
    assert (never["baseline_iteration"], never["challenger_iteration"], never["value"]) == (np.inf, 30, np.inf)
    assert factor_curve(curves(SLOW, "fixed"), curves(FAST, "triangular").iloc[:, :0]).empty


def test_a_best_mean_of_one_evaluation_has_students_error():
    values = [0.70, 0.72, 0.74, 0.75, 0.79]
    found = best_mean_row(pd.DataFrame([values]))
    assert (found["value"], found["error"]) == pytest.approx((np.mean(values), stats.sem(values)))
    assert found["df"] == 4


def test_a_mean_has_students_interval():
    values = np.array([0.70, 0.72, 0.74, 0.75, 0.79])
    found = mean_row(values)
    assert found["value"] == pytest.approx(0.74)
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    assert found["error"] == pytest.approx(stats.sem(values))
    expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert (found["method"], found["df"]) == ("Student", 4)


def test_headline_in_words():
    assert in_words(headline(pd.concat([SLOW, FAST]))) == (
        "The mean of triangular first reached 60.00 %, the best mean of fixed, after 30 iterations,\n"
        "2.67 [2.67, 2.67] times fewer than that policy was given.\n"
        "At the end, the two differ by +20.00 points (all runs equal) (interval: Welch)."
    )
    one = headline(pd.concat([SLOW, FAST]).query("seed == 1"))
    assert in_words(one).endswith("differ by +20.00 points; of one run a policy there is no interval.")
    slower = headline(pd.concat([FAST, SLOW]), "triangular", "fixed")
    assert in_words(slower).startswith("The mean of fixed never reached 80.00 %, the best mean of triangular.")
    lost = pd.concat([SLOW, table([0.3, 0.4], "triangular", diverged=(1, 2, 3, 4, 5))])
    assert "all runs of a policy diverged" in in_words(headline(lost))


def test_one_run_has_no_interval():
    found = mean_row([0.5])
    assert found["value"] == 0.5
    assert found["method"] is None
    assert np.isnan([found["std"], found["low"], found["high"], found["error"]]).all()
    one = headline(pd.concat([table([0.1, 0.2], seeds=(1,)), table([0.3], "triangular", seeds=(1,))]))
    assert one.set_index("quantity").loc["crossing_iteration", "value"] == 10
    assert one.low.isna().all()


@pytest.mark.parametrize("lost", ["fixed", "triangular"])
def test_policy_of_which_every_run_diverged_has_no_numbers(lost):
    whole = FAST if lost == "fixed" else SLOW
    runs = pd.concat([whole, table([0.2], lost, diverged=(1, 2, 3, 4, 5))])
    lines = headline(runs).set_index(["quantity", "policy"])
    assert lines.loc[("final_accuracy", lost), "diverged"] == 5
    assert np.isnan(lines.loc[("final_accuracy", lost), "value"])
    assert np.isnan(lines.loc[("crossing_iteration", "triangular"), "value"])
    assert np.isnan(lines.loc[("never_crossed_share", "triangular"), "value"])
    assert mean_curves(runs).policy.nunique() == 1
    with pytest.raises(AnalysisError, match="no run with the policy 'fixed'"):
        headline(table([0.2], "triangular"))


def test_mean_curves():
    lines = mean_curves(pd.concat([SLOW, FAST])).set_index(["policy", "iteration"])
    assert lines.loc[("triangular", 20), "mean"] == pytest.approx(0.5)
    assert lines.loc[("fixed", 80), "runs"] == 5


def test_unreadable_results_are_named(tmp_path):
    with pytest.raises(AnalysisError, match="no complete run in"):
        read_runs(tmp_path)
    with pytest.raises(AnalysisError, match="run the range test there first"):
        read_bounds(tmp_path)
    record = record_of(seed=1)
    files = RunFiles(tmp_path, "fixed-seed1")
    files.finish([(1, 0.1, 1.0, 1.0, 0.5)], record)
    assert read_runs(tmp_path).val_acc.tolist() == [0.5]
    files.csv.write_text(files.csv.read_text().replace("0.5", "0.9"))
    with pytest.raises(RunError, match="fixed-seed1.csv is not as the run wrote it"):
        read_runs(tmp_path)


def test_run_that_diverged_before_its_first_evaluation_is_counted(tmp_path):
    for seed, rows in ((1, [(5, 0.1, 1.0, 1.0, 0.5)]), (2, [])):
        record = {**record_of(seed=seed, evaluate_every=5), "diverged": not rows}
        RunFiles(tmp_path, f"fixed-seed{seed}").finish(rows, record)
    runs = read_runs(tmp_path)
    assert runs.iteration.tolist() == [5, 5]
    assert runs[runs.diverged].seed.tolist() == [2]
    assert runs[runs.diverged].val_acc.isna().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(momentum=0.5), "different settings"),
        (dict(fingerprint="other"), "different data"),
        (dict(name="copy-of-fixed-seed2"), "is the run fixed-seed2"),
    ],
)
def test_runs_that_do_not_belong_together_are_named(tmp_path, changes, message):
    for seed in (1, 2):
        odd = {"momentum": 0.9, "fingerprint": "same", "name": f"fixed-seed{seed}", **(changes if seed == 2 else {})}
        record = record_of(seed=seed, momentum=odd["momentum"])
        record["data"]["fingerprint"] = odd["fingerprint"]
        RunFiles(tmp_path, odd["name"]).finish([(1, 0.1, 1.0, 1.0, 0.5)], record)
    with pytest.raises(AnalysisError, match=message):
        read_runs(tmp_path)


def test_exact_ties_count_as_reached_whatever_the_rounding():
    base = table([0.1, 0.3], seeds=range(1, 4))
    fast = table([0.3], "triangular", seeds=range(1, 4))
    base.loc[base.iteration == 20, "val_acc"] = [0.1, 0.3, 0.5]
    fast["val_acc"] = [0.5, 0.3, 0.1]
    assert crossing(curves(base, "fixed"), curves(fast, "triangular")).iteration == 10


def test_the_other_policy_is_found_where_there_is_one():
    runs = pd.concat([SLOW, FAST])
    assert other_policy(runs, "fixed") == "triangular"
    for several in (SLOW, pd.concat([runs, table([0.2], "exp")])):
        with pytest.raises(AnalysisError, match="choose one of the policies beside 'fixed'"):
            other_policy(several, "fixed")


def test_a_variant_is_a_policy_of_its_own_in_tables(tmp_path):
    for variant, batch in (("small_batch", 10), ("large_batch", 100)):
        name = f"{variant}-seed1"
        RunFiles(tmp_path, name).finish([(5, 0.1, 1.0, 1.0, 0.5)], record_of(variant=variant, batch_size=batch))
    assert set(read_runs(tmp_path).policy) == {"small_batch", "large_batch"}


def test_a_record_that_is_no_spec_is_named_in_one_line(tmp_path):
    record = record_of(seed=1)
    del record["spec"]["iterations"]
    RunFiles(tmp_path, "fixed-seed1").finish([(5, 0.1, 1.0, 1.0, 0.5)], record)
    with pytest.raises(RunError, match=r"fixed-seed1.csv: iterations is missing") as error:
        read_runs(tmp_path)
    assert "\n" not in str(error.value)


def test_means_by_policy_leave_diverged_runs_out_and_count_them():
    runs = pd.concat([table([0.1, 0.4, 0.3], "b"), table([0.2, 0.5], "a", diverged=(5,))])
    got = by_policy(runs, ("iterations", "final_accuracy", "best_accuracy", "seconds")).set_index(
        ["quantity", "policy"]
    )
    assert got.index.get_level_values("policy").tolist() == ["b", "a"] * 4
    assert curves(runs, "a").shape == (2, 4)
    assert got.value["iterations"].tolist() == [30, 20]
    assert got.value["final_accuracy"].tolist() == pytest.approx([0.3, 0.5])
    assert got.value["best_accuracy"].tolist() == pytest.approx([0.4, 0.5])
    assert got.value["seconds"].tolist() == pytest.approx([1.5, 1.25])
    assert got.runs.tolist() == [5] * 8
    assert got.diverged["final_accuracy"].tolist() == [0, 1]


def arms(**values):
    """Runs of one evaluation each, by arm."""
    return pd.concat(
        [table([0.0], name, seeds=range(1, len(ends) + 1)).assign(val_acc=ends) for name, ends in values.items()]
    )


A, B, C = [0.70, 0.72, 0.74], [0.69, 0.70, 0.74], [0.60, 0.65, 0.63]


@pytest.mark.parametrize(
    ("method", "expected"), [("welch", stats.ttest_ind(A, B, equal_var=False)), ("pairs", stats.ttest_rel(A, B))]
)
def test_a_difference_says_its_method(method, expected):
    row = final_difference(arms(a=A, b=B), "a", "b", method)
    assert (row["policy"], row["runs"], row["method"].lower()) == ("a - b", 3, method)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval()))


def test_a_pooled_difference_takes_the_arms_that_were_named():
    runs = arms(a=A, b=B, c=C)
    compare = [{"pooled": ["a", "b", "c"]}, ["a", "b"], {"a": "a", "b": "c", "method": "pooled", "note": "why"}]
    welch, pooled = differences(runs, compare).to_dict("records")
    assert (welch["method"], pooled["method"], pooled["note"], pooled["df"]) == ("Welch", "pooled", "why", 6)
    sd = np.sqrt(np.mean([np.var(arm, ddof=1) for arm in (A, B, C)]))
    assert pooled["error"] == pytest.approx(sd * np.sqrt(2 / 3))


def test_pairs_are_those_of_a_seed_and_blocks_those_of_a_fold():
    runs = arms(a=A, b=B)
    kept = runs[(runs.policy == "a") | (runs.seed != 3)]
    assert final_difference(kept, "a", "b", "pairs")["runs"] == 2
    with pytest.raises(AnalysisError, match="these runs have no folds"):
        final_difference(runs.assign(fold=None), "a", "b", "blocks")
    assert final_difference(runs.assign(fold=runs.seed % 2), "a", "b", "blocks")["df"] == 3


def test_accuracy_on_test_images_comes_from_the_record_where_rows_are_of_others(tmp_path):
    changes = dict(split="validation", evaluation="validation", test_at_end=True)
    record = record_of(seed=1, **changes) | {"test": {"loss": 1.0, "accuracy": 0.4}}
    RunFiles(tmp_path, "fixed-seed1").finish([(5, 0.1, 1.0, 1.0, 0.5)], record)
    rows = by_policy(read_runs(tmp_path), ("final_accuracy", "best_accuracy")).set_index("quantity").value
    assert (rows["final_accuracy"], rows["best_accuracy"]) == (0.4, 0.5)


@every(
    ("compare", "message"),
    [
        (["a"], "two variants of a, b, c are needed, not 'a'"),
        ([["a", "d"]], "two variants of a, b, c are needed, not \\['a', 'd'\\]"),
        ([["a", "b"], {"a": "a", "b": "b"}], "a - b stands there twice"),
        ([{"a": "a", "b": "b", "methods": "welch"}], "a, b, method and note are known, not methods"),
        ([{"a": "a", "b": "b", "method": "t"}], "method='t': one of welch, pooled, pairs, blocks"),
        ([{"a": "a", "b": "b", "method": "pooled"}], "needs an entry {pooled"),
        ([{"pooled": ["d"]}], "pooled: variants of a, b, c"),
        ([{"pooled": "a"}], "pooled: variants of a, b, c"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_named(compare, message):
    with pytest.raises(RunError, match=message) as error:
        check_compare(compare, ["a", "b", "c"])
    assert "\n" not in str(error.value)


def test_intervals_end_where_the_values_can():
    wide = mean_row([0.1, 0.9])
    assert wide["low"] < 0 < 1 < wide["high"]
    cut = mean_row([0.1, 0.9], 0, 1)
    assert (cut["low"], cut["high"]) == (0, 1)
