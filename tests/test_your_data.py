"""Notebook 10: a rate and a schedule for a user's own data, and what is said of them."""

import math
import shutil

import pandas as pd
import pytest
import torch
from test_datasets import photographs
from toys import every, small

from modules.checks import RunError
from modules.data.datasets import DataError
from modules.rate_finders.benchmark import SCHEDULES
from modules.rate_finders.bracket import MOST, Bracket, Tried
from modules.report import advice, tables
from modules.report.advice import Images
from modules.report.outcome import sentences
from modules.runs.training import train
from modules.statistics import AnalysisError
from modules.study import design

RATES = dict(constant=0.01, linear=0.02, cycle=0.015)
FIFTY = Images(deciding=50, majority=0.34, tested=0)
TINY = dict(dataset="digits-8x8", model="dense-8", epochs=1, runs=1)


def asked(tmp_path, **options):
    """The variables of the notebook's design."""
    return design.build("10_your_data", {"results_dir": str(tmp_path / "results"), **options})


def tried(rate):
    return Tried(rate, rate / 2, rate * 2, pd.DataFrame(), "A note.")


FOUND = {schedule: tried(rate) for schedule, rate in RATES.items()}


def ended(test_acc=math.nan, **accuracies):
    """Made-up trainings: final accuracies of each schedule's runs; None for one that diverged."""
    rows = [
        dict(policy=arm, seed=seed, diverged=value is None, iteration=400, val_acc=value, test_acc=test_acc, seconds=2)
        for arm, values in accuracies.items()
        for seed, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows).astype({"val_acc": float})


def said(runs, images=FIFTY):
    return advice.answer(FOUND, runs, small(iterations=400), images, {"trials": [runs, runs], "trainings": [runs]})


#: Final accuracies of constant, linear and cycle; which is advised, and what is said of the other two.
OUTCOMES = {
    "linear is best": ([0.5, 0.52], [0.8, 0.82], [0.6, 0.62], "linear", advice.LOWER, advice.LOWER),
    "cycle is best": ([0.5, 0.52], [0.8, 0.82], [0.9, 0.92], "cycle", advice.LOWER, advice.LOWER),
    "constant is best": ([0.9, 0.91], [0.7, 0.71], [0.8, 0.81], "constant", advice.LOWER, advice.LOWER),
    "nothing is told apart": ([0.7, 0.9], [0.7, 0.8], [0.7, 0.95], "linear", advice.ALIKE, advice.ALIKE),
    "one image is no difference": ([0.9, 0.9], [0.9, 0.9], [0.92, 0.92], "linear", advice.ALIKE, advice.ALIKE),
    "linear diverges": ([0.9, 0.91], [None, 0.95], [0.9, 0.91], "cycle", advice.ALIKE, advice.FAILED),
    "linear diverges always": ([0.9, 0.91], [None, None], [0.9, 0.91], "cycle", advice.ALIKE, advice.FAILED),
    "a run of linear learns nothing": ([0.9, 0.91], [0.02, 0.99], [0.9, 0.91], "cycle", advice.ALIKE, advice.FAILED),
    "one run each": ([0.9], [0.8], [0.8], "linear", advice.ONE_RUN, advice.ONE_RUN),
}


@every(("constant", "linear", "cycle", "schedule", "first", "second"), OUTCOMES.values(), ids=[*OUTCOMES])
def test_each_outcome_has_its_advice(constant, linear, cycle, schedule, first, second, tmp_path):
    runs = ended(constant=constant, linear=linear, cycle=cycle)
    images = FIFTY._replace(majority=0.02)
    others = [arm for arm in RATES if arm != schedule]
    assert [advice.compared(runs, arm, schedule, images) for arm in others] == [first, second]
    text = said(runs, images)
    assert text.startswith(f"**{advice.IN_WORDS[schedule].format(RATES[schedule], RATES[schedule] / 4)}.**")
    count = 400 * len(runs)
    assert f"{3 * count:,} iterations (trials {2 * count:,}, trainings {count:,}), " in text
    for arm, verdict in zip(others, (first, second), strict=True):
        assert f"{arm.capitalize()} at {RATES[arm]} {verdict}" in text
    assert ("not told apart" in text) == bool({first, second} & {advice.ALIKE, advice.ONE_RUN})
    assert advice.summary(FOUND, runs, images).schedule[0] == schedule
    tables.write(advice.results(FOUND, runs, images), tmp_path / "tables" / "your_data.csv")
    (sentence,) = sentences(tmp_path)
    assert sentence.startswith(f"Take the schedule {schedule} at a rate of {RATES[schedule]:#.3g} [")


def test_test_images_are_reported_and_choose_nothing():
    given = dict(constant=[0.5, 0.52], linear=[0.8, 0.82], cycle=[0.6, 0.62])
    runs = ended(**given)
    runs["test_acc"] = runs.policy.map(dict(constant=0.9, linear=0.4, cycle=0.9)) + 0.01 * runs.seed
    tested = FIFTY._replace(tested=200)
    assert advice.advised(runs, tested) == "linear"
    assert "Of 200 test images, which chose nothing: 41.50 %" in said(runs, tested)
    table = advice.results(FOUND, runs, tested).set_index(["quantity", "policy"]).value
    assert table["final_accuracy", "linear"] == pytest.approx(0.81)
    assert table["accuracy", "linear"] == pytest.approx(0.415)
    assert "These images also chose rate and schedule: expect a little less of new ones." in said(ended(**given))


def test_an_accuracy_that_is_not_clear_of_the_largest_classs_share_is_said_first():
    runs = ended(constant=[0.3, 0.31, 0.32], linear=[0.33, 0.34, 0.35], cycle=[0.28, 0.29, 0.3])
    assert "learnt is not sure" not in said(runs, FIFTY._replace(majority=0.01))
    assert said(runs).startswith("**That anything was learnt is not sure.**")


class Grouped(torch.nn.Linear):
    def parameter_groups(self):
        return [{"params": [self.weight]}, {"params": [self.bias], "lr_mult": 10.0}]


@every(
    ("schedule", "optimizer", "model"),
    [
        (schedule, optimizer, model)
        for schedule in SCHEDULES
        for optimizer in advice.OPTIMIZERS
        for model in (torch.nn.Linear(2, 2), Grouped(2, 2))
    ],
)
def test_the_answer_in_torchs_words_is_what_was_trained(schedule, optimizer, model):
    from modules.runs.training import make_optimizer

    run = small(SCHEDULES[schedule](0.02, 40), optimizer=optimizer, weight_decay=0.1, iterations=40)
    grouped = isinstance(model, Grouped)
    theirs = {"torch": torch, "model": model}
    exec(advice.in_torch(schedule, 0.02, run, grouped), theirs)
    descent = make_optimizer(run, model)
    scheduler = run.policy.scheduler(descent, 40)
    mine = theirs["optimizer"]
    assert type(mine) is type(descent)
    for ours, own in zip(descent.param_groups, mine.param_groups, strict=True):
        assert [ours.get(key) for key in ("momentum", "weight_decay", "betas")] == [
            own.get(key) for key in ("momentum", "weight_decay", "betas")
        ]
    for _ in range(40):
        assert [group["lr"] for group in mine.param_groups] == pytest.approx(scheduler.get_last_lr(), abs=1e-12)
        for each in (descent, mine):
            each.step()
        scheduler.step()
        theirs.get("scheduler", scheduler).step() if "scheduler" in theirs else None


def test_where_each_schedule_has_a_run_that_learns_nothing_the_best_is_advised():
    runs = ended(constant=[0.0, 0.9], linear=[0.02, 0.8], cycle=[0.0, 0.8])
    assert advice.advised(runs, FIFTY._replace(majority=0.02)) == "linear"
    assert advice.compared(runs, "constant", "linear", FIFTY._replace(majority=0.02)) == advice.ALIKE


def test_no_schedule_is_advised_where_all_diverge():
    with pytest.raises(AnalysisError, match="every schedule has runs that diverged at the best rate that was tried"):
        advice.advised(ended(constant=[None], linear=[None], cycle=[None]), FIFTY)


def ends(best, rate):
    """Accuracy and loss of a made-up training, which diverges at four times the best rate."""
    off = math.log2(rate / best)
    return (math.nan, math.nan) if off >= 2 else (0.9 - 0.1 * off**2, 0.5 + off**2)


@every("off", [1 / 100, 1 / 16, 1 / 3, 1, 1.4, 5, 20, 400])
def test_rates_are_tried_until_the_best_has_a_worse_one_on_both_sides(off):
    bracket, best = Bracket(0.03 * off), 0.03
    rounds = 0
    while rates := bracket.ask():
        bracket.tell([(rate, *ends(best, rate)) for rate in rates])
        rounds += 1
    found = bracket.found()
    assert rounds == len(found.tried) - 2 <= MOST - 2
    if 1 / 32 < off < 32:
        assert 2**-0.5 < found.rate / best < 2**0.5
        assert found.low < found.rate < found.high
        assert found.high / found.low == pytest.approx(4, rel=0.01)
        assert found.note == ""
    else:  # too far: the answer says on which side it is open
        assert (found.low == 0) == (off > 1)
        assert math.isinf(found.high) == (off < 1)
        assert "others beyond may be better" in found.note or "diverged" in found.note


def test_of_equal_accuracies_the_least_loss_is_taken_and_where_all_diverge_lower_rates_are_tried():
    bracket = Bracket(0.1)
    assert bracket.ask() == [0.05, 0.1, 0.2]
    bracket.tell([(0.05, 0.5, 2.0), (0.1, 0.5, 1.0), (0.2, 0.5, 1.5)])
    assert bracket.ask() == []
    assert bracket.found().rate == 0.1
    bracket = Bracket(0.1)
    bracket.tell([(rate, math.nan, math.nan) for rate in (0.05, 0.1, 0.2)])
    assert bracket.ask() == [0.025]


def test_the_search_finds_the_best_rate_of_each_schedule(tmp_path):
    names = asked(tmp_path, dataset="digits-8x8", model="dense-8", epochs=11)
    best = {"constant": 0.01, "linear": 0.05, "cycle": 0.02}
    trained = []

    def train(specs, folder):
        rows = []
        for run in specs:
            about = dict(policy=run.kind, seed=run.seed, diverged=False)
            if run.kind == "ramp":
                for number, lr in enumerate(run.policy.rates(run.iterations), start=1):
                    loss = 2.3 - math.log1p(lr / 0.02) if lr < 0.4 else math.nan
                    rows += [about | dict(iteration=number, train_loss=loss)] if loss == loss else []
                continue
            schedule, rate = run.kind.rpartition("_")[::2]
            accuracy, loss = ends(best[schedule], float(rate))
            about |= dict(iteration=run.iterations, val_acc=accuracy, val_loss=loss, diverged=accuracy != accuracy)
            rows.append(about)
        trained.extend(specs)
        return pd.DataFrame(rows)

    found = names["search"](train)
    for schedule, each in found.items():
        assert 2**-0.5 < each.rate / best[schedule] < 2**0.5, schedule
        assert each.low < best[schedule] < each.high
    ramp, *trials = trained
    assert (ramp.iterations, {run.iterations for run in trials}) == (300, {396})
    assert {run.seed for run in trained} == {0}
    assert len(trials) == sum(len(each.tried) for each in found.values())
    assert not {run.seed for run in names["trainings"](RATES)} & {0}


def test_a_ramp_that_says_nothing_gives_the_rates_that_people_take(tmp_path):
    nothing = pd.DataFrame({"iteration": [1], "train_loss": [math.nan]})
    for optimizer, rate in (("sgd", 0.01), ("adamw", 0.001)):
        names = asked(tmp_path, dataset="digits-8x8", model="dense-8", optimizer=optimizer)
        assert set(names["first_guesses"](nothing)[1].values()) == {rate}


def test_a_stop_loses_little_and_a_second_call_trains_nothing_again(tmp_path):
    """Also for a search that was stopped between two trials of one round."""
    names = asked(tmp_path, **TINY)
    done = []

    def until(most):
        def run_each(specs, folder):
            for run in specs:
                path = tmp_path / "results" / folder.rpartition("/")[2]
                path.mkdir(parents=True, exist_ok=True)
                if not (path / f"{run.name}.csv").exists():
                    if len(done) == most:
                        raise KeyboardInterrupt
                    train(run, path)
                    done.append(run.name)
            return tables.read_runs(path, specs)

        return run_each

    with pytest.raises(KeyboardInterrupt):
        names["search"](until(5))
    assert asked(tmp_path, **TINY)["found"] is None
    found = names["search"](until(100))
    assert len(done) == len(set(done)) == 1 + sum(len(each.tried) for each in found.values())
    again = asked(tmp_path, **TINY)
    assert again["found"] == found
    assert again["rates"] == {schedule: each.rate for schedule, each in found.items()}
    until(100)(again["trainings"](again["rates"]), "your_data")
    asked(tmp_path, **TINY)
    # Of other settings, or without the trials that they come from, runs are refused before anything is trained.
    for changed in (dict(batch_size=16), dict(optimizer="adamw")):
        with pytest.raises(RunError, match="seed0.csv is a complete run with other settings"):
            asked(tmp_path, **{**TINY, **changed})
    shutil.rmtree(tmp_path / "results" / "your_data_tries")
    with pytest.raises(RunError, match="your_data holds runs at rates of other trials: move it, or use another RES"):
        asked(tmp_path, **TINY)


def test_photographs_are_judged_on_those_held_out_and_other_data_on_validation_images(tmp_path):
    folder = photographs(tmp_path / "pets", cat=30, dog=10)
    given = dict(dataset="images", data_dir=str(folder), image_size=16, batch_size=8)
    names = asked(tmp_path, **given)
    runs = names["trainings"](RATES)
    assert {(run.dataset, run.split, run.evaluation, run.test_at_end) for run in runs} == {
        ("images-16", "standard", "test", False)
    }
    judges = advice.judged(names["images"], names["divided"])
    assert judges == (8, 0.75, 0)
    said = advice.described(names["images"], names["divided"], judges)
    assert "cat: 24, dog: 8. The classes are unequal: always naming 'cat' is right in 75%." in said
    names = asked(tmp_path)
    runs = names["trainings"](RATES)
    assert {(run.split, run.evaluation, run.test_at_end) for run in runs} == {("validation", "validation", True)}
    assert [run.seed for run in runs[:3]] == [1, 2, 3]
    assert advice.judged(names["images"], names["divided"])[::2] == (130, 500)


def test_a_folder_for_validation_decides_and_one_for_testing_is_read_once(tmp_path):
    folder = tmp_path / "pets"
    for part, count in (("train", 10), ("val", 4), ("test", 3)):
        photographs(folder / part, cat=count, dog=count)
    (folder / "train" / "cat" / "1.heic").touch()
    names = asked(tmp_path, dataset="images", data_dir=str(folder), image_size=16, batch_size=8)
    runs = [names["ramp"], names["trial"]("linear", 0.1), *names["trainings"](RATES)]
    assert [run.test_at_end for run in runs] == [False] * 2 + [True] * 9
    assert {run.evaluation for run in runs} == {"none", "validation"}
    judges = advice.judged(names["images"], names["divided"])
    assert judges[::2] == (8, 6)
    said = advice.described(names["images"], names["divided"], judges)
    assert "20 images train, 8 others decide" in said
    assert "Those of the folder for validation decide." in said
    assert "1 files with other endings were passed over: 1 .heic." in said


def test_what_the_data_were_when_the_ramp_was_trained_they_must_still_be(tmp_path):
    folder = photographs(tmp_path / "pets", cat=10, dog=10)
    options = dict(dataset="images", data_dir=str(folder), image_size=16, batch_size=8, model="mlp", runs=1)
    names = asked(tmp_path, **options)
    ramps = tmp_path / "results" / "your_data_ramps"
    ramps.mkdir(parents=True)
    train(names["ramp"], ramps, folder)
    next((folder / "cat").rglob("*.png")).unlink()
    with pytest.raises(RunError, match="your_data_ramps was trained on pets .*they have changed since; put them back"):
        asked(tmp_path, **options)


def test_a_training_lasts_400_iterations_or_more_unless_its_epochs_are_given(tmp_path):
    folder = photographs(tmp_path / "pets", cat=20, dog=20)
    given = dict(dataset="images", data_dir=str(folder), image_size=16)
    for options, iterations, climb in (({}, 400, 300), (dict(epochs=7), 7, 300), (dict(epochs=4000), 4000, 800)):
        names = asked(tmp_path, **given, **options)
        runs = [names["trial"]("linear", 0.1), *names["trainings"](RATES)]
        assert {run.iterations for run in runs} == {iterations}
        assert names["ramp"].iterations == climb


@every(
    ("options", "message"),
    [
        (dict(image_size=32), "image_size=32: of the data set images only, not of 'digits'"),
        (dict(dataset="images", image_size=4), "images-4: from 8 to 1024 pixels"),
        (dict(epochs=0), "epochs=0: a whole number from 1"),
        (dict(batch_size=2000), "batch_size=2000 exceeds the 1167 training images"),
        (dict(model="net"), "unknown model 'net'"),
        (dict(optimizer="adamax"), "optimizer='adamax'"),
        (dict(optimizer="schedulefree"), "optimizer='schedulefree': it has no schedule"),
        (dict(settings={"evaluation": "test"}), "evaluation .* is decided by the notebook"),
        (dict(settings={"split": "folds"}), "split .* is decided by the notebook"),
    ],
)
def test_bad_options_are_named_before_any_work(tmp_path, options, message):
    with pytest.raises((RunError, DataError), match=message):
        asked(tmp_path, **options)
    assert not (tmp_path / "results").exists()
