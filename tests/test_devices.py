"""What must hold on every device: the same tests on the processor and, where there is one, on a GPU."""

import pandas as pd
import pytest
import torch
from toys import FIXED, TRIANGULAR, contents, record_of, small

from modules.checks import RunError
from modules.runs import stacked
from modules.runs.stacked import train_together
from modules.runs.training import one_thread, train

NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
QUICK = dict(model="cifar10_quick", dataset="digits", batch_size=32, iterations=8, evaluate_every=2, split="validation")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_CARD)])
def device(request):
    return request.param


def quick(seed, **changes):
    return small(FIXED if seed % 2 else TRIANGULAR, seed, variant="run", **{**QUICK, **changes})


def test_a_run_alone_gives_the_same_bytes_again_and_after_a_stop(tmp_path, device):
    first, second = tmp_path / "first", tmp_path / "second"
    train(quick(1), first, device=device)
    train(quick(1), second, device=device, stop_after=4)
    train(quick(1), second, device=device)
    assert contents(first) == contents(second)


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, marks=pytest.mark.ci), dict(model="mlp"), dict(model="mlp", optimizer="adam")],
    ids=["convolutions", "dense", "adam"],
)
def test_a_group_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, device, changes):
    first, second = tmp_path / "first", tmp_path / "second"
    specs = [quick(seed, **changes) for seed in (1, 2, 3)]
    train_together(specs, first, device=device)
    train_together(specs, second, device=device, stop_after=4)
    assert not list(second.glob("*.csv"))
    train_together(specs, second, device=device)
    assert contents(first) == contents(second)
    assert not (second / ".partial").exists()


def test_a_run_is_what_the_processor_makes_of_it_but_for_rounding(tmp_path, device):
    """Over 200 iterations of a card, at a rate at which rounding does not grow into another run."""
    here, there = tmp_path / "here", tmp_path / "there"
    length = dict(iterations=200 if device == "cuda" else 40, evaluate_every=5)
    run = small(dict(name="fixed", lr=0.005, milestones=[]), variant="run", **{**QUICK, **length})
    train(run, here, device="cpu")
    train_together([run], there, device=device)
    expected, found = (pd.read_csv(folder / "run-seed1.csv") for folder in (here, there))
    pd.testing.assert_frame_equal(found, expected, rtol=0.02, atol=0.02)
    assert found.train_loss.iloc[:10].tolist() == pytest.approx(expected.train_loss.iloc[:10].tolist(), rel=1e-4)


def test_the_record_names_the_device(tmp_path, device):
    said = record_of(train(quick(1), tmp_path, device=device))["device"]
    assert said == ("cpu" if device == "cpu" else torch.cuda.get_device_name())


def test_float32_is_float32_and_what_was_set_before_comes_back(device):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with one_thread():
            assert torch.get_float32_matmul_precision() == "highest"
            a = torch.full((64, 64), 1 + 2**-13, device=device)  # TF32 has ten bits
            assert torch.allclose(a @ torch.eye(64, device=device), a, rtol=0, atol=0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def room_for(monkeypatch, most):
    """Let a group run out of memory where it has more runs than this."""
    train_group, groups = stacked._train, []

    def limited(specs, *arguments):
        if len(specs) > most:
            raise torch.OutOfMemoryError("out of memory")
        groups.append(len(specs))
        return train_group(specs, *arguments)

    monkeypatch.setattr(stacked, "_train", limited)
    return groups


def test_a_group_too_large_for_the_memory_is_split_and_a_stop_finds_the_parts_again(tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    specs = [quick(seed, model="mlp") for seed in range(1, 6)]
    train_together(specs, whole)
    groups = room_for(monkeypatch, 2)
    train_together(specs, parts, stop_after=4)
    assert len(list((parts / ".partial").glob("together-*.pt"))) == 3
    train_together(specs, parts)
    assert groups == [2, 1, 2] * 2
    assert "5 runs together do not fit into the device's memory: one half after the other" in capsys.readouterr().out
    assert contents(parts) == contents(whole)
    assert record_of(parts / "run-seed1.csv")["together"] == 2


def test_a_run_too_large_for_the_memory_is_named(tmp_path, monkeypatch):
    room_for(monkeypatch, 0)
    with pytest.raises(RunError, match="run-seed1 does not fit into the device's memory: lower its batch_size"):
        train_together([quick(1, model="mlp")], tmp_path)


@NO_CARD
def test_a_card_that_is_full_splits_a_group(tmp_path, capsys):
    torch.cuda.set_per_process_memory_fraction(3e8 / torch.cuda.get_device_properties(0).total_memory)
    try:
        train_together([quick(seed, batch_size=256) for seed in range(1, 65)], tmp_path, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "do not fit into the device's memory" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.csv"))) == 64
