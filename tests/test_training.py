"""One run: the same bytes every time, interrupted or not; what its files say; how it fails."""

import re
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import torch
from toys import FIXED, PHASES, TRIANGULAR, changed, every, make_images, record_of, small

from modules.checks import RunError
from modules.data.batches import Data, batches
from modules.data.datasets import load
from modules.data.splits import split
from modules.runs import provenance, training
from modules.runs.files import COLUMNS, PARTS, RunFiles
from modules.runs.provenance import processor
from modules.runs.training import evaluate, train

POLICIES = [
    TRIANGULAR,
    FIXED,
    dict(name="triangular2", base_lr=0.01, max_lr=0.1, step_size=5),
    dict(name="exp_range_both", base_lr=0.01, max_lr=0.1, step_size=5, gamma=0.99),
    dict(name="custom", base_lr=0.01, max_lr=0.1, step_size=5, scale_fn="sinusoidal"),
    dict(name="decay", base_lr=0.01, max_lr=0.1, step_size=15),
    dict(name="exp", lr=0.1, gamma=0.95),
    dict(name="range_test", min_lr=0.001, max_lr=0.1),
    dict(name="linear", lr=0.1),
    dict(name="cosine_restarts", lr=0.1, period=5),
    dict(name="one_cycle", max_lr=0.1),
]


CLIMB_AND_DROP = dict(warm_up=9, anneal=0.5)
RUNS = {
    **{policy["name"]: small(policy) for policy in POLICIES},
    "phases": small(PHASES, bias_lr_mult=2.0),
    **{f"{policy['name']}, climb and drop": small({**policy, **CLIMB_AND_DROP}) for policy in (*POLICIES[:2], PHASES)},
    "adam": small(optimizer="adam"),
    "adamw": small(optimizer="adamw"),
    "rmsprop": small(optimizer="rmsprop"),
    "multipliers": small({**POLICIES[0], **CLIMB_AND_DROP}, bias_lr_mult=2.0),
    "schedule-free": small({**FIXED, "milestones": []}, optimizer="schedulefree", bias_lr_mult=2.0),
    "average": small(ema=0.9),
    "augmented": small(augment="flip_crop", pixels="standard"),
    "not evaluated": small(evaluation="none"),
    "kept": small(keep_weights=True),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_interrupted_and_resumed_gives_the_same_bytes(tmp_path, run):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(run, whole)
    for stop in (6, 12, 18):
        path = train(run, parts, stop_after=stop)
        assert not path.exists()
        assert RunFiles(parts, run.name).checkpoint.exists()
    assert train(run, parts).read_bytes() == expected.read_bytes()
    assert not (parts / ".partial").exists()
    found, record = record_of(path), record_of(expected)
    assert (found.get("test"), found.get("ema")) == (record.get("test"), record.get("ema"))
    assert RunFiles(parts, run.name).weights.exists() == run.keep_weights


def test_convolutions_give_the_same_bytes_whatever_the_threads_outside(tmp_path):
    spec = small(model="cifar10_quick", iterations=4, evaluate_every=2, batch_size=20)
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(train(spec, tmp_path / str(threads)).read_bytes())
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_files_of_a_run(tmp_path):
    path = train(small(), tmp_path)
    table = pd.read_csv(path)
    assert tuple(table.columns) == COLUMNS
    assert list(table.iteration) == [6, 12, 18, 24]
    # lr is the rate of the iteration just finished: number 5, counted from 0, is one short of the top.
    assert table.lr[0] == pytest.approx(0.01 + 0.09 * 5 / 6)
    record = record_of(path)
    assert record["spec"] == small().model_dump(mode="json")
    assert record["data"] == {
        "label": "digits (scikit-learn)",
        "fingerprint": load("digits").fingerprint,
        "train": 1297,
        "validation": 0,
        "test": 500,
    }
    assert record["diverged"] is False
    assert (record["processor"], record["device"]) == (processor(), "cpu")
    assert record["versions"]["torch"] == version("torch")
    assert str(tmp_path) not in path.with_suffix(".json").read_text()


def test_a_record_names_every_machine_that_trained_a_part(tmp_path, monkeypatch):
    train(small(), tmp_path, stop_after=6)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("modules.runs.provenance.processor", lambda: "another processor")
        train(small(), tmp_path, stop_after=12)
    path = train(small(), tmp_path)
    record = record_of(path)
    assert record["processor"] == f"{processor()} / another processor"
    assert record["versions"]["torch"] == version("torch")
    assert record["device"] == "cpu"


def test_a_run_leaves_torch_as_it_was(tmp_path):
    def flags():
        cudnn = torch.backends.cudnn
        return torch.get_num_threads(), cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32, cudnn.benchmark

    before, seen = flags(), []
    train(small(), tmp_path, report=lambda done, accuracy: seen.append(flags()))
    assert set(seen) == {(1, before[1], True, False, False)}
    assert flags() == before


def test_a_run_that_learns_learns(tmp_path):
    spec = small(dict(name="fixed", lr=0.01), optimizer="adam", weight_decay=0.0, iterations=200, evaluate_every=100)
    table = pd.read_csv(train(spec, tmp_path))
    assert table.val_acc.iloc[-1] > 0.3
    assert table.train_loss.iloc[-1] < table.train_loss.iloc[0]


def test_last_iteration_is_evaluated_even_out_of_step(tmp_path):
    assert list(pd.read_csv(train(small(iterations=15), tmp_path)).iteration) == [6, 12, 15]


def test_complete_run_is_left_alone(tmp_path):
    path = train(small(), tmp_path)
    before = path.stat().st_mtime_ns
    assert train(small(), tmp_path) == path
    assert path.stat().st_mtime_ns == before


def test_diverged_run_keeps_its_rows_and_says_so(tmp_path):
    spec = small(dict(name="exp", lr=0.01, gamma=1.7), model="lenet", iterations=36)
    path = train(spec, tmp_path)
    record = record_of(path)
    assert record["diverged"] is True
    assert record["iterations"] < 36
    table = pd.read_csv(path)
    assert len(table) >= 1
    assert np.isfinite(table.to_numpy()).all()


def test_rate_beyond_float32_is_a_divergence(tmp_path):
    policy = dict(name="exp", lr=0.01, gamma=100.0)
    path = train(small(policy, optimizer="adam", iterations=50, evaluate_every=25), tmp_path)
    record = record_of(path)
    assert record["diverged"] is True
    assert record["iterations"] == 19  # 0.01 * 100^19 is the first rate of at least 1e36
    assert pd.read_csv(path).empty


@every(
    ("settings", "message"),
    [
        (dict(batch_size=2000), "batch_size=2000 exceeds the 1297"),
        (dict(model="wide_resnet-11-1"), "11-1"),
        (dict(multipliers="caffe"), "multipliers='caffe' is for Caffe's networks"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(tmp_path, settings, message):
    with pytest.raises(RunError, match=message):
        train(small(**settings), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_batches_cover_each_epoch_once_and_start_anywhere():
    stream = batches(10, 3, seed=4)
    first = [next(stream) for _ in range(7)]
    assert len(set(np.concatenate(first[:3]).tolist())) == 9
    assert sorted(np.concatenate(first[3:6]).tolist()) != np.concatenate(first[:3]).tolist()
    late = batches(10, 3, seed=4, start=5)
    np.testing.assert_array_equal(next(late), first[5])
    np.testing.assert_array_equal(next(late), first[6])
    assert not np.array_equal(next(batches(10, 3, seed=5)), first[0])


def pixels(dataset, kind):
    """All training images as a network gets them."""
    data = Data(split(dataset, "standard", 1), torch.device("cpu"), kind)
    images = data.pixels(data.images)
    assert images.is_contiguous(memory_format=torch.channels_last)
    return images


def test_pixels_are_scaled_and_centred():
    images = pixels(load("digits"), "unit")
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert (images.max() - images.min()).item() == pytest.approx(1)


def test_standard_pixels_have_mean_0_and_deviation_1_in_every_channel(tmp_path):
    images = pixels(load("images", make_images(tmp_path / "images")), "standard")
    assert images.mean((0, 2, 3)).abs().max() < 1e-6
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_caffe_pixels_are_bytes_minus_the_mean_image(tmp_path):
    dataset = load("images", make_images(tmp_path / "images"))
    expected = dataset.train_images.astype(float) - dataset.train_images.astype(float).mean(axis=0)
    np.testing.assert_allclose(pixels(dataset, "caffe").numpy(), expected, atol=1e-4)


def test_caffe_setting_trains_and_its_parts_change_the_result(tmp_path):
    """Every one of its four switches alone gives other bytes, so none is without effect."""
    base = dict(model="cifar10_full", batch_size=10, iterations=4, evaluate_every=2)
    caffe = dict(pixels="caffe", init="caffe", pooling="caffe", multipliers="caffe")
    fixed = dict(name="fixed", lr=0.001)
    results = set()
    for number, changes in enumerate([{}, caffe, *({key: value} for key, value in caffe.items())]):
        results.add(train(small(fixed, **base, **changes), tmp_path / str(number)).read_bytes())
    assert len(results) == 6


def lines(path):
    return path.read_text().splitlines()


def test_a_run_that_chooses_on_validation_reads_the_test_images_at_its_end_alone(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        training, "evaluate", lambda model, data, part: read.append(part) or evaluate(model, data, part)
    )
    chosen = dict(split="validation", evaluation="validation")
    final = train(small(**chosen, test_at_end=True), tmp_path)
    assert read == ["validation"] * 4 + ["test"]
    assert set(record_of(final)["test"]) == {"loss", "accuracy"}
    read.clear()
    tuned = train(small(**chosen, variant="tuning"), tmp_path)
    assert read == ["validation"] * 4
    assert "test" not in record_of(tuned)
    assert lines(tuned) == lines(final)
    assert record_of(tuned)["data"]["validation"] == 130


def test_the_record_of_a_run_that_is_tested_has_its_last_accuracy(tmp_path):
    path = train(small(), tmp_path)
    assert record_of(path)["test"]["accuracy"] == float(lines(path)[-1].split(",")[-1])
    assert "test" not in record_of(train(small(evaluation="none", variant="blind"), tmp_path))


def test_the_moving_average_of_the_weights_changes_no_row(tmp_path):
    plain = train(small(), tmp_path)
    averaged = train(small(ema=0.9, variant="averaged"), tmp_path)
    assert lines(plain) == lines(averaged)
    assert record_of(averaged)["ema"]["test"]["loss"] != record_of(averaged)["test"]["loss"]


def test_schedule_free_sgd_is_another_optimizer(tmp_path):
    free = RUNS["schedule-free"]
    sgd = free.model_copy(update={"optimizer": "sgd", "variant": "sgd"})
    assert lines(train(free, tmp_path)) != lines(train(sgd, tmp_path))


def trunk_and_branches(policy):
    """A trunk of 24 iterations, and what leaves it: two drops and two beginnings, each at an evaluation."""
    own = dict(test_at_end=True, ema=0.9)
    return small(policy, variant="trunk", ema=0.9), {
        12: small({**policy, "anneal": 0.5}, variant="drop", **own),
        6: small({**policy, "anneal": 0.5}, variant="short_drop", iterations=12, **own),
        18: small(policy, variant="beginning", iterations=18, **own),
    }


WSD = dict(name="fixed", lr=0.05, milestones=(), warm_up=5)


@pytest.mark.parametrize("policy", [TRIANGULAR, FIXED, WSD], ids=["cycle", "cuts", "warm-up, stable, decay"])
def test_branches_go_on_from_their_trunk_with_the_bytes_of_runs_of_their_own(tmp_path, policy):
    alone, forked = tmp_path / "alone", tmp_path / "forked"
    trunk, branches = trunk_and_branches(policy)
    assert {start: training.leaves_at(branch, trunk) for start, branch in branches.items()} == {
        start: start for start in branches
    }
    train(trunk, forked, branches=list(branches.values()))
    for start, branch in branches.items():
        seen = []
        path = train(branch, forked, report=lambda iteration, accuracy, seen=seen: seen.append(iteration))
        assert min(seen, default=99) > start
        assert path.read_bytes() == train(branch, alone).read_bytes()
        record, other = record_of(path), record_of(alone / path.name)
        assert record.pop("forked") == {"from": "trunk-seed1", "iteration": start}
        assert (record["test"], record["ema"]) == (other["test"], other["ema"])


def test_a_shorter_drop_goes_on_from_a_longer_one(tmp_path):
    alone, forked = tmp_path / "alone", tmp_path / "forked"
    _, branches = trunk_and_branches(TRIANGULAR)
    longer, shorter = branches[12], branches[6]
    train(longer, forked, branches=[shorter])
    assert train(shorter, forked).read_bytes() == train(shorter, alone).read_bytes()
    assert record_of(forked / "short_drop-seed1.csv")["forked"] == {"from": "drop-seed1", "iteration": 6}


def test_only_the_same_run_up_to_an_evaluation_is_a_trunk():
    trunk, branches = trunk_and_branches(TRIANGULAR)
    for branch in branches.values():
        assert training.leaves_at(trunk, branch) is None
        assert training.leaves_at(branch, trunk.model_copy(update={"seed": 2})) is None
    # Between two evaluations the loss since the last one would be lost.
    assert training.leaves_at(small({**TRIANGULAR, "anneal": 0.4}, variant="drop", ema=0.9), trunk) is None
    # A line to zero of another length has other rates from the start; so has schedule-free SGD, which warms up itself.
    line = dict(name="linear", lr=0.1)
    assert training.leaves_at(small({**line, "anneal": 0.5}, variant="drop", iterations=12), small(line)) is None
    assert training.leaves_at(small({**line, "anneal": 0.5}, variant="drop"), small(line)) == 12
    free = dict(optimizer="schedulefree", ema=0.9)
    assert training.leaves_at(branches[18].model_copy(update=free), trunk.model_copy(update=free)) is None


def test_each_branch_waits_for_the_run_it_shares_most_with_and_which_waits_for_nobody():
    trunk, branches = trunk_and_branches(TRIANGULAR)
    runs = [*branches.values(), trunk]
    assert training.branches_of(runs) == {"trunk-seed1": [branches[18], branches[12], branches[6]]}
    assert training.branches_of(runs, {"beginning-seed1"}) == {"trunk-seed1": [branches[12], branches[6]]}
    assert training.branches_of(list(branches.values())) == {"beginning-seed1": [branches[12], branches[6]]}


def flipped(content):
    """One bit of a weight is another: torch alone would not notice."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


OTHER = small(weight_decay=0.1).model_dump_json()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: b"", "could not be read"),
        (lambda content: b"PK\x03\x04 no archive", "could not be read"),
        (lambda content: content[:500], "could not be read"),
        (flipped, "could not be read"),
        (changed(spec=OTHER), r"is of other settings \(weight_decay: 0.1, not 0.004\)"),
        (changed(layout=99), r"is of another layout \(another version wrote it\)"),
        (changed(iteration=10**6), r"is of another layout \(iteration=1000000 of 24\)"),
        (changed(iteration=-1), "is of another layout"),
        (changed(iteration="6"), "is of another layout"),
        (changed(rows=5), "is of another layout"),
        (changed(rows=[[1, 2]]), "is of another layout"),
        (changed(rows=[[600, 0.1, 1.0, 1.0, 0.1]]), "is of another layout"),
        (changed(model={}), r"does not fit \(RuntimeError\)"),
        (changed(model=None), "does not fit"),
        (changed(optimizer={}), "does not fit"),
        *((changed(part), f"is of another layout .it has no {part}") for part in PARTS),
    ],
)
def test_a_checkpoint_that_cannot_be_taken_up_is_set_aside_and_the_run_starts_over(tmp_path, capsys, damage, why):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small(), parts, stop_after=6)
    checkpoint = RunFiles(parts, small().name).checkpoint
    checkpoint.write_bytes(damaged := damage(checkpoint.read_bytes()))
    assert train(small(), parts).read_bytes() == train(small(), whole).read_bytes()
    said = capsys.readouterr().out
    assert re.search(f"triangular-seed1.pt {why}.*: set aside as .set-aside/.*, triangular-seed1 starts from", said)
    assert said.count("\n") == 1
    (aside,) = (parts / ".set-aside").iterdir()
    assert aside.read_bytes() == damaged
    assert not checkpoint.parent.exists()


def test_very_many_runs_are_not_compared_with_one_another(monkeypatch):
    """A pair at a time, twenty thousand runs took longer than they train."""
    trunk, branches = trunk_and_branches(TRIANGULAR)
    runs = [
        run.model_copy(update={"variant": f"{run.variant}{number}", "momentum": number / 1000})
        for number in range(500)
        for run in (trunk, branches[12])
    ]
    compared, leaves_at = [], training.leaves_at
    monkeypatch.setattr(training, "leaves_at", lambda *pair: compared.append(pair) or leaves_at(*pair))
    found = training.branches_of(runs)
    assert found == {f"trunk{number}-seed1": [runs[2 * number + 1]] for number in range(500)}
    assert len(compared) <= len(runs)


def test_a_checkpoint_from_before_there_were_layouts_is_taken_up(tmp_path, capsys):
    train(small(), tmp_path, stop_after=6)
    path = RunFiles(tmp_path, small().name).checkpoint
    state = torch.load(path, weights_only=True)
    del state["layout"]
    torch.save(state, path)
    assert RunFiles(tmp_path, small().name).saved(small(), state["fingerprint"])["iteration"] == 6
    assert capsys.readouterr().out == ""


def test_variables_that_choose_among_instructions_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    provenance.processor.cache_clear()
    try:
        record = record_of(train(small(), tmp_path))
    finally:
        provenance.processor.cache_clear()
    assert record["processor"].endswith(", MKL_CBWR=COMPATIBLE")
