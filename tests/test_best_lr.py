"""best_lr's notebook: every option does what it should, and the sweep finds the rate it should."""

import numpy as np
import pytest
from toys import make_images, small

from modules.checks import RunError
from modules.range_test import best_rate
from modules.report.tables import read_runs
from modules.report.tensorboard import write_events
from modules.runs.training import train
from modules.statistics import AnalysisError
from modules.study import design

# As its documentation lists them.
DEFAULTS = dict(
    dataset="mnist",
    kernel_initializer="he_normal",
    activation="relu",
    weight_decay=0.0005,
    optimizer="sgd",
    momentum=0.9,
    batch_size=32,
    num_epochs=55,
    num_learning_batches=4000,
    lr_min=1e-4,
    lr_max=10.0,
    lr_max_multiplier=1.0,
    lr_min_multiplier=0.1,
    cycle=False,
    skip_test=None,
    no_plots=False,
    save_model=False,
)


def all_planned(tmp_path, best=0.2, **options):
    """The specs of the sweeps and of the trainings that the notebook would run with best_lr's defaults."""
    places = dict(results_dir=str(tmp_path / "results"), dataset="digits", model=None, settings={}, runs=1)
    names = design.build("06_best_lr", {**DEFAULTS, **places, **options})
    return names["sweeps"], names["trainings"](best)


def planned(tmp_path, best=0.2, **options):
    """Those of the first seed."""
    return tuple(specs[0] for specs in all_planned(tmp_path, best, **options))


@pytest.fixture
def colour(tmp_path):
    """Settings for a small folder of images in colour, which get the wide residual network."""
    return dict(dataset="images", data_dir=str(make_images(tmp_path / "images")), batch_size=4)


def test_options_have_the_names_of_best_lr():
    mine = design.declared("06_best_lr")
    assert {*DEFAULTS, "log_dir", "depth", "width", "augment"} <= set(mine)
    for name, value in DEFAULTS.items():
        assert design.typed(name, mine[name], value) == value


def test_one_channel_gets_lenet_and_colour_the_wide_residual_network(tmp_path, colour):
    assert {run.model for run in planned(tmp_path)} == {"lenet"}
    assert {run.model for run in planned(tmp_path, **colour)} == {"wide_resnet-28-10"}
    assert {run.model for run in planned(tmp_path, **colour, depth=16, width=2)} == {"wide_resnet-16-2"}


@pytest.mark.parametrize(
    ("option", "value", "setting"),
    [
        ("kernel_initializer", "glorot_uniform", "init"),
        ("activation", "elu", "activation"),
        ("weight_decay", 0.01, "weight_decay"),
        ("augment", "none", "augment"),
        ("depth", 16, "model"),
        ("width", 2, "model"),
    ],
)
def test_options_of_the_wide_residual_network(tmp_path, colour, option, value, setting):
    for before, after in zip(planned(tmp_path, **colour), planned(tmp_path, **colour, **{option: value}), strict=True):
        assert getattr(before, setting) != getattr(after, setting)
        assert setting == "model" or getattr(after, setting) == value
    with pytest.raises(RunError, match=f"{option}={value!r}: for the wide residual network only"):
        planned(tmp_path, **{option: value})


@pytest.mark.parametrize(
    ("option", "value", "setting"),
    [
        ("optimizer", "adam", "optimizer"),
        ("optimizer", "rmsprop", "optimizer"),
        ("momentum", 0.5, "momentum"),
        ("batch_size", 64, "batch_size"),
    ],
)
def test_options_of_sweep_and_training(tmp_path, option, value, setting):
    for before, after in zip(planned(tmp_path), planned(tmp_path, **{option: value}), strict=True):
        assert getattr(before, setting) != getattr(after, setting) == value


def test_settings_are_of_sweep_and_training(tmp_path):
    for run in planned(tmp_path, settings=dict(precision="bfloat16", pixels="caffe")):
        assert (run.precision, run.pixels) == ("bfloat16", "caffe")
    with pytest.raises(RunError, match=r"settings: batch_size \(value 7\) is decided by the notebook"):
        planned(tmp_path, settings=dict(batch_size=7))
    with pytest.raises(
        RunError, match=r"settings: 'precison' \(value 'bfloat16'\): no such setting of a run, did you mean 'precision'"
    ):
        planned(tmp_path, settings=dict(precison="bfloat16"))


def test_momentum_is_of_sgd_only(tmp_path):
    assert planned(tmp_path, optimizer="rmsprop", momentum=0.5)[1].momentum == 0


def test_options_of_the_sweep(tmp_path):
    sweep, _ = planned(tmp_path, num_learning_batches=700, lr_min=0.01, lr_max=5.0)
    assert (sweep.iterations, sweep.evaluate_every) == (700, 7)
    assert (sweep.policy.name, sweep.policy.ramp) == ("range_test", "exponential")
    assert (sweep.policy.min_lr, sweep.policy.max_lr) == (0.01, 5.0)
    assert planned(tmp_path)[0].iterations == 4000


def test_options_of_training(tmp_path):
    _, constant = planned(tmp_path, lr_max_multiplier=0.5, num_epochs=3, lr_min_multiplier=0.3)
    assert (constant.kind, constant.policy.lr, constant.policy.milestones) == ("constant", 0.1, ())
    assert (constant.iterations, constant.evaluate_every) == (3 * 40, 40)  # 1,297 images in batches of 32
    _, cycle = planned(tmp_path, cycle=True, lr_max_multiplier=0.5, lr_min_multiplier=0.05, step_size_epochs=1.5)
    assert (cycle.kind, cycle.policy.name) == ("cycle", "triangular")
    assert cycle.policy.settings() == pytest.approx(dict(base_lr=0.01, max_lr=0.1, step_size=60, gamma=1.0))
    assert planned(tmp_path, save_model=True)[1].keep_weights
    assert not cycle.keep_weights


def test_a_sweep_alone_is_the_sweep_that_training_goes_on_from(tmp_path):
    sweeps, trainings = all_planned(tmp_path, num_epochs=0, runs=2)
    assert trainings == []
    assert sweeps == all_planned(tmp_path, runs=2)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(skip_test=-1.0), "skip_test=-1.0"),
        (dict(lr_min=20.0), "the lower must not exceed the upper: lr_min=20.0, lr_max=10.0"),
        (dict(cycle=True, lr_min_multiplier=2.0), "lr_min_multiplier=2.0, lr_max_multiplier=1.0"),
        (dict(num_epochs=-1), "num_epochs=-1"),
        (dict(num_epochs=0, skip_test=0.1), "num_epochs=0 and skip_test=0.1: neither a sweep nor training"),
        (dict(num_learning_batches=2.5), "num_learning_batches=2.5: a whole number"),
        (dict(cycle=1), "cycle=1: True or False"),
        (dict(batch_size=5000), "batch_size=5000 exceeds the 1297 training images"),
        (dict(cycle=True, step_size_epochs=0.001), "step_size_epochs in iterations=0"),
        (dict(cycle=True, step_size_epochs=1e90), "step_size_epochs in iterations=10000000000"),
        (dict(step_size_epochs=0.0), "step_size_epochs=0.0"),
        (dict(log_dir=""), "log_dir=''"),
    ],
)
def test_bad_options_are_named_before_any_work(tmp_path, options, message):
    with pytest.raises((RunError, design.StudyError), match=message):
        planned(tmp_path, **options)
    assert not (tmp_path / "results").exists()


def test_a_diverging_sweep_ends_early_and_keeps_its_rows(tmp_path):
    ramp = dict(name="range_test", min_lr=0.01, max_lr=1000.0, ramp="exponential")
    sweep = dict(model="lenet", iterations=120, evaluate_every=4, evaluation="none", weight_decay=0.0)
    for name, stop in (("free", None), ("watched", 2)):
        train(small({**ramp, "stop_factor": stop}, variant=name, **sweep), tmp_path)
    runs = read_runs(tmp_path)
    watched = runs[runs.policy == "watched"]
    assert watched.diverged.all()
    assert watched.iteration.max() < 120
    losses = watched.train_loss.rolling(3).mean()
    assert losses.iloc[-1] > 2 * losses.min()
    assert not (losses.iloc[:-1] > 2 * losses.expanding().min().iloc[:-1]).any()
    assert runs.val_acc.isna().all()
    both = runs[runs.iteration <= watched.iteration.max()].pivot(index="lr", columns="policy", values="train_loss")
    assert (both.free == both.watched).all()


def test_best_rate_is_that_of_the_least_smoothed_loss():
    lr = np.geomspace(1e-4, 10, 101)
    bowl = (np.log10(lr) + 1) ** 2  # least at 0.1
    rate = best_rate(lr, bowl)
    assert rate.lr == pytest.approx(0.1)
    assert np.isnan(rate.low)
    assert rate.smoothed[50] == pytest.approx(bowl[48:53].mean())
    spike = bowl.copy()
    spike[20] = -0.5  # one lucky batch is no best rate
    assert best_rate(lr, spike).lr == pytest.approx(0.1, rel=0.01)
    assert best_rate(lr, spike, window=1).lr == lr[20]


def test_best_rate_of_several_runs_is_their_means_and_ends_where_the_first_run_did():
    lr = np.geomspace(1e-4, 10, 101)
    runs = np.stack([(np.log10(lr) - where) ** 2 for where in (-1.4, -1.2, -1.0, -0.8, -0.6)], axis=1)
    assert best_rate(lr, runs).lr == pytest.approx(0.1)
    runs[lr > 0.05, 0] = np.nan
    ended = best_rate(lr, runs)
    assert ended.lr <= 0.05
    assert np.isnan(ended.smoothed[lr > 0.05]).all()
    with pytest.raises(AnalysisError, match="no learning rate of the sweep was reached by every run"):
        best_rate(lr, np.full(101, np.nan))


def test_event_files_hold_the_csv(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small(), tmp_path)
    runs = read_runs(tmp_path)
    for _ in range(2):  # the second call replaces the first one's files
        write_events(runs, tmp_path / "logs")
    (file,) = (tmp_path / "logs" / "triangular-seed1").iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert set(events.Tags()["scalars"]) == {"lr", "train_loss", "val_loss", "val_acc"}
    for name in ("lr", "val_acc"):
        assert [event.step for event in events.Scalars(name)] == runs.iteration.tolist()
        assert [event.value for event in events.Scalars(name)] == pytest.approx(runs[name].tolist(), rel=1e-6)


def test_a_sweep_without_a_best_rate_is_refused():
    lr, falling = np.geomspace(1e-4, 10, 101), 2.3 - np.linspace(0, 2, 101)
    for window in (1, 2, 5):
        with pytest.raises(AnalysisError, match="does not rise again by the last learning rate"):
            best_rate(lr, falling, window)
    with pytest.raises(AnalysisError, match="window=0: at least one point"):
        best_rate(lr, falling, window=0)
    for losses in (2.3 + 0.01 * np.random.default_rng(0).normal(size=(101, 3)), falling[::-1]):
        with pytest.raises(AnalysisError, match="does not fall clear of its noise"):
            best_rate(lr, losses)


def test_a_folder_with_runs_at_another_sweeps_rate_is_refused_before_any_work(tmp_path):
    folder = tmp_path / "results" / "best_lr"
    folder.mkdir(parents=True)
    (folder / "cycle-seed1.csv").write_text("")
    with pytest.raises(RunError, match="best_lr holds runs at the rate of another sweep"):
        planned(tmp_path, num_epochs=1)
