"""Tables against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from toys import FIXED, small

from modules.checks import RunError
from modules.report.crossing import crossing, headline, in_words
from modules.report.tables import (
    AnalysisError,
    by_policy,
    curves,
    final_difference,
    interval_of_mean,
    mean_curves,
    other_policy,
    read_bounds,
    read_runs,
)
from modules.runs.files import RunFiles


def a_record(**changes):
    """What the JSON of a finished run holds, as far as tables need it."""
    spec = small(FIXED, **changes).model_dump(mode="json")
    return {"spec": spec, "diverged": False, "seconds": 1.0, "data": {"label": "toy", "fingerprint": "same"}}


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
    assert found.ratio == pytest.approx(80 / 30)
    assert found.never == 0


def test_crossing_that_never_happens():
    found = crossing(curves(FAST, "triangular"), curves(SLOW, "fixed"))
    assert np.isnan(found.iteration)
    assert np.isnan(found.ratio)
    assert found.never == 1
    assert found.high == np.inf


def test_crossing_that_happens_in_some_resamples_only():
    slow = curves(table([0.2, 0.5]), "fixed")
    fast = slow.copy()
    fast[:] = [[0.1] * 5, [0.4, 0.4, 0.5, 0.6, 0.7]]
    found = crossing(slow, fast)
    assert found.iteration == 20
    assert 0 < found.never < 0.5
    assert found.high == np.inf
    assert found.ratio_low == 0


def test_paired_resampling_cancels_what_a_seed_does_to_both():
    slow = table([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], noise=0.1)
    fast = table([0.2, 0.4, 0.6, 0.8], "triangular", noise=0.1)
    paired = crossing(curves(slow, "fixed"), curves(fast, "triangular"))
    assert (paired.low, paired.high) == (30, 30)
    fast["seed"] += 10
    unpaired = crossing(curves(slow, "fixed"), curves(fast, "triangular"))
    assert unpaired.low < unpaired.high


def test_interval_of_mean():
    values = np.array([0.70, 0.72, 0.74, 0.75, 0.79])
    found = interval_of_mean(values)
    assert found["value"] == pytest.approx(0.74)
    assert found["std"] == pytest.approx(np.std(values, ddof=1))
    half = stats.t.ppf(0.975, 4) * found["std"] / np.sqrt(5)
    assert (found["t_low"], found["t_high"]) == pytest.approx((0.74 - half, 0.74 + half))
    assert found["t_low"] < found["low"] < 0.74 < found["high"] < found["t_high"]


def test_four_runs_have_no_interval_of_the_crossing():
    slow, fast = (runs[runs.seed < 5] for runs in (SLOW, FAST))
    found = crossing(curves(slow, "fixed"), curves(fast, "triangular"))
    assert found.iteration == 30
    assert np.isnan([found.low, found.high, found.ratio_low, found.ratio_high, found.never]).all()


def test_headline_in_words():
    assert in_words(headline(pd.concat([SLOW, FAST]))) == (
        "The mean of triangular first reached 60.00 %, the best mean of fixed, after 30 iterations,\n"
        "2.67 [2.67, 2.67] times fewer than that policy was given.\n"
        "At the end, the two differ by +20.00 points [+20.00, +20.00] (Student's interval)."
    )
    one = headline(pd.concat([SLOW, FAST]).query("seed == 1"))
    assert in_words(one).endswith("differ by +20.00 points; of so few runs there is no interval.")
    slower = headline(pd.concat([FAST, SLOW]), "triangular", "fixed")
    assert in_words(slower).startswith("The mean of fixed never reached 80.00 %, the best mean of triangular.")
    apart = headline(pd.concat([SLOW.query("seed == 1"), FAST.query("seed == 2")]))
    assert in_words(apart).endswith("\nNo seed finished under both policies, so their ends cannot be compared.")
    lost = pd.concat([SLOW, table([0.3, 0.4], "triangular", diverged=(1, 2, 3, 4, 5))])
    assert "all runs of a policy diverged" in in_words(headline(lost))


def test_one_run_has_no_interval():
    found = interval_of_mean([0.5])
    assert found["value"] == 0.5
    assert np.isnan([found["std"], found["low"], found["high"], found["t_low"]]).all()
    one = headline(pd.concat([table([0.1, 0.2], seeds=(1,)), table([0.3], "triangular", seeds=(1,))]))
    assert one.set_index("quantity").loc["crossing_iteration", "value"] == 10
    assert one.low.isna().all()


def test_headline_table():
    lines = headline(pd.concat([SLOW, FAST])).set_index(["quantity", "policy"])
    assert lines.loc[("iterations", "fixed"), "value"] == 80
    assert lines.loc[("final_accuracy", "triangular"), "value"] == pytest.approx(0.8)
    assert lines.loc[("best_accuracy", "fixed"), "value"] == pytest.approx(0.6)
    assert lines.loc[("final_accuracy_difference", "triangular - fixed"), "value"] == pytest.approx(0.2)
    assert lines.loc[("crossing_iteration", "triangular"), "value"] == 30


def test_diverged_runs_are_left_out_and_counted():
    runs = pd.concat([SLOW, table([0.2, 0.5, 0.7, 0.8], "triangular", diverged=(2,))])
    lines = headline(runs).set_index(["quantity", "policy"])
    assert lines.loc[("final_accuracy", "triangular"), "diverged"] == 1
    assert curves(runs, "triangular").shape == (4, 4)


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
    record = a_record(seed=1)
    files = RunFiles(tmp_path, "fixed-seed1")
    files.finish([(1, 0.1, 1.0, 1.0, 0.5)], record)
    assert read_runs(tmp_path).val_acc.tolist() == [0.5]
    files.csv.write_text(files.csv.read_text().replace("0.5", "0.9"))
    with pytest.raises(RunError, match="fixed-seed1.csv is not as the run wrote it"):
        read_runs(tmp_path)


def test_run_that_diverged_before_its_first_evaluation_is_counted(tmp_path):
    for seed, rows in ((1, [(5, 0.1, 1.0, 1.0, 0.5)]), (2, [])):
        record = {**a_record(seed=seed, evaluate_every=5), "diverged": not rows}
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
        record = a_record(seed=seed, momentum=odd["momentum"])
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
        RunFiles(tmp_path, name).finish([(5, 0.1, 1.0, 1.0, 0.5)], a_record(variant=variant, batch_size=batch))
    assert set(read_runs(tmp_path).policy) == {"small_batch", "large_batch"}


def test_a_record_that_is_no_spec_is_named_in_one_line(tmp_path):
    record = a_record(seed=1)
    del record["spec"]["iterations"]
    RunFiles(tmp_path, "fixed-seed1").finish([(5, 0.1, 1.0, 1.0, 0.5)], record)
    with pytest.raises(AnalysisError, match=r"fixed-seed1.json: iterations=.*required") as error:
        read_runs(tmp_path)
    assert "\n" not in str(error.value)


def test_means_by_policy_leave_diverged_runs_out_and_count_them():
    runs = pd.concat([table([0.1, 0.4, 0.3], "b"), table([0.2, 0.5], "a", diverged=(5,))])
    got = by_policy(runs, ("iterations", "final_accuracy", "best_accuracy", "seconds")).set_index(
        ["quantity", "policy"]
    )
    assert got.index.get_level_values("policy").tolist() == ["b", "a"] * 4
    assert got.value["iterations"].tolist() == [30, 20]
    assert got.value["final_accuracy"].tolist() == pytest.approx([0.3, 0.5])
    assert got.value["best_accuracy"].tolist() == pytest.approx([0.4, 0.5])
    assert got.value["seconds"].tolist() == pytest.approx([1.5, 1.25])
    assert got.runs.tolist() == [5] * 8
    assert got.diverged["final_accuracy"].tolist() == [0, 1]


def test_fewer_than_five_runs_have_students_interval_in_both_places():
    got = interval_of_mean([0.1, 0.2, 0.4])
    low, high = stats.t.interval(0.95, 2, np.mean([0.1, 0.2, 0.4]), stats.sem([0.1, 0.2, 0.4]))
    assert (got["low"], got["high"]) == (got["t_low"], got["t_high"]) == pytest.approx((low, high))
    five = interval_of_mean([0.1, 0.2, 0.4, 0.3, 0.2])
    assert five["t_low"] < five["low"] < five["high"] < five["t_high"]


def test_final_difference_is_taken_between_runs_with_the_same_seed():
    a = pd.concat([table([0.1, 0.5], "a", seeds=[seed], noise=0) for seed in (1, 2, 3)])
    a["val_acc"] += a.seed / 10
    b = table([0.1, 0.3], "b", seeds=(2, 3, 4))
    row = final_difference(pd.concat([a, b]), "a", "b")
    assert (row["policy"], row["runs"]) == ("a - b", 2)
    assert row["value"] == pytest.approx(0.45)
    assert np.isnan(final_difference(pd.concat([a[a.seed == 1], b]), "a", "b")["value"])


def test_intervals_end_where_the_values_can():
    wide = interval_of_mean([0.1, 0.9])
    assert wide["low"] < 0 < 1 < wide["high"]
    cut = interval_of_mean([0.1, 0.9], 0, 1)
    assert (cut["low"], cut["high"], cut["t_low"], cut["t_high"]) == (0, 1, 0, 1)
