"""Notebook 10: a rate and a schedule for a user's own data, and what is said of them."""

import numpy as np
import pandas as pd
import pytest
from test_datasets import photographs
from toys import every, rates, sgd

from modules.checks import RunError
from modules.data.datasets import DataError
from modules.rate_finders.benchmark import SCHEDULES
from modules.report import advice
from modules.runs.spec import spec
from modules.runs.training import train
from modules.statistics import AnalysisError
from modules.study import design, experiments

RATES = dict(constant=0.01, linear=0.02, cycle=0.015)
LR = np.geomspace(1e-6, 10, 400)


def asked(tmp_path, **options):
    declared = {name: parameter.default for name, parameter in design.declared("10_your_data").items()}
    return experiments.your_data(**{**declared, "results_dir": str(tmp_path / "results"), **options})


def ended(**accuracies):
    """Made-up trainings: final accuracies of each schedule's runs; None for one that diverged."""
    rows = [
        dict(policy=arm, seed=seed, diverged=value is None, iteration=400, val_acc=value, test_acc=np.nan)
        for arm, values in accuracies.items()
        for seed, value in enumerate(values, start=1)
    ]
    return pd.DataFrame(rows).astype({"val_acc": float})


def ramps(*lowest, noise=0.0, ends=400):
    """Made-up range tests whose loss is lowest at these rates."""
    random = np.random.default_rng(0)
    tables = []
    for seed, rate in enumerate(lowest, start=1):
        loss = np.minimum(2.3, 0.5 + np.log10(LR / rate) ** 2) + noise * random.normal(size=len(LR))
        tables.append(pd.DataFrame(dict(lr=LR, seed=seed, train_loss=loss))[:ends])
    return pd.concat(tables)


#: Final accuracies of constant, linear and cycle; which is advised, and what is said of the other two.
OUTCOMES = {
    "linear is best": ([0.5, 0.52], [0.8, 0.82], [0.6, 0.62], "linear", advice.LOWER, advice.LOWER),
    "cycle is best": ([0.5, 0.52], [0.8, 0.82], [0.9, 0.92], "cycle", advice.LOWER, advice.LOWER),
    "constant is best": ([0.9, 0.91], [0.7, 0.71], [0.8, 0.81], "constant", advice.LOWER, advice.LOWER),
    "nothing is told apart": ([0.7, 0.9], [0.7, 0.8], [0.7, 0.95], "linear", advice.ALIKE, advice.ALIKE),
    "one image is no difference": ([0.9, 0.9], [0.9, 0.9], [0.92, 0.92], "linear", advice.ALIKE, advice.ALIKE),
    "linear diverges": ([0.9, 0.91], [None, 0.95], [0.9, 0.91], "cycle", advice.ALIKE, advice.DIVERGED),
    "one run each": ([0.9], [0.8], [0.8], "linear", advice.ONE_RUN, advice.ONE_RUN),
}


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_each_outcome_has_its_advice(outcome):
    *accuracies, schedule, first, second = outcome
    runs = ended(**dict(zip(("constant", "linear", "cycle"), accuracies, strict=True)))
    assert advice.advised(runs, 50) == schedule
    others = [arm for arm in ("constant", "linear", "cycle") if arm != schedule]
    assert [advice.compared(runs, arm, schedule, 50) for arm in others] == [first, second]
    text = " ".join(advice.advice(runs, RATES, deciding=50, majority=0.34))
    assert all(
        f"{arm.capitalize()} at {RATES[arm]} {advice.compared(runs, arm, schedule, 50)}" in text for arm in others
    )


def test_an_accuracy_that_is_not_clear_of_the_largest_classs_share_is_said():
    runs = ended(constant=[0.3, 0.31, 0.32], linear=[0.33, 0.34, 0.35], cycle=[0.28, 0.29, 0.3])
    plain = advice.advice(runs, RATES, deciding=50, majority=0.01)
    assert len(advice.advice(runs, RATES, deciding=50, majority=0.34)) == len(plain) + 1


@pytest.mark.parametrize("schedule", ["linear", "cycle"])
def test_the_schedule_in_torchs_words_is_the_one_that_was_trained(schedule):
    from torch.optim.lr_scheduler import CyclicLR, LinearLR  # noqa: F401 - the advice names them

    iterations, rate = 400, 0.02
    policy = SCHEDULES[schedule](rate, iterations)
    optimizer = sgd()
    ours = spec(dataset="digits", policy=policy, iterations=iterations, evaluate_every=1, seed=1).policy
    expected = rates(ours.scheduler(optimizer, iterations), iterations)
    optimizer = sgd()
    optimizer.param_groups[0]["lr"] = rate
    scheduler = eval(advice.IN_TORCH[schedule].format(rate, rate / 4))
    assert rates(scheduler, iterations) == pytest.approx(expected)


def test_no_schedule_is_advised_where_all_diverge():
    with pytest.raises(AnalysisError, match="every schedule has runs that diverged: train with a tenth"):
        advice.advised(ended(constant=[None], linear=[None], cycle=[None]), 50)


def test_the_rate_is_the_middle_of_the_range_tests_and_their_spread_is_shown():
    table = advice.suggested(ramps(0.05, 0.2)).set_index("policy")
    one = advice.suggested(ramps(0.1)).set_index("policy")
    assert (table.value / one.value).to_numpy() == pytest.approx(1, rel=0.1)
    assert (table.low < one.value).all()
    assert (one.value < table.high).all()
    assert one.low.isna().all()
    assert one.value["constant"] < one.value["cycle"] < one.value["linear"] < 0.1


def test_a_run_that_diverges_within_an_iteration_has_come_to_its_end():
    """Its rows end where its loss is least; a ramp that was only too short must be told from it."""
    falling = ramps(1e9).assign(train_loss=lambda found: 2 - np.exp(found.lr / 10))
    with pytest.raises(AnalysisError, match="does not rise again by the last learning rate"):
        advice.suggested(falling[:300].assign(diverged=False))
    table = advice.suggested(falling[:300].assign(diverged=True)).set_index("policy")
    assert table.value["linear"] == pytest.approx(LR[299] / 5, rel=0.01)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (ramps(1e9, 1e9, noise=0.05), "does not fall clear of its noise"),
        (ramps(0.1, ends=30), "the loss was no number any more after 30 iterations"),
    ],
)
def test_range_tests_without_a_rate_are_refused(made, message):
    with pytest.raises(AnalysisError, match=message):
        advice.suggested(made)


def test_photographs_are_judged_on_those_held_out_and_other_data_on_validation_images(tmp_path):
    folder = photographs(tmp_path / "pets", cat=30, dog=10)
    tests, trainings, about = asked(tmp_path, dataset="images", data_dir=str(folder), image_size=16, batch_size=8)
    assert {run.dataset for run in tests} == {"images-16"}
    assert {(run.split, run.evaluation) for run in trainings(RATES)} == {("standard", "test")}
    assert (about.deciding, about.majority) == (8, 0.75)
    assert "cat: 24, dog: 8. The classes are unequal: always naming 'cat' is right in 75%." in about.said
    tests, trainings, about = asked(tmp_path)
    assert {(run.split, run.evaluation) for run in trainings(RATES)} == {("validation", "validation")}
    assert about.deciding == 130
    assert [run.seed for run in tests] == [1, 2, 3]


def test_what_a_rate_is_good_for_and_what_was_left_out_is_said(tmp_path):
    folder = photographs(tmp_path / "pets", cat=20, dog=20)
    (folder / "cat" / "1.heic").touch()
    given = dict(dataset="images", data_dir=str(folder), image_size=16, batch_size=8, momentum=0.5)
    said = asked(tmp_path, **given)[2].said
    assert "1 files with other endings were passed over: 1 .heic." in said
    assert "images have the same pixels as another, such as " in said
    assert "sgd, momentum 0.5, weight decay 0.0005, batches of 8, augmentation none" in said
    assert "400 iterations, 100 epochs" in said


def test_a_folder_for_validation_decides_and_one_for_testing_is_left_alone(tmp_path):
    folder = tmp_path / "pets"
    for part, count in (("train", 10), ("val", 4), ("test", 3)):
        photographs(folder / part, cat=count, dog=count)
    given = dict(dataset="images", data_dir=str(folder), image_size=16, batch_size=8)
    _, trainings, about = asked(tmp_path, **given)
    assert about.deciding == 8
    assert {(run.split, run.evaluation, run.test_at_end) for run in trainings(RATES)} == {
        ("validation", "validation", False)
    }
    assert "20 images train, 8 others decide" in about.said
    assert "Those of the folder for validation decide, those of the one for testing are not read." in about.said


def test_trainings_are_refused_when_the_data_have_changed_since_the_range_tests(tmp_path):
    folder = photographs(tmp_path / "pets", cat=10, dog=10)
    options = dict(dataset="images", data_dir=str(folder), image_size=16, batch_size=8, model="mlp", ramp=100, runs=1)
    tests, trainings, _ = asked(tmp_path, **options)
    ramps = tmp_path / "results" / "your_data_ramps"
    ramps.mkdir(parents=True)
    train(tests[0], ramps, folder)
    assert trainings(RATES)
    next((folder / "cat").rglob("*.png")).unlink()
    with pytest.raises(RunError, match="your_data_ramps was trained on pets .*they have changed since; put them back"):
        trainings(RATES)


def test_a_training_lasts_400_iterations_or_more_unless_its_epochs_are_given(tmp_path):
    folder = photographs(tmp_path / "pets", cat=20, dog=20)
    given = dict(dataset="images", data_dir=str(folder), image_size=16)
    assert {run.iterations for run in asked(tmp_path, **given)[1](RATES)} == {400}
    assert {run.iterations for run in asked(tmp_path, **given, epochs=7)[1](RATES)} == {7}


@every(
    ("options", "message"),
    [
        (dict(image_size=32), "image_size=32: of the data set images only, not of 'digits'"),
        (dict(dataset="images", image_size=4), "images-4: from 8 to 1024 pixels"),
        (dict(ramp=20), "ramp=20: 100 iterations or more"),
        (dict(epochs=0), "epochs=0: a whole number from 1"),
        (dict(batch_size=2000), "batch_size=2000 exceeds the 1167 training images"),
        (dict(model="net"), "unknown model 'net'"),
        (dict(settings={"evaluation": "test"}), "evaluation .* is decided by the notebook"),
        (dict(settings={"split": "folds"}), "split .* is decided by the notebook"),
    ],
)
def test_bad_options_are_named_before_any_work(tmp_path, options, message):
    with pytest.raises((RunError, DataError), match=message):
        asked(tmp_path, **options)
    assert not (tmp_path / "results").exists()
