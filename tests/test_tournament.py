"""The second tournament: its registration and runs, its estimator, its rule on made-up runs, theory's bounds."""

import hashlib
import json
import math
import re
import subprocess
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import ROOT

from modules.checks import RunError
from modules.runs.files import RunFiles, complete_runs
from modules.runs.training import branches_of, leaves_at
from modules.statistics import AnalysisError, Estimate
from modules.tournament import analysis, pictures, theory
from modules.tournament.design import Tournament, filled, read

REGISTERED = ROOT / "studies" / "registered" / "tournament-2.yaml"
SMALL = REGISTERED.with_name("tournament-2-smoke.yaml")


@cache
def registered():
    return Tournament(REGISTERED, "cifar10", "bfloat16", "nowhere")


LEVEL = analysis.level(0.05, 7)

# What every made-up run ends with: a parabola in the octave about the arm's own best rate.
TOPS = {"constant": -0.4, "linear": 0.4}


def made_up(question, effects=None, sd=0.004, collapsed=None):
    """A question's runs as `Tournament.table` gives them, with accuracies that are made up.

    `effects`: what is added to an arm's accuracy, also by (arm, budget); `collapsed`: how many of an arm's runs.
    """
    rng, rows, effects = np.random.default_rng(0), [], effects or {}
    for arm, octave, budget, seed in registered().keys(question):
        level = 0.75 + effects.get(arm, 0) + effects.get((arm, budget), 0) - 0.006 * (octave - TOPS.get(arm, 0.1)) ** 2
        rows.append([arm, octave, budget, seed, level, level - 0.002, level + 0.001])
    table = pd.DataFrame(rows, columns=["arm", "octave", "budget", "seed", "validation", "test", "average"])
    for column in ("validation", "test", "average"):
        noise = pd.Series(rng.normal(0, sd, len(table)))
        # Centred in each arm, rate and length, so that estimates are the true effects, whatever is drawn.
        table[column] += noise - noise.groupby([table.arm, table.octave, table.budget]).transform("mean")
    table["collapsed"] = False
    for arm, count in (collapsed or {}).items():
        lost = table.index[(table.arm == arm) & (table.octave == 3)][:count]
        table.loc[lost, ["validation", "test"]], table.loc[lost, "collapsed"] = 0.1, True
    return table


def said(question, **settings):
    design = registered().design
    return analysis.verdicts(analysis.differences(design, question, made_up(question, **settings)))


@pytest.mark.parametrize(
    ("share", "noise", "expected"),
    [(0.0, 1, "not needed"), (1.5, 1, "helps"), (-1.5, 1, "harms"), (0.7, 4, "not resolved")],
)
@pytest.mark.parametrize(
    ("question", "name", "arm", "margin", "sd"),
    [
        ("accuracy", "D1", "cycle_drop", 0.005, 0.004),
        ("accuracy", "D2", "cycle", 0.005, 0.004),
        ("forgiveness", "F", "cycle_drop", 0.01, 0.006),
        *(("any_time", f"A{number}", ("cycle", 1800 * number), 0.005, 0.004) for number in (1, 2, 3, 4)),
    ],
)
def test_the_rule_comes_to_each_of_its_outcomes(question, name, arm, margin, sd, share, noise, expected):
    found = said(question, effects={arm: margin * share}, sd=sd * noise)
    assert found.pop(name) == expected
    if noise == 1 and question != "accuracy":  # whose other difference has that arm, too
        assert list(found.values()) == ["not needed"] * (3 if question == "any_time" else 0)


def test_where_most_of_the_controls_runs_collapse_the_swing_helps_and_where_a_few_do_nothing_is_resolved():
    assert said("forgiveness", collapsed={"warm58_drop": 20}) == {"F": "helps"}
    assert said("forgiveness", collapsed={"cycle_drop": 20}) == {"F": "harms"}
    assert said("forgiveness", collapsed={"warm58_drop": 2}) == {"F": "not resolved"}
    design, runs = registered().design, made_up("forgiveness", collapsed={"warm58_drop": 20})
    note = analysis.differences(design, "forgiveness", runs).note[0]
    assert re.match(r"F: helps; collapsed: 0 of 24 \(.* 12 %\), 20 of 24 \(.* 94 %\), .* p below 0.001", note)
    none = analysis.differences(design, "forgiveness", made_up("forgiveness")).note
    assert re.fullmatch(r"F: not needed; collapsed: 0 of 24 \(.* 12 %\), 0 of 24 \(.* 12 %\)", none[0])
    assert analysis.at_most(0, 24) == pytest.approx(1 - 0.05 ** (1 / 24))
    assert pd.isna(none.iloc[-1])  # at R itself
    shares = analysis.ends(runs, design.iterations).set_index(["quantity", "policy"]).value
    assert shares["share", "warm58_drop at 8"] == pytest.approx(20 / 24)


def test_the_table_shows_the_interval_that_the_verdict_is_read_off():
    design = registered().design
    assert len(design.primary) == 7
    table = analysis.differences(design, "accuracy", made_up("accuracy"))
    for row in table.itertuples():
        primary = row.quantity == "registered_difference"
        ends = Estimate(row.value, row.error, row.df).interval(LEVEL if primary else 0.95)
        assert (row.low, row.high) == pytest.approx(ends)
    assert table.policy.tolist()[:2] == ["cycle_drop - constant_drop", "cycle - linear"]


@pytest.mark.parametrize(
    ("one", "share", "note"),
    [
        ("not needed", 1.0, "a good any-time schedule"),
        ("helps", 1.0, "a good any-time schedule"),
        ("harms", 0.75, "not shown to be a good any-time schedule"),
        ("not resolved", 0.75, "not shown to be a good any-time schedule"),
    ],
)
def test_one_run_is_good_at_any_time_if_no_budget_says_that_it_is_worse_or_unknown(one, share, note):
    found = {"D1": "harms", **dict.fromkeys(("A1", "A3", "A4"), "not needed"), "A2": one}
    (row,) = analysis.any_time(registered().design, found).itertuples()
    assert (row.policy, row.value, row.note) == ("cycle any time", share, note)
    del found["A4"]
    assert analysis.any_time(registered().design, found).empty


def test_what_is_judged_is_trained_before_what_is_described():
    assert registered().questions == ["accuracy", "forgiveness", "any_time", "untuned", "description"]


def test_a_curve_without_a_top_inside_gives_no_verdict():
    runs = made_up("accuracy")
    rising = runs.arm == "cycle_drop"
    runs.loc[rising, "validation"] += 0.03 * runs.octave[rising]
    design = registered().design
    table = analysis.differences(design, "accuracy", runs)
    assert table.note[0] == "D1: not resolved; no top inside the ladder"
    figure = pictures.accuracy_and_forgiveness(registered(), {"accuracy": runs}, "")
    assert "hollow" in figure.axes[0].get_legend().get_title().get_text()
    arms = analysis.arms(design, runs).set_index(["quantity", "policy"])
    assert arms.loc[("lr", "cycle_drop"), "value"] == pytest.approx(0.002)  # the ladder's end


def parabola(place, height=0.75, noise=0.0, octaves=(-1.0, 0.0, 1.0), runs=8, seed=0):
    rng = np.random.default_rng(seed)
    return {x: height - 0.006 * (x - place) ** 2 + rng.normal(0, noise, runs) for x in octaves}


@given(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9))
def test_the_top_is_placed_on_validation_and_valued_on_test_images(chosen, tested):
    found = analysis.top(parabola(chosen), parabola(tested))
    assert found.inside
    assert found.octave == pytest.approx(chosen, abs=1e-6)
    assert found.accuracy.value == pytest.approx(0.75 - 0.006 * (chosen - tested) ** 2, abs=1e-9)


def test_the_tops_error_is_what_it_varies_by_place_included():
    """Where the test images have another best rate, what the place is worth counts."""
    draws = [
        analysis.top(
            parabola(0.3, noise=0.004, runs=40, seed=2 * n), parabola(-0.6, noise=0.002, runs=40, seed=2 * n + 1)
        )
        for n in range(400)
    ]
    inside = [draw for draw in draws if draw.inside]
    varies = np.std([draw.accuracy.value for draw in inside])
    alone = 0.002 / math.sqrt(40)
    assert varies > 1.3 * alone
    assert np.median([draw.accuracy.error for draw in inside]) == pytest.approx(varies, rel=0.15)
    assert np.median([draw.placed for draw in inside]) == pytest.approx(
        np.std([draw.octave for draw in inside]), rel=0.2
    )


def test_a_curve_of_more_rates_is_the_least_squares_parabola_of_its_runs():
    octaves = (-2.0, -1.0, 0.0, 1.0, 2.0)
    runs = parabola(0.2, noise=0.003, octaves=octaves)
    coefficients = np.polyfit(np.repeat(octaves, 8), np.concatenate(list(runs.values())), 2)
    found = analysis.top(runs, runs)
    assert found.octave == pytest.approx(-coefficients[1] / (2 * coefficients[0]))
    assert found.accuracy.value == pytest.approx(np.polyval(coefficients, found.octave))


def test_too_few_runs_and_runs_that_do_not_belong_together_are_refused():
    with pytest.raises(AnalysisError, match="three rates with two runs each"):
        analysis.top(parabola(0, octaves=(0.0, 1.0)), parabola(0, octaves=(0.0, 1.0)))
    with pytest.raises(AnalysisError, match="of the same runs"):
        analysis.top(parabola(0), parabola(0, runs=9))


def test_predictions_are_set_beside_what_was_measured():
    design = registered().design
    measured = {arm: 1 - bound / 10 for arm, bound in design.predicted.items()}
    best = ["cycle", "cycle_drop", "linear"]
    table = analysis.predicted(design, measured, ["constant", "linear"], best).set_index(["quantity", "policy"])
    assert table.value[["tau"]].tolist() == pytest.approx([1, 1, 1])
    assert (table.runs["tau", "new"], table.runs["tau", "at their best"]) == (len(measured) - 2, 3)


def test_registered_predictions_are_the_formulas():
    tournament = registered()
    bounds = {
        arm: theory.last_iterate(np.array(tournament.spec(arm, 0, 1).policy.rates(tournament.design.iterations))).value
        for arm in tournament.design.predicted
    }
    for arm, expected in tournament.design.predicted.items():
        assert bounds[arm] / bounds["constant"] == pytest.approx(expected, abs=6e-4), arm


def test_a_bound_is_the_sum_that_theory_writes():
    """Term by term, at the rate that the function says is best; a neighbour is worse."""
    e = np.array([1.0, 0.5, 2.0, 0.25])

    def bound(r):
        s, q = ([sum(x[k:]) for k in range(4)] for x in (e, e**2))
        inner = sum(e[k] / s[k + 1] * q[k] / s[k] for k in range(3))
        return 1 / (2 * r * s[0]) + r / 2 * (q[0] / s[0] + inner)

    found = theory.last_iterate(e)
    assert found.value == pytest.approx(bound(found.rate))
    assert min(bound(1.1 * found.rate), bound(found.rate / 1.1)) > found.value
    assert theory.last_iterate(3 * e).value == pytest.approx(found.value)


def test_every_registered_run_is_whole_and_reads_the_test_images_at_its_end():
    tournament = registered()
    seen = {}
    for question in tournament.design.questions:
        for run in tournament.specs(question):
            assert seen.setdefault(run.name, run) == run
            assert (run.split, run.evaluation, run.test_at_end) == ("validation", "validation", True)
            assert (run.precision, run.registration) == ("bfloat16", tournament.checksum)
    assert len(seen) == len({run.model_copy(update={"variant": None}) for run in seen.values()})


def test_runs_of_another_question_that_go_on_from_a_questions_own_are_made_with_them():
    tournament = registered()
    asked = tournament.to_make("accuracy")
    trunks = branches_of(asked)
    found = {run.name: leaves_at(run, trunk) for trunk in asked for run in trunks.get(trunk.name, ())}
    assert found["cycle_0.001_1800-seed1"] == 1800
    assert found["constant_drop_0.001_1800-seed32"] == 1350
    assert found["constant_drop_0.001-seed1"] == found["cycle_drop_0.001-seed1"] == 5400
    # Trained alone they would be more than 3 million.
    work = tournament.work().set_index("question")
    assert work.runs["any_time"] == 416
    assert work.iterations["accuracy"] < 1_400_000
    assert work.iterations["any_time"] < 20_000


def test_bad_registrations_and_other_precisions_are_refused(tmp_path):
    with pytest.raises(RunError, match="precision='float16': choose from bfloat16, float32"):
        Tournament(REGISTERED, "digits", "float16", tmp_path)
    with pytest.raises(RunError, match="cannot be read"):
        read(tmp_path / "nowhere.yaml")
    text = SMALL.read_text()
    for old, new, why in (
        ("arms: [one_cycle, cycles_2]", "arms: [one_cycle, cycles_3]", "unknown arms cycles_3"),
        ("margin: 0.02", "margins: 0.02", "margins=0.02: no such setting"),
        ("alpha: 0.05", "", "alpha"),
        ("rate: 0.1\n", "rate: -1\n", "rate=-1"),
    ):
        (tmp_path / "design.yaml").write_text(text.replace(old, new))
        with pytest.raises(RunError, match=why):
            read(tmp_path / "design.yaml")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_picture_says_what_is_not_trained_yet_and_how_many_runs_collapsed():
    tournament = registered()
    assert texts(pictures.accuracy_and_forgiveness(tournament, {}, "")) == ["not trained yet"] * 2
    runs = {"accuracy": made_up("accuracy"), "forgiveness": made_up("forgiveness", collapsed={"warm58_drop": 20})}
    figure = pictures.accuracy_and_forgiveness(tournament, runs, "")
    line = {line.get_label(): line for line in figure.axes[1].lines}["CLR, drop"]
    # A cycle's mean is 5/8 of its peak; under the drop, half of that.
    expected = np.array([0.0005, 0.001, 0.002, 0.004, 0.008, 0.016]) * (0.75 * 5 / 8 + 0.25 * 5 / 16)
    np.testing.assert_allclose(line.get_xdata(), expected, rtol=0.01)
    names = [line.get_label() for line in figure.axes[1].lines]
    lost = dict(zip(names, [line.get_ydata().max() for line in figure.axes[2].lines], strict=True))
    assert {name: share for name, share in lost.items() if share} == {"climb, CLR's mean rate, drop": 20 / 24}


def test_a_saw_tooth_has_the_ends_of_every_budget(digits):
    figure = pictures.saw_tooth(digits, digits.table("any_time"), "")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    runs = digits.table("any_time").query("arm == 'cycle' and octave == 0").groupby("budget").validation.mean()
    found = lines["CLR at a cycle's end"]
    assert found.get_xdata().tolist() == runs.index.tolist() == [40, 80, 120, 160]
    np.testing.assert_allclose(found.get_ydata(), runs)
    on_the_way = lines["CLR, never restarted"]
    assert dict(zip(on_the_way.get_xdata(), on_the_way.get_ydata(), strict=True))[40] == pytest.approx(runs[40])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The small registration, trained."""
    tournament = Tournament(SMALL, "digits-8x8", "float32", tmp_path_factory.mktemp("results") / "tournament_2")
    assert not any(map(tournament.complete, tournament.questions))
    for question in tournament.questions:
        tournament.play(question, workers=2)
    return tournament


def test_a_small_tournament_is_trained_question_by_question(digits):
    assert all(map(digits.complete, digits.questions))
    work = digits.work()
    assert (work.runs == work.complete).all()
    for question in digits.design.questions:
        runs = digits.table(question)
        assert len(runs) == len(digits.specs(question))
        assert runs.test.between(0.05, 1).all()
        assert set(analysis.verdicts(analysis.differences(digits.design, question, runs)).values()) <= {
            *("not needed", "helps", "harms", "not resolved")
        }
    forked = [json.loads(path.read_text()).get("forked") for path in digits.folder.glob("constant_drop_0.1_*.json")]
    assert len([found for found in forked if found]) == 9


def test_without_tuning_each_run_takes_its_rate_from_its_own_range_test(digits):
    runs = digits.untuned_table().set_index(["rule", "arm", "seed"])
    assert len(runs) == 12
    for seed in (1, 2):
        one, other = runs.rate["lowest", "constant_drop", seed], runs.rate["lowest", "cycle_drop", seed]
        assert one == pytest.approx(other / 2, rel=1e-3)
    lengths = {run.iterations for run in digits.untuned_runs().values()}
    ramps = {rule.ramp for rule in digits.design.untuned.rules.values()}
    assert lengths == {digits.design.iterations - ramp for ramp in ramps}
    table = analysis.untuned(digits.untuned_table(), "constant_drop").set_index(["quantity", "policy"])
    assert table.runs["described_difference", "linear - constant_drop advised"] == 2


def test_missing_and_changed_runs_are_errors(digits):
    run = digits.specs("description")[0]
    files = RunFiles(digits.folder, run.name)
    hidden = files.csv.with_suffix(".hidden")
    files.csv.rename(hidden)
    with pytest.raises(AnalysisError, match=f"description: 1 of 12 runs are missing in .*, the first is {run.name}"):
        digits.table("description")
    hidden.rename(files.csv)
    other = Tournament(SMALL, "digits-8x8", "float32", digits.folder)
    other.checksum = "0" * 16
    with pytest.raises(RunError, match="another run than the one that was registered .registration"):
        other.table("description")


def test_a_run_that_diverged_counts_as_chance(digits, tmp_path):
    run = digits.specs("accuracy")[0]
    text, record = RunFiles(digits.folder, run.name).read()
    record |= {"diverged": True}
    del record["test"], record["ema"]
    RunFiles(tmp_path, run.name).finish([line.split(",") for line in text.splitlines()[1:3]], record)
    end = Tournament._end(run, tmp_path)
    assert (end["validation"], end["test"], end["average"], end["collapsed"]) == (0.1, 0.1, 0.1, True)


def test_templates_are_filled():
    template = dict(max_lr="rate", base_lr="rate * 1/4", milestones=["T * 6/7", 3], name="fixed", step_size="T * 1/8")
    assert filled(template, 0.2, 7200) == dict(
        max_lr=0.2, base_lr=0.05, milestones=[6171, 3], name="fixed", step_size=900
    )


@pytest.fixture(scope="module")
def published():
    """The records of the published runs of tournaments, by their place."""
    folders = sorted(ROOT.glob("results/published/*/tournament*"))
    return {run.place: run.read()[1] for folder in folders for run in complete_runs(folder)}


def test_published_runs_were_made_under_their_registration(published):
    """Its checksum stands in each, all have one precision, and tuning runs have not seen the test images."""
    known = {hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in REGISTERED.parent.glob("*.yaml")}
    specs = [record["spec"] for record in published.values()]
    under = {spec["registration"] for spec in specs}
    assert under <= known
    assert len({(spec["registration"], spec["precision"]) for spec in specs}) == len(under)
    seen = []
    for place, record in published.items():
        if record["spec"]["policy"]["name"] != "range_test":  # one that gives an untuned run its rate
            tunes = place.parent.name.endswith("_tuning")
            wrong = ("test" in record) == tunes and not record["diverged"]
            if wrong or record["spec"]["evaluation"] != "validation":
                seen.append(place)
    assert seen == []
    assert len(published) > 1000


def test_a_registration_was_committed_before_the_runs_it_governs(published):
    asked = {(record["revision"].removesuffix("+"), record["spec"]["registration"]) for record in published.values()}

    def git(*arguments):
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=True).stdout

    if git("rev-parse", "--is-shallow-repository") != b"false\n":
        pytest.skip("this is no full clone: commits cannot be compared")
    for revision, checksum in asked:
        files = git("ls-tree", "--name-only", revision, "studies/registered/").decode().split()
        texts = [git("show", f"{revision}:{file}") for file in files if file.endswith(".yaml")]
        assert checksum in {hashlib.sha256(text).hexdigest()[:16] for text in texts}


@pytest.mark.parametrize(("study", "dataset", "precision"), [("digits", "digits-8x8", "float32")])
def test_published_differences_and_verdicts_are_what_the_published_runs_give(study, dataset, precision):
    file = REGISTERED.with_name(f"tournament-2-{study}.yaml" if study == "digits" else f"{study}.yaml")
    folder = ROOT / "results" / "published" / study
    tournament = Tournament(file, dataset, precision, folder / "tournament_2")
    published = pd.read_csv(folder / "tables" / "tournament_2.csv").set_index(["quantity", "policy"])
    for question in tournament.design.questions:
        made = analysis.differences(tournament.design, question, tournament.table(question))
        for row in made.itertuples():
            there = published.loc[(row.quantity, row.policy)]
            numbers = ["value", "error", "low", "high"]
            assert there[numbers].tolist() == pytest.approx([getattr(row, name) for name in numbers], rel=1e-9)
            assert pd.isna(there.note) if pd.isna(row.note) else there.note == row.note
