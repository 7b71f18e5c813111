"""Runs trained together: what a run alone would be, whoever shares the group, through kills and divergence."""

import multiprocessing
import time

import pandas as pd
import pytest
from toys import FIXED, TRIANGULAR, changed, contents, record_of, small

from modules.checks import RunError
from modules.runs import stacked
from modules.runs.files import RunFiles
from modules.runs.parallel import run_all
from modules.runs.spec import Spec
from modules.runs.stacked import divided, train_together
from modules.runs.training import train
from modules.runs.verification import verify

DENSE = dict(
    dataset="digits-8x8", model="dense-64-64-64", batch_size=16, split="folds", iterations=40, evaluate_every=20
)
POLICIES = [FIXED, TRIANGULAR, dict(name="linear", lr=0.05), {**TRIANGULAR, "anneal": 0.5}]


def dense(seed, **changes):
    policy = changes.pop("policy", POLICIES[seed % len(POLICIES)])
    return small(policy, seed, **{**DENSE, "variant": "run", **changes})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(pixels="caffe", evaluation="validation", test_at_end=True),
        dict(model="lenet", dataset="digits", split="standard", iterations=6, evaluate_every=3),
        pytest.param(
            dict(
                model="cifar10_quick",
                dataset="digits",
                split="standard",
                iterations=4,
                evaluate_every=2,
                init="caffe",
                pixels="caffe",
                multipliers="caffe",
            ),
            marks=pytest.mark.ci,
        ),
    ],
    ids=["dense", "validation", "lenet", "cifar10_quick"],
)
def test_a_run_of_a_group_is_what_it_is_alone_but_for_rounding(tmp_path, settings):
    alone, together = tmp_path / "alone", tmp_path / "together"
    specs = [dense(seed, **settings) for seed in (1, 2, 3)]
    train_together(specs, together)
    for spec in specs:
        expected, found = pd.read_csv(train(spec, alone)), pd.read_csv(together / f"{spec.name}.csv")
        pd.testing.assert_frame_equal(found, expected, rtol=2e-3, atol=6e-3)
        assert found.lr.tolist() == expected.lr.tolist()
        assert found.train_loss.tolist() == pytest.approx(expected.train_loss.tolist(), rel=1e-3)
        records = [record_of(folder / f"{spec.name}.csv") for folder in (alone, together)]
        assert records[1]["together"] == 3
        assert records[0]["spec"] == records[1]["spec"]
        assert records[0]["data"] == records[1]["data"]
        if "test" in records[0]:
            assert records[1]["test"]["accuracy"] == pytest.approx(records[0]["test"]["accuracy"], abs=6e-3)


#: Of every setting another value than `dense` has, and what else it needs.
OTHERS = {
    "dataset": dict(dataset="digits", split="standard"),
    "model": dict(model="dense-32"),
    "pooling": dict(pooling="caffe", model="cifar10_quick", dataset="digits", split="standard"),
    "init": dict(init="he_normal"),
    "activation": dict(activation="tanh", model="wide_resnet-10-1", dataset="digits", split="standard"),
    "pixels": dict(pixels="standard"),
    "augment": dict(augment="flip_crop"),
    "policy": dict(policy=dict(name="fixed", lr=0.2, milestones=[5])),
    "variant": dict(variant="another"),
    "optimizer": dict(optimizer="adam"),
    "momentum": dict(momentum=0.3),
    "weight_decay": dict(weight_decay=0.5),
    "bias_lr_mult": dict(bias_lr_mult=9.0),
    "multipliers": dict(multipliers="caffe", model="cifar10_quick", dataset="digits", split="standard"),
    "batch_size": dict(batch_size=50),
    "iterations": dict(iterations=12),
    "evaluate_every": dict(evaluate_every=4),
    "split": dict(split="validation"),
    "evaluation": dict(evaluation="validation"),
    "test_at_end": dict(test_at_end=True, evaluation="validation"),
    "ema": dict(ema=0.5),
    "registration": dict(registration="0" * 16),
    "seed": dict(seed=8),
    "precision": dict(precision="bfloat16"),
    "keep_weights": dict(keep_weights=True),
}


#: Settings that change no row: names, and what is done at a run's end.
NO_ROW = ("variant", "registration", "test_at_end", "ema", "keep_weights")


@pytest.mark.parametrize("setting", Spec.model_fields)
def test_every_setting_does_something_and_is_implemented_or_trained_alone(tmp_path, setting):
    short, needed = dict(iterations=6, evaluate_every=3), {**OTHERS[setting]}
    changed = dense(**{"seed": 1, **short, **needed})
    needed.pop(setting)
    plain = dense(**{"seed": 1, **short, **needed})
    assert getattr(changed, setting) != getattr(plain, setting)
    alone, together, before = (tmp_path / name for name in ("alone", "together", "before"))
    expected = pd.read_csv(train(changed, alone))
    if setting not in NO_ROW:
        assert not expected.equals(pd.read_csv(train(plain, before)))
    if stacked.why_not(changed):
        assert f"{setting}=" in stacked.why_not(changed)
        return
    train_together([changed], together)
    found = pd.read_csv(together / f"{changed.name}.csv")
    pd.testing.assert_frame_equal(found, expected, rtol=2e-3, atol=6e-3)


def test_a_setting_that_the_stacked_trainer_does_not_know_is_trained_alone():
    class Longer(Spec):
        clip: float = 1.0

    assert stacked.why_not(Longer(**dense(1).model_dump())) == "clip=1.0"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_runs_bytes_do_not_depend_on_who_shares_its_group(tmp_path, optimizer):
    found = {}
    for size in (1, 7, 40):
        folder = tmp_path / str(size)
        train_together([dense(seed, optimizer=optimizer) for seed in range(5, 5 + size)], folder)
        found[size] = (folder / "run-seed5.csv").read_bytes()
    assert found[1] == found[7] == found[40]


def test_a_run_that_diverges_ends_and_disturbs_nobody(tmp_path):
    calm, wild = dense(1, policy=FIXED), dense(2, policy=dict(name="fixed", lr=1e30, milestones=[]))
    alone, together = tmp_path / "alone", tmp_path / "together"
    train_together([calm, wild], together)
    train_together([calm], alone)
    assert (alone / "run-seed1.csv").read_bytes() == (together / "run-seed1.csv").read_bytes()
    assert record_of(together / "run-seed2.csv")["diverged"]
    assert pd.read_csv(together / "run-seed2.csv").empty


def test_complete_runs_are_left_alone(tmp_path):
    specs = [dense(seed) for seed in range(1, 4)]
    train_together(specs[:1], tmp_path)
    before = (tmp_path / "run-seed1.csv").stat().st_mtime_ns
    train_together(specs, tmp_path)
    assert (tmp_path / "run-seed1.csv").stat().st_mtime_ns == before
    assert len(list(tmp_path.glob("*.csv"))) == 3


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([dense(1), dense(2, batch_size=8)], "may differ in seed, policy, variant, test_at_end, registration alone"),
        ([dense(1, optimizer="rmsprop")], "optimizer='rmsprop'"),
        ([dense(1, ema=0.9)], "ema=0.9"),
        ([dense(1, model="wide_resnet-10-1", dataset="digits")], "wide_resnet-10-1 keeps running statistics"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(tmp_path, specs, message):
    with pytest.raises(RunError, match=message):
        train_together(specs, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_dense_runs_are_faster_together_on_a_processor_and_every_stackable_one_on_a_gpu():
    convolutions = [small(seed=seed, model="lenet", dataset="digits") for seed in (1, 2)]
    statistics = small(seed=3, model="wide_resnet-10-1")
    fine = [dense(seed) for seed in range(23)]
    coarse = dense(1, batch_size=8, variant="coarse")
    alone, groups = divided([*convolutions, statistics, *fine, coarse], "cpu")
    assert alone == [*convolutions, statistics]
    assert groups == [fine[:20], fine[20:], [coarse]]
    alone, groups = divided([*convolutions, statistics, *fine, coarse], "cuda")
    assert alone == [statistics]
    assert groups == [convolutions, fine, [coarse]]


def test_many_runs_use_it_and_verify_too(tmp_path, capsys):
    specs = [*(dense(seed) for seed in range(1, 4)), small()]
    files = run_all(specs, tmp_path, workers=1)
    assert [record_of(file.csv).get("together") for file in files] == [3, 3, 3, None]
    output = capsys.readouterr()
    assert "4 runs complete, 4 of them trained now" in output.out
    assert "run-seed3: accuracy" in output.out
    assert not (tmp_path / ".partial").exists()
    for rows in (1, 2):
        assert verify(files[0], rows) is None


def test_a_group_killed_while_it_wrote_its_runs_goes_on_whole(tmp_path):
    specs = [dense(seed) for seed in range(1, 4)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_together(specs, whole)
    train_together(specs, parts, stop_after=20)
    for suffix in (".json", ".csv"):  # the first of them was written before the kill
        (parts / f"run-seed1{suffix}").write_bytes((whole / f"run-seed1{suffix}").read_bytes())
    train_together(specs, parts)
    assert contents(parts) == contents(whole)
    assert not (parts / ".partial").exists()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: content[:500], "could not be read (BadZipFile)"),
        *((changed(part), f"is of another layout (it has no {part})") for part in ("iteration", "weights", "rows")),
        (changed(layout=99), "is of another layout"),
        (changed(iteration=41), "is of another layout"),
        (changed(moments={}), "could not be read"),
    ],
)
def test_a_groups_checkpoint_that_cannot_be_taken_up_is_set_aside_and_its_runs_start_over(tmp_path, damage, why):
    specs, said = [dense(seed) for seed in range(1, 4)], []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_together(specs, whole)
    train_together(specs, parts, stop_after=20)
    (path,) = (parts / ".partial").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    train_together(specs, parts, tell=said.append)
    (line,) = said
    assert f"{path} {why}" in line
    assert "set aside as .set-aside/together-" in line
    assert line.endswith(", its 3 runs start from the beginning")
    assert contents(parts) == contents(whole)


def test_a_short_group_killed_while_it_wrote_its_runs_records_the_same_group(tmp_path, monkeypatch):
    """It had saved nothing before: it was done within seconds."""
    specs, finish = [dense(seed) for seed in range(1, 4)], RunFiles.finish

    def killed(files, rows, record):
        if files.name == "run-seed2":
            raise KeyboardInterrupt
        finish(files, rows, record)

    monkeypatch.setattr(RunFiles, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        train_together(specs, tmp_path)
    monkeypatch.undo()
    train_together(specs, tmp_path)
    assert [RunFiles(tmp_path, spec.name).read()[1]["together"] for spec in specs] == [3, 3, 3]
    assert not (tmp_path / ".partial").exists()


def test_a_diverged_run_says_how_far_it_came_as_it_does_alone(tmp_path):
    wild = dense(2, policy=dict(name="exp", lr=1.0, gamma=100.0))
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(wild, alone)
    train_together([wild, dense(1)], together)
    records = [record_of(folder / "run-seed2.csv") for folder in (alone, together)]
    assert records[0]["diverged"] is records[1]["diverged"] is True
    assert records[0]["iterations"] == records[1]["iterations"]


def _train_saving_often(specs, folder):
    stacked.CHECKPOINT_SECONDS = 0.0
    train_together(specs, folder)


@pytest.mark.ci
def test_a_group_killed_at_work_goes_on_to_the_same_bytes(tmp_path):
    specs = [dense(seed, iterations=1500, evaluate_every=20) for seed in (1, 2)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    victim = multiprocessing.get_context("spawn").Process(target=_train_saving_often, args=(specs, parts))
    victim.start()
    while not list(parts.glob(".partial/together-*.pt")) and victim.is_alive():
        time.sleep(0.01)
    victim.kill()
    victim.join()
    (saved,) = parts.glob(".partial/together-*.pt")
    (saved.parent / f".{saved.name}.1.tmp").touch()  # as if it had been killed while it wrote
    assert not list(parts.glob("*.csv"))
    train_together(specs, parts)
    train_together(specs, whole)
    assert contents(parts) == contents(whole)
    assert not (parts / ".partial").exists()
