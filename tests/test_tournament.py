"""The tournament: its registration, the runs it asks for, the rates it chooses, and its rule on made-up runs."""

import hashlib
import json
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from toys import ROOT

from modules.checks import RunError
from modules.report.tournament import choose, contrast, differences_table, two_by_two, verdicts
from modules.runs.files import RunFiles, complete_runs
from modules.statistics import AnalysisError
from modules.study.tournament import Registration, Tournament, filled

REGISTERED = ROOT / "studies" / "registered" / "tournament.yaml"


def arms(effect_1, effect_2, sd, runs=16):
    """Test accuracies of made-up final runs with given true differences."""
    rng = np.random.default_rng(0)
    # Centred, so that the estimate is the true effect, whatever is drawn.
    noise = [draw - draw.mean() for draw in rng.normal(0, sd, (4, runs))]
    return {
        "D1": contrast(0.75 + effect_1 + noise[0], 0.75 + noise[1], 0.0005, 0.0005),
        "D2": contrast(0.74 + effect_2 + noise[2], 0.74 + noise[3], 0.0005, 0.0005),
    }


@pytest.mark.parametrize(
    ("effect", "sd", "expected"),
    [(0.0, 0.003, "not needed"), (0.01, 0.003, "helps"), (-0.01, 0.003, "harms"), (0.004, 0.008, "not resolved")],
)
def test_the_registered_rule_comes_to_each_of_its_outcomes(effect, sd, expected):
    assert verdicts(arms(effect, 0.0, sd), 0.005, 0.01)["D1"] == expected
    assert verdicts(arms(0.0, effect, sd), 0.005, 0.01)["D2"] == expected


def test_the_tuning_that_went_astray_widens_the_interval():
    a, b = np.full(16, 0.75) + np.linspace(-0.003, 0.003, 16), np.full(16, 0.74) + np.linspace(-0.003, 0.003, 16)
    assert verdicts({"D1": contrast(a, b)}, 0.005, 0.01) == {"D1": "helps"}
    assert verdicts({"D1": contrast(a, b, 0.01, 0.01)}, 0.005, 0.01) == {"D1": "not resolved"}


def test_a_primary_difference_stands_beside_that_of_the_seeds_alone():
    accuracies = dict(
        cycle_anneal=np.full(16, 0.75) + np.linspace(-0.003, 0.003, 16),
        constant_anneal=np.full(16, 0.74) + np.linspace(-0.003, 0.003, 16),
    )
    choices = {arm: replace(choose(parabola(0.0)), error=0.002) for arm in accuracies}
    primary = {"D1": ["cycle_anneal", "constant_anneal"]}
    table = differences_table(accuracies, choices, primary, "linear", 0.005, 0.01).set_index("kind")
    assert table.value.tolist() == pytest.approx([0.01, 0.01])
    assert table.error.primary**2 == pytest.approx(table.error.seeds**2 + 2 * 0.002**2)
    assert table.verdict.to_dict() == {"primary": "helps", "seeds": ""}


def parabola(top, noise=0.0, seeds=2):
    rng = np.random.default_rng(1)
    return {
        2.0**k: (0.75 - 0.01 * (k - top) ** 2 + rng.normal(0, noise, seeds)).tolist() for k in (-3, -2, -1, 0, 1, 2, 3)
    }


def test_the_chosen_rate_is_the_top_of_the_parabola():
    found = choose(parabola(0.3))
    assert found.rate == pytest.approx(2**0.3, rel=1e-6)
    assert (found.best, found.edge) == (1.0, 0)
    assert found.error == pytest.approx(0, abs=1e-9)
    # Five rates lie within a factor of four of the best.
    expected = np.mean([-0.01 * (k - 0.3) ** 2 for k in (-2, -1, 0, 1, 2)]) + 0.01 * 0.3**2
    assert found.robustness == pytest.approx(expected)


def test_of_two_rates_as_far_from_the_best_the_lower_one_is_fitted():
    """As the runs of 2026 were: the registration does not say which."""
    octaves = np.array([-1.5, -1, -0.5, 0, 0.5, 1.5])
    level = np.array([0.740, 0.746, 0.749, 0.750, 0.749, 0.735])
    square, slope, _ = np.polyfit(octaves[:5], level[:5], 2)
    found = choose({2.0**x: [y] * 2 for x, y in zip(octaves, level, strict=True)})
    assert found.rate == pytest.approx(2 ** (-slope / (2 * square)))


def test_an_average_of_weights_has_the_error_of_its_runs_rate():
    rng = np.random.default_rng(3)
    accuracies = {arm: pd.Series(0.7 + rng.normal(0, 0.001, 8)) for arm in ("constant", "constant_averaged", "linear")}
    choices = {arm: replace(choose(parabola(0.0)), error=0.004) for arm in ("constant", "linear")}
    table = differences_table(accuracies, choices, {}, "linear", 0.005, 0.01).set_index("name")
    assert (table.error > 2**0.5 * 0.004).all()
    assert set(table.index) == {"constant", "constant_averaged"}


def test_noise_between_tuning_seeds_is_an_error_of_the_choice():
    assert choose(parabola(0.0, noise=0.01)).error > choose(parabola(0.0, noise=0.001)).error > 0


def test_what_a_fold_costs_at_every_rate_is_no_noise_of_the_choice():
    cost, plain = np.array([0.0, 0.1, -0.1, 0.05, -0.05] * 4), parabola(0.0, noise=0.004, seeds=20)
    folded = {rate: (np.array(values) + cost).tolist() for rate, values in plain.items()}
    folds = [0, 1, 2, 3, 4] * 4
    assert choose(folded, folds).error == pytest.approx(choose(plain).error, rel=0.3)
    assert choose(folded).error > 3 * choose(folded, folds).error


def test_a_choice_never_leaves_the_rates_that_were_tested():
    rising = {2.0**k: [0.7 + 0.01 * k - 0.0001 * k**2] * 2 for k in range(7)}
    assert choose(rising).rate == 64
    assert choose(rising).edge == 1
    assert choose({2.0**k: [0.7 + 0.01 * k**2] * 2 for k in range(5)}).rate == 16  # this parabola has no top
    with pytest.raises(AnalysisError, match="three rates or more"):
        choose({0.1: [0.5], 0.2: [0.6]})


def test_effects_of_the_two_by_two_are_its_textbook_sums():
    rng = np.random.default_rng(2)
    cells = {(s, a): rng.normal(0.7 + 0.01 * s + 0.02 * a + 0.004 * s * a, 1e-6, 8) for s in (0, 1) for a in (0, 1)}
    found = two_by_two(cells)
    assert found["swing"].value == pytest.approx(0.012, abs=1e-5)
    assert found["anneal"].value == pytest.approx(0.022, abs=1e-5)
    assert found["interaction"].value == pytest.approx(0.004, abs=1e-5)
    assert found["swing"].df > 8


def test_templates_are_filled():
    template = dict(max_lr="rate", base_lr="rate * 1/4", milestones=["T * 6/7", 3], name="fixed", step_size="T * 1/8")
    assert filled(template, 0.2, 7200) == dict(
        max_lr=0.2, base_lr=0.05, milestones=[6171, 3], name="fixed", step_size=900
    )


SMALL = """
margin: 0.005
alphas: [0.01, 0.04]
split: folds
setting: {model: mlp, batch_size: 64}
iterations: 16
evaluate_every: 4
tuning: {first: 0.01, octaves: 3, seeds: [101]}
final: {seeds: 2, more: 1}
primary: {D1: [cycle_anneal, constant_anneal]}
arms:
  constant_anneal: {policy: {name: fixed, lr: rate, milestones: [], anneal: 0.25}}
  cycle_anneal: {policy: {name: triangular, base_lr: rate * 1/4, max_lr: rate, step_size: T * 1/8, anneal: 0.25}}
  given: {policy: {name: fixed, lr: 0.01, milestones: [T * 1/2]}, tuned: false, seeds: 1, settings: {ema: 0.9}}
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path / "design.yaml").write_text(SMALL)
    registration = Registration.read(tmp_path / "design.yaml")
    return Tournament(registration, "digits", tmp_path / "tuning", tmp_path / "final")


def test_a_tournament_tunes_on_validation_images_and_ends_with_its_final_seeds(small, tmp_path):
    small.play(workers=2)
    assert set(small.choices()) == {"constant_anneal", "cycle_anneal"}
    assert [run.name for run in small.final()] == [
        *(f"{arm}-seed{seed}" for arm in ("constant_anneal", "cycle_anneal") for seed in (1, 2)),
        "given-seed1",
    ]
    # Two seeds of a barely trained network decide nothing: the arms get the seeds of the second look.
    assert len(small.accuracies("cycle_anneal")) == 3
    assert len(small.accuracies("given")) == 1
    files = RunFiles(small.finals, "given-seed1")
    text, given = files.read()
    given["ema"]["test"]["accuracy"] = 0.5
    files.finish([line.split(",") for line in text.splitlines()[1:]], given)
    assert small.final_accuracies()["given_averaged"].to_dict() == {1: 0.5}
    assert small.final_accuracies()["given"].to_dict() == {1: given["test"]["accuracy"]}
    next(small.tuning.glob("cycle_anneal*.csv")).unlink()
    with pytest.raises(AnalysisError, match="cycle_anneal has final runs, but tuning runs of it are missing"):
        small.final_accuracies()
    for path in small.tuning.glob("*.json"):
        assert "test" not in json.loads(path.read_text())
    for path in small.finals.glob("*.json"):
        assert json.loads(path.read_text())["spec"]["registration"] == small.registration.checksum


def test_a_grid_grows_beyond_its_edge_three_times_at_the_most(small, monkeypatch):
    monkeypatch.setattr(Tournament, "_mean", lambda self, arm, rate: rate)
    rates = small.rates("cycle_anneal")
    assert rates == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.32 / 2**0.5, 0.32, 0.32 * 2**0.5])


def test_unknown_arms_and_bad_registrations_are_refused(tmp_path):
    (tmp_path / "design.yaml").write_text("setting: {}")
    with pytest.raises(RunError, match="alphas, arms, final"):
        Registration.read(tmp_path / "design.yaml")
    with pytest.raises(RunError, match="cannot be read"):
        Registration.read(tmp_path / "nowhere.yaml")
    with pytest.raises(RunError, match=r"arms=\['cosine'\]: choose from constant"):
        Tournament(Registration.read(REGISTERED), "digits", tmp_path, tmp_path, ["cosine"])


def test_the_registered_arms_are_runs(tmp_path):
    registration = Registration.read(REGISTERED)
    tournament = Tournament(registration, "images", tmp_path, tmp_path)
    for arm in tournament.arms:
        rate = 0.001 if registration.tuned(arm) else None
        run = tournament.spec(arm, rate, 1, True)
        assert (run.iterations, run.split, run.evaluation, run.test_at_end) == (7200, "validation", "validation", True)
    assert len(tournament.to_tune()) == 8 * 7 * 2


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


@pytest.fixture(scope="module")
def jpeg():
    """The published tournament, and a function from its choices and alpha to the table of differences."""
    folder = ROOT / "results" / "published" / "cifar10-jpeg"
    core = ["constant_anneal", "cycle", "cycle_anneal", "linear"]
    registered = Registration.read(REGISTERED)
    tournament = Tournament(registered, "images", folder / "tournament_tuning", folder / "tournament", core)
    accuracies, primary, margin = (tournament.final_accuracies(), *map(registered.design.get, ("primary", "margin")))

    def table(choices, alpha):
        found = differences_table(accuracies, choices, primary, "linear", margin, alpha)
        return found[found.kind == "primary"]

    return tournament, table


def test_the_published_verdicts_follow_from_the_published_runs(jpeg):
    tournament, table = jpeg
    design = tournament.registration.design
    path = ROOT / "results" / "published" / "cifar10-jpeg" / "tables" / "tournament.csv"
    published = pd.read_csv(path).set_index(["quantity", "policy"])
    for row in table(tournament.choices(), design["alphas"][tournament.second_look()]).itertuples():
        there = published.loc[("final_accuracy_difference", " - ".join(design["primary"][row.name]))]
        assert (there.value, there.error) == pytest.approx((row.value, row.error), rel=1e-9)
        assert there.note == f"{row.name}: {row.verdict}"


def test_the_second_verdict_rests_on_a_tie_that_the_registration_leaves_open(jpeg):
    """results/published/tournament.md says so. With the reciprocals of the rates the higher of two is the lower."""
    tournament, table = jpeg
    grids = {arm: tournament.grid(arm) for arm in tournament.arms}
    mirrored = {arm: choose({1 / rate: values for rate, values in grid.items()}) for arm, grid in grids.items()}
    assert 1 / mirrored["cycle"].rate == pytest.approx(0.66 * tournament.choices()["cycle"].rate, rel=0.01)
    assert 1 / mirrored["linear"].rate == pytest.approx(tournament.choices()["linear"].rate)
    alpha = tournament.registration.design["alphas"][1]
    assert table(mirrored, alpha).verdict.tolist() == ["not resolved", "not resolved"]
