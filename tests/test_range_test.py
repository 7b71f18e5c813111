"""The range test on real models: its rows, batches of any kind, what ends it and what is refused."""

import math
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import CROSS_ENTROPY, every, problem, small

from modules.data.batches import Data, batches
from modules.data.datasets import load
from modules.data.splits import split
from modules.range_test import apply_rate, best_rate, range_test, suggest_bounds
from modules.range_test.loop import ignored_by, length, validate
from modules.rate_finders.rules import suggest_rate
from modules.runs import training
from modules.statistics import AnalysisError


def test_importing_the_range_test_loads_no_machinery():
    """It is what users import: torch, numpy and pandas, not what the study runs on."""
    heavy = {"pydantic", "scipy.stats", "dask", "distributed", "filelock", "matplotlib", "IPython"}
    code = f"import sys, modules.range_test; print(sorted({heavy} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_range_test_climbs_measures_and_puts_everything_back():
    model, optimizer, batches, accuracy = problem()
    before = [parameter.clone() for parameter in model.parameters()]
    table = range_test(
        model, optimizer, torch.nn.functional.cross_entropy, batches, accuracy, 1e-4, 1.0, 200, 5, "exponential"
    )
    assert len(table) == 40
    assert table.lr.iloc[-1] == pytest.approx(1.0, rel=0.1)
    assert table.accuracy.iloc[-1] > table.accuracy.iloc[0] + 0.2
    assert table.train_loss.iloc[-1] < table.train_loss.iloc[0] - 0.2
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state_dict()["state"]


def test_the_end_of_the_ramp_has_a_row():
    model, optimizer, batches, accuracy = problem()
    table = range_test(
        model, optimizer, torch.nn.functional.cross_entropy, batches, accuracy, 0.1, 1.0, 39, 20, "linear"
    )
    assert len(table) == 2
    assert table.lr.iloc[-1] == pytest.approx(0.1 + 0.9 * 38 / 39)


def test_range_test_stops_when_the_loss_has_climbed():
    model, optimizer, batches, accuracy = problem()
    loss = torch.nn.functional.cross_entropy
    options = (model, optimizer, loss, batches, accuracy, 1e-3, 1e4, 400, 5, "exponential")
    whole, stopped = range_test(*options), range_test(*options, stop_factor=4)
    measured = stopped.train_loss.notna()
    assert whole.train_loss.notna().sum() > measured.sum() > 10
    assert (whole.train_loss[measured] == stopped.train_loss[measured]).all()
    means = stopped.train_loss[measured].rolling(3).mean()
    assert means.iloc[-1] > 4 * means.min() > means.iloc[-2]


def test_two_arguments_and_the_loss_are_enough():
    model, optimizer, batches, _ = problem()
    table = range_test(model, optimizer, CROSS_ENTROPY, batches)
    assert list(table) == ["iteration", "lr", "train_loss", "val_loss", "accuracy"]
    assert table.iteration.tolist() == list(range(1, 401))
    assert table.lr.iloc[7] == pytest.approx(1e-6 * 1e7 ** (7 / 400))
    assert 1e-3 < best_rate(table.lr, table.train_loss).lr < 10
    assert 1e-3 < suggest_rate(table.lr, table.train_loss, "linear") < 10


@pytest.mark.parametrize("how", ["evaluate", "validation"])
def test_by_default_there_is_a_row_an_iteration_and_fifty_evaluations(how):
    model, optimizer, batches, accuracy = problem()
    given = {how: accuracy if how == "evaluate" else batches}
    table = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=200, **given)
    assert len(table) == 200
    assert table.iteration[table.accuracy.notna()].tolist() == list(range(4, 201, 4))
    model, optimizer, batches, accuracy = problem()
    alone = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=200)
    assert table.train_loss.tolist() == alone.train_loss.tolist()
    model, optimizer, batches, accuracy = problem()
    given = {how: accuracy if how == "evaluate" else batches}
    rows = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=200, evaluate_every=4, **given)
    assert rows.accuracy.tolist() == table.accuracy[3::4].tolist()
    assert rows.train_loss.tolist() == pytest.approx(table.train_loss.groupby(table.index // 4).mean().tolist())


@pytest.mark.parametrize("zero", [0.0, -3.0, -100.0])
def test_a_ramp_whose_loss_is_below_zero_gives_the_same_rate(zero):
    model, optimizer, batches, _ = problem()
    alone = range_test(model, optimizer, CROSS_ENTROPY, batches, max_lr=1e4)

    def moved(outputs, labels):
        return CROSS_ENTROPY(outputs, labels) + zero

    model, optimizer, batches, _ = problem()
    table = range_test(model, optimizer, moved, batches, max_lr=1e4, stop_factor=4)
    for read in (lambda *of: best_rate(*of).lr, lambda *of: suggest_rate(*of, "linear")):
        assert read(table.lr, table.train_loss) == pytest.approx(read(alone.lr, alone.train_loss), rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_the_study_s_range_test_gives_the_same_numbers(tmp_path, optimizer, ramp):
    """The function that users call, and the policy whose runs are published; both until they diverge."""
    policy = dict(name="range_test", min_lr=1e-3, max_lr=1e4, ramp=ramp, stop_factor=50)
    wanted = small(policy, seed=3, iterations=60, evaluate_every=5, optimizer=optimizer)
    trained = pd.read_csv(training.train(wanted, tmp_path))
    dataset = load("digits")
    with training.one_thread():
        state = training._State(wanted, dataset, torch.device("cpu"))
        data = Data(split(dataset, wanted.split, wanted.seed), torch.device("cpu"), wanted.pixels)
        order = batches(len(data.split.train), wanted.batch_size, wanted.seed)

        def evaluate(model):
            loss, correct = training.evaluate(model, data, "test")
            return correct.double().mean().item() if np.isfinite(loss) else np.nan

        table = range_test(
            state.model,
            state.optimizer,
            CROSS_ENTROPY,
            ((data.pixels(images), labels) for images, labels in map(data.batch, order)),
            evaluate,
            **wanted.policy.model_dump(exclude={"name", "anneal", "warm_up"}),
            iterations=wanted.iterations,
            evaluate_every=wanted.evaluate_every,
        )
    assert 0 < len(trained) < 12 or optimizer == "adam"
    measured = table[table.train_loss.notna()]
    assert measured.iteration.tolist() == trained.iteration.tolist()
    for own, study in (("lr", "lr"), ("train_loss", "train_loss"), ("accuracy", "val_acc")):
        assert measured[own].tolist() == trained[study].tolist()


def test_accumulated_batches_are_one_iteration():
    """Two halves, their gradients averaged, are the whole batch."""
    tables = []
    for accumulate in (1, 2):
        model, optimizer, batches, accuracy = problem()
        if accumulate == 2:
            batches = [(x[half], y[half]) for x, y in batches for half in (slice(0, 25), slice(25, 50))]
        tables.append(
            range_test(model, optimizer, CROSS_ENTROPY, batches, accuracy, 1e-3, 1, 40, accumulate=accumulate)
        )
    for column in ("train_loss", "accuracy"):
        assert tables[0][column].tolist() == pytest.approx(tables[1][column].tolist(), rel=1e-3)


class Named(torch.nn.Module):
    """A model of two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(10, 4)

    def forward(self, left, right):
        return self.linear(torch.cat([left, right], 1))


Pair = namedtuple("Pair", "inputs labels")


class Attributes(dict):
    __getattr__ = dict.__getitem__


@every(
    ("shape", "forward"),
    [
        (lambda x, y: (x[:, :5], x[:, 5:], y), None),
        (lambda x, y: ((x[:, :5], x[:, 5:]), y), None),
        (lambda x, y: [{"left": x[:, :5], "right": x[:, 5:]}, y], None),
        (lambda x, y: (Pair(x[:, :5], x[:, 5:]), y), lambda model, batch: CROSS_ENTROPY(model(*batch[0]), batch[1])),
        (
            lambda x, y: {"x": {"left": x[:, :5], "right": x[:, 5:]}, "labels": [y], "names": ["a", "b"]},
            lambda model, batch: CROSS_ENTROPY(model(**batch["x"]), batch["labels"][0]),
        ),
        (
            lambda x, y: Pair([x[:, :5], x[:, 5:]], y),
            lambda model, batch: CROSS_ENTROPY(model(*batch.inputs), batch.labels),
        ),
        (
            lambda x, y: Attributes(left=x[:, :5], right=x[:, 5:], labels=y),
            lambda model, batch: CROSS_ENTROPY(model(batch.left, batch.right), batch.labels),
        ),
    ],
    ids=["three", "nested", "keywords", "named inputs", "mapping", "namedtuple", "attributes"],
)
def test_batches_of_any_kind(shape, forward):
    plain, _, batches, _ = problem()
    model = Named()
    model.linear.load_state_dict(plain.state_dict())
    given = [shape(x, y) for x, y in batches]
    expected = range_test(plain, torch.optim.SGD(plain.parameters(), lr=0.1), CROSS_ENTROPY, batches, iterations=40)
    loss_fn = None if forward else CROSS_ENTROPY
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table = range_test(model, optimizer, loss_fn, given, iterations=40, forward=forward)
    assert table.train_loss.tolist() == expected.train_loss.tolist()


@dataclass(slots=True)
class Graphs:
    names: list
    nodes: torch.Tensor


@every(
    ("batch", "samples"),
    [
        (torch.zeros(3, 2), 3),
        (torch.zeros(()), 1),
        ({"id": ["a", "b"], "x": torch.zeros(3, 2)}, 3),
        ([("a", "b"), torch.zeros(3)], 3),
        ({"meta": {"n": 1}, "x": [[], torch.zeros(3)]}, 3),
        (Graphs(["a", "b"], torch.zeros(3)), 3),
        (["a", 1, None], 1),
    ],
    ids=["tensor", "number", "names first", "texts first", "nested", "dataclass", "no tensor"],
)
def test_a_batch_has_as_many_samples_as_its_first_tensor(batch, samples):
    assert length(batch) == samples


def answers(*shape, classes, at):
    """Targets of a shape, and outputs with the classes in a dimension, of which three quarters are right."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(classes, shape, generator=generator)
    said = torch.where(torch.arange(target.numel()).reshape(shape) % 4 > 0, target, (target + 1) % classes)
    return torch.nn.functional.one_hot(said, classes).movedim(-1, at).float(), target


@every(
    ("answered", "ignored", "accuracy"),
    [
        (answers(40, classes=5, at=1), None, 0.75),
        (answers(40, 6, classes=5, at=1), None, 0.75),
        (answers(40, 6, classes=5, at=-1), None, 0.75),
        (answers(4, 10, 6, classes=5, at=1), None, 0.75),
        (answers(4, 10, 6, classes=5, at=-1), None, 0.75),
        (answers(40, 5, classes=5, at=-1), None, None),  # which dimension has the classes, nobody can tell
        (answers(40, classes=1, at=1), None, None),  # a single output, as of a binary loss
        (answers(40, 6, classes=5, at=-1), 0, 0.75),
        (answers(40, 6, classes=5, at=-1), -100, 0.75),
    ],
)
def test_an_accuracy_is_of_the_dimension_with_the_classes_and_of_the_targets_that_count(answered, ignored, accuracy):
    outputs, target = answered
    if ignored is not None:  # such as the padding of sequences; what is said there counts nowhere
        padded = torch.arange(target.numel()).reshape(target.shape) % 8 < 4
        target, accuracy = target.where(~padded, ignored), None
        right = (outputs.argmax(-1) == target)[target != ignored]
        accuracy = right.float().mean().item()
    model = torch.nn.Linear(1, 1)
    loss_fn = torch.nn.CrossEntropyLoss(ignore_index=-100 if ignored is None else ignored)
    _, found = validate(model, [None], lambda _: (torch.zeros(()), outputs, target), ignored_by(loss_fn))
    assert found == pytest.approx(math.nan if accuracy is None else accuracy, nan_ok=True)


@pytest.mark.parametrize("shape", ["pair", "mapping", "nested"])
def test_a_short_last_validation_batch_weighs_less_with_a_forward_too(shape):
    model, optimizer, batches, _ = problem()
    shapes = {
        "pair": lambda inputs, target: (inputs, target),
        "mapping": lambda inputs, target: {"name": "toy", "x": inputs, "y": target},
        "nested": lambda inputs, target: [[{"x": inputs}], target],
    }
    taken = {
        "pair": lambda batch: batch,
        "mapping": lambda batch: (batch["x"], batch["y"]),
        "nested": lambda batch: (batch[0][0]["x"], batch[1]),
    }

    def forward(model, batch):
        inputs, target = taken[shape](batch)
        return CROSS_ENTROPY(model(inputs), target)

    short = [batches[0], tuple(part[:3] for part in batches[1])]
    found = []
    for settings, make in (
        (dict(loss_fn=CROSS_ENTROPY), lambda *pair: pair),
        (dict(forward=forward), shapes[shape]),
    ):
        made = [[make(*pair) for pair in pairs] for pairs in (batches, short)]
        found.append(range_test(model, optimizer, batches=made[0], validation=made[1], iterations=5, **settings))
    assert found[0].val_loss.tolist() == pytest.approx(found[1].val_loss.tolist())


def test_a_validation_batch_that_is_no_number_is_no_divergence_of_the_training():
    model, optimizer, batches, _ = problem()
    validation = [*batches[:2], (torch.full((50, 10), float("nan")), batches[0][1])]
    with pytest.raises(ValueError, match="validation: the loss is not finite at the first evaluation"):
        range_test(model, optimizer, CROSS_ENTROPY, batches, validation=validation, iterations=40)


@every("undefined", [[1], [20], [1, 2, 3, 30]])
def test_an_accuracy_that_is_not_defined_ends_no_ramp_and_changes_no_rate(undefined):
    model, optimizer, batches, accuracy = problem()
    clean = range_test(model, optimizer, CROSS_ENTROPY, batches, accuracy)
    count = iter(range(1, 51))
    table = range_test(
        *(model, optimizer, CROSS_ENTROPY, batches),
        lambda model: float("nan") if next(count) in undefined else accuracy(model),
    )
    assert table.train_loss.tolist() == clean.train_loss.tolist()
    lost = clean.accuracy.notna() & table.accuracy.isna()
    assert clean.iteration[lost].tolist() == [8 * each for each in undefined]
    assert suggest_bounds(table.lr, table.accuracy).max_lr == pytest.approx(
        suggest_bounds(clean.lr, clean.accuracy).max_lr, rel=0.5
    )


def test_a_validation_whose_forward_takes_a_gradient_is_refused_in_a_line():
    model, optimizer, batches, _ = problem()

    def forward(model, batch):
        inputs = batch[0].clone().requires_grad_()
        loss = CROSS_ENTROPY(model(inputs), batch[1])
        return loss + torch.autograd.grad(loss, inputs, create_graph=True)[0].square().sum()

    with pytest.raises(ValueError, match=r"the forward takes one: put what takes it under torch.enable_grad\(\)"):
        range_test(model, optimizer, None, batches, iterations=4, forward=forward, validation=batches)
    enabled = torch.enable_grad()(forward)
    found = range_test(model, optimizer, None, batches, iterations=4, forward=enabled, validation=batches)
    assert found.val_loss.notna().all()


def test_batches_that_are_sorted_by_class_are_told():
    model, optimizer, batches, _ = problem()
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = labels.argsort()
    with pytest.warns(UserWarning, match="most batches have a single class") as warned:
        range_test(
            model, optimizer, CROSS_ENTROPY, [*zip(inputs[order].split(20), labels[order].split(20), strict=True)]
        )
    assert warned[0].filename == __file__
    rare = (torch.arange(400) % 40 == 0).long()  # nearly all batches have the frequent class alone
    range_test(model, optimizer, CROSS_ENTROPY, [*zip(inputs.split(20), rare.split(20), strict=True)])


def test_a_packed_sequence_is_one_input():
    """As any named tuple: a plain list or tuple is the model's arguments."""

    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = torch.nn.GRU(3, 2)

        def forward(self, packed):
            return self.recurrent(packed)[1][0]

    model = Recurrent()
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table = range_test(model, optimizer, CROSS_ENTROPY, [(packed, torch.tensor([0, 1]))], iterations=5)
    assert table.train_loss.notna().all()


def test_a_validation_loader_gives_loss_and_accuracy():
    model, optimizer, batches, accuracy = problem()
    uneven = [*batches[:-1], *((x[:7], y[:7]) for x, y in batches[-1:]), *((x[7:], y[7:]) for x, y in batches[-1:])]

    def loss(model):
        return CROSS_ENTROPY(model(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches])).item()

    by_loader = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=50, validation=uneven)
    accuracies = range_test(model, optimizer, CROSS_ENTROPY, batches, accuracy, iterations=50).accuracy
    assert by_loader.accuracy.tolist() == pytest.approx(accuracies.tolist())
    losses = range_test(model, optimizer, CROSS_ENTROPY, batches, loss, iterations=50).accuracy
    assert by_loader.val_loss.tolist() == pytest.approx(losses.tolist(), rel=1e-5)
    regression = [(x, x[:, :4]) for x, _ in batches]
    table = range_test(model, optimizer, torch.nn.MSELoss(), regression, iterations=50, validation=regression)
    assert table.val_loss.notna().any()
    assert table.accuracy.isna().all()


def normalised(frozen=False):
    """`problem`, with a batch normalisation behind its layer."""
    linear, _, batches, _ = problem()
    norm = torch.nn.BatchNorm1d(4)
    model = torch.nn.Sequential(linear, norm)
    norm.train(not frozen)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), batches


@pytest.mark.parametrize(
    ("frozen", "size", "iterations", "present"), [(False, 25, 50, True), (False, 2, 5, False), (True, 25, 50, False)]
)
def test_in_a_ramp_batch_normalisation_is_evaluated_with_statistics_of_the_present_weights(
    frozen, size, iterations, present
):
    """Running ones lag behind a rate that climbs. Frozen ones are the network; those of few samples are noise."""
    model, optimizer, batches = normalised(frozen)
    (linear, norm), differs = model, []
    batches = [(x[:size], y[:size]) for x, y in batches]  # eight, gone through in order

    def evaluate(model):  # after each iteration
        last = [batches[i % 8][0] for i in range(max(0, len(differs) - 7), len(differs) + 1)]
        means = torch.stack([linear(x).mean(axis=0) for x in last])
        differs.append(((means.mean(axis=0) - norm.running_mean).abs().max() / means.abs().max()).item())
        return 0.5

    range_test(model, optimizer, CROSS_ENTROPY, batches, evaluate, iterations=iterations, max_lr=1e3)
    assert max(differs) < 1e-4 if present else min(differs) > 0.01
    assert norm.running_mean.tolist() == [0.0] * 4
    assert norm.momentum == 0.1


def test_an_accuracy_does_not_depend_on_which_validation_samples_share_a_batch():
    """A folder for each class is read class by class: statistics of such a batch would know the answer."""
    model, optimizer, batches = normalised()
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    order = y.argsort()
    accuracies = [
        range_test(model, optimizer, CROSS_ENTROPY, batches, validation=validation, iterations=50).accuracy
        for validation in (
            batches,
            [(x[y == label], y[y == label]) for label in y.unique()],
            list(zip(x[order, None], y[order, None], strict=True)),
        )
    ]
    for other in accuracies[1:]:
        assert other.tolist() == pytest.approx(accuracies[0].tolist())


def test_a_ramp_trains_the_same_with_a_validation_and_without():
    model, optimizer, batches = normalised()
    alone, beside = (
        range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=50, **given).train_loss
        for given in ({}, {"validation": batches})
    )
    assert beside.tolist() == pytest.approx(alone.tolist(), nan_ok=True)


def test_lazy_modules_are_initialised_by_the_first_batch():
    _, _, batches, _ = problem()
    model = torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.LazyBatchNorm1d(), torch.nn.LazyLinear(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = torch.get_rng_state()
    seen = []
    table = range_test(model, optimizer, CROSS_ENTROPY, (seen.append(0) or batch for batch in batches), iterations=8)
    assert table.train_loss.notna().all()
    assert len(seen) == 8
    assert model[0].weight.shape == (8, 10)
    assert model[1].num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), state)


@every(
    ("groups", "keep", "expected"),
    [
        ([dict(lr=0.1), dict(lr=0.01)], True, [1, 0.1]),
        ([dict(lr=0.1), dict(lr=0.01)], False, [1, 1]),
        ([dict(lr=0.01), dict(lr=torch.tensor(0.1))], True, [0.1, 1]),
        ([dict(lr=0.1, lr_mult=3.0), dict(lr=0.01)], True, [3, 1]),
        ([dict(lr=0.0), dict(lr=0.0)], True, [1, 1]),
        ([dict(lr=0.1), dict(lr=0.0)], True, [1, 0]),
        ([dict(lr=0.1, lr_scale=0.5), dict(lr=0.1, lr_scale=0.25)], True, [0.5, 0.25]),
        ([dict(lr=0.1, lr_scale=0.5, lr_mult=3.0), dict(lr=0.01)], True, [1.5, 1]),
        ([dict(lr=0.1, lr_mult=3.0), dict(lr=0.0, lr_mult=1.0)], True, [3, 0]),
    ],
    ids=["ratio", "same", "second is largest", "lr_mult", "all zero", "frozen", "timm", "both", "lr_mult, frozen"],
)
def test_groups_keep_their_ratios(groups, keep, expected):
    model, _, batches, _ = problem()
    optimizer = torch.optim.SGD(
        [{"params": [p], **group} for p, group in zip((model.weight, model.bias), groups, strict=True)], lr=0.5
    )
    used = []
    optimizer.register_step_pre_hook(lambda o, *_: used.append([float(group["lr"]) for group in o.param_groups]))
    table = range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=50, max_lr=1.0, keep_ratios=keep)
    assert np.allclose(used, np.outer(table.lr, expected))
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([float(g["lr"]) for g in groups])


RATIO = st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0, 3.0])
GROUP = st.fixed_dictionaries({"lr": RATIO}, optional={"lr_mult": RATIO, "lr_scale": RATIO})


@given(groups=st.lists(GROUP, min_size=1, max_size=4), keep=st.booleans(), tensors=st.booleans())
def test_a_rate_is_applied_to_groups_as_the_ramp_had_set_them(groups, keep, tensors):
    """A frozen group stays frozen; a scheduler made next begins with these rates, whatever one before had left."""
    layers = [torch.nn.Linear(1, 1) for _ in groups]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(
        [{"params": layer.parameters(), **group} for layer, group in zip(layers, groups, strict=True)], lr=1.0
    )
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if tensors:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    before = [group["lr"] for group in optimizer.param_groups]
    used = []
    optimizer.register_step_pre_hook(lambda o, *_: used.append([float(group["lr"]) for group in o.param_groups]))
    batches = [(torch.ones(1, 1), torch.ones(1, 1))]
    table = range_test(
        model, optimizer, torch.nn.MSELoss(), batches, min_lr=1e-9, max_lr=1e-6, iterations=5, keep_ratios=keep
    )
    with pytest.warns(UserWarning, match="a scheduler that was made before goes on from its own rates"):
        apply_rate(optimizer, table.lr[3], keep)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    assert rates == pytest.approx(used[3])
    assert [float(group["initial_lr"]) for group in optimizer.param_groups] == rates
    assert all((group["lr"] is old) == tensors for group, old in zip(optimizer.param_groups, before, strict=True))
    own = [(rate, group["lr"]) for rate, group in zip(rates, groups, strict=True) if group.keys() == {"lr"}]
    if keep and max((lr for _, lr in own), default=0) > 0:
        assert [rate for rate, _ in own] == pytest.approx([table.lr[3] * lr / max(own)[1] for _, lr in own])
    if keep and max(group["lr"] for group in groups) > 0:
        assert all(rate == 0 for rate, group in zip(rates, groups, strict=True) if group["lr"] == 0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    optimizer.step()
    scheduler.step()
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.75 * rate for rate in rates])


def test_at_the_start_of_a_warm_up_groups_have_the_ratios_of_their_initial_rates():
    model = problem()[0]
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.1}])
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]
    with pytest.warns(UserWarning, match="make it anew"):
        apply_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.04])


@every("rate", [float("nan"), 0.0, -1, float("inf"), None, "0.1", True, torch.ones(2)])
def test_what_is_no_rate_is_not_applied(rate):
    optimizer = problem()[1]
    with pytest.raises(ValueError, match="rate must be a number above 0, not "):
        apply_rate(optimizer, rate)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=1024.0)], ids=["float32", "scaled"])
def test_gradients_are_clipped_by_a_hook(scaler, fused):
    model, _, batches, _ = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, fused=fused)
    norms, clipped = [], []

    def clip(optimizer, args, kwargs):
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)))

    def after(optimizer, args, kwargs):
        clipped.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))

    optimizer.register_step_pre_hook(clip)
    optimizer.register_step_post_hook(after)
    range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=10, scaler=scaler)
    assert all(0.1 < norm < 10 for norm in norms)
    assert clipped == pytest.approx([0.1] * 10, rel=1e-3)


class Stranger:
    """An object that answers every question with an error."""

    __slots__ = ("unset",)

    def __getattr__(self, name):
        raise RuntimeError(f"there is no {name}")


def test_an_object_whose_attributes_raise_errors_ends_no_ramp():
    model, optimizer, batches, _ = problem()
    stranger = Stranger()

    def loss_fn(outputs, labels):
        return CROSS_ENTROPY(outputs, labels) + 0 * isinstance(stranger, int)

    assert len(range_test(model, optimizer, loss_fn, batches, iterations=10)) == 10


@given(lost=st.sets(st.integers(1, 29), max_size=10), skipped=st.sets(st.integers(1, 29), max_size=10))
def test_single_lost_batches_and_batches_without_a_loss_leave_holes_and_no_divergence(lost, skipped):
    """Three lost ones in a row are a divergence; any number may be skipped, by returning None as in Lightning."""
    given = sorted(set(range(30)) - skipped)
    ends = {last for *before, last in zip(given, given[1:], given[2:], strict=False) if lost.issuperset(before)}
    lost = (lost - skipped - ends) or {3}
    skipped = skipped - lost
    model, optimizer, batches, _ = problem()
    calls = iter(range(30))

    def forward(model, batch):
        index = next(calls)
        loss = CROSS_ENTROPY(model(batch[0]), batch[1])
        return None if index in skipped else loss * (float("nan") if index in lost else 1)

    table = range_test(model, optimizer, None, batches, iterations=30, forward=forward)
    at_the_end = set(range(max(set(range(30)) - skipped) + 1, 30))
    assert set(np.flatnonzero(table.train_loss.isna())) == lost | (skipped - at_the_end)


def test_an_error_of_a_network_that_has_diverged_ends_the_ramp_there():
    """torch's distributions refuse a mean that is no number."""
    model, optimizer, batches, _ = problem()

    def forward(model, batch):
        if optimizer.param_groups[0]["lr"] > 1:  # a step too large, while the loss is still a number
            model.weight.data.fill_(torch.nan)
        return -torch.distributions.Normal(model(batch[0]), 1.0).log_prob(batch[0][:, :4]).mean()

    table = range_test(model, optimizer, None, batches, forward=forward)
    assert table.lr[table.train_loss.last_valid_index()] == pytest.approx(1, rel=0.05)


def test_a_fault_is_no_divergence_where_weights_that_do_not_train_are_infinite():
    model, _, batches, _ = problem()
    model.mask = torch.nn.Parameter(torch.full((4,), -torch.inf), requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        range_test(model, optimizer, CROSS_ENTROPY, [(x[:, :5], y) for x, y in batches])


def test_batches_that_are_skipped_to_the_end_are_no_divergence():
    """The readers take what is missing at the end for one: here the loss falls until then, and never rises."""
    model, optimizer, batches, _ = problem()
    calls = iter(range(400))

    def forward(model, batch):
        return CROSS_ENTROPY(model(batch[0]), batch[1]) if next(calls) < 320 else None

    for row_every in (1, 8):
        calls = iter(range(400))
        table = range_test(
            model, optimizer, None, batches, max_lr=1.0, iterations=400, evaluate_every=row_every, forward=forward
        )
        assert table.train_loss.notna().all()
        with pytest.raises(AnalysisError, match="does not rise again"):
            best_rate(table.lr, table.train_loss)


def test_a_batch_without_a_loss_is_left_out_of_its_iteration_and_of_the_validation():
    model, optimizer, batches, _ = problem()

    def forward(model, batch):
        found = CROSS_ENTROPY(model(batch[0]), batch[1])
        return None if len(batch) > 2 else found

    settings = dict(forward=forward, iterations=8, min_lr=1e-9, max_lr=1e-8)
    expected = range_test(model, optimizer, None, batches, validation=batches, **settings)
    twice = [each for inputs, labels in batches for each in ((inputs, labels), (inputs, labels, "skip"))]
    table = range_test(model, optimizer, None, twice, validation=twice, accumulate=2, **settings)
    for column in ("train_loss", "val_loss"):
        assert table[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-5)


@pytest.mark.parametrize("bad", [[3], [3, 10], [8]], ids=["one", "two", "at a row's end"])
def test_a_single_batch_without_a_finite_loss_is_survived(bad):
    """It changes no weight; the rows go on, and the one it lies in is the mean of the others."""
    model, optimizer, batches, accuracy = problem()
    calls = []

    def loss_fn(outputs, labels):
        calls.append(0)
        return CROSS_ENTROPY(outputs, labels) * (float("nan") if len(calls) in bad else 1)

    table = range_test(model, optimizer, loss_fn, batches, accuracy, 1e-3, 0.1, 40, 4)
    assert table.train_loss.notna().all()
    assert table.accuracy.iloc[-1] > 0.8


def test_a_batch_that_is_no_number_leaves_no_trace_in_running_statistics():
    """The forward pass has put it into them before the loss is known."""
    torch.manual_seed(0)
    inputs = torch.randn(800, 6)
    labels = (inputs @ torch.randn(6, 3)).argmax(1)
    batches = [(inputs[at : at + 20].clone(), labels[at : at + 20]) for at in range(0, 800, 20)]
    batches[20][0][3, 2] = float("nan")
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    validation = [(inputs[:200], labels[:200])]
    table = range_test(
        model, optimizer, CROSS_ENTROPY, batches, min_lr=1e-3, max_lr=0.1, iterations=40, validation=validation
    )
    measured = table[table.val_loss.notna()]
    assert measured.iteration.iloc[-1] == 40
    assert measured.accuracy.iloc[-1] > 0.5


@pytest.mark.parametrize("in_a_row", [1, 2, 3, 5])
def test_several_lost_iterations_in_a_row_end_the_test_at_the_first(in_a_row):
    """Also where a row ends between them: it was measured while the run had diverged."""
    model, optimizer, batches, accuracy = problem()
    calls = []

    def loss_fn(outputs, labels):
        calls.append(0)
        return CROSS_ENTROPY(outputs, labels) * (float("inf") if len(calls) >= 12 else 1)

    table = range_test(model, optimizer, loss_fn, batches, accuracy, 1e-3, 0.1, 40, 4, lost_in_a_row=in_a_row)
    assert len(calls) == 11 + in_a_row
    assert table.iteration[table.train_loss.notna()].tolist() == [4, 8]
    assert (table.train_loss.notna() == table.accuracy.notna()).all()
    assert len(table) == 10


def test_an_iterator_lasts_for_the_ramp_or_says_so():
    model, optimizer, batches, _ = problem()
    table = range_test(model, optimizer, CROSS_ENTROPY, (batch for batch in 3 * batches), iterations=24)
    assert table.train_loss.notna().all()
    before = model.weight.tolist()
    with pytest.raises(ValueError, match="batches ended after 24 of 50, and can be gone through only once"):
        range_test(model, optimizer, CROSS_ENTROPY, iter(3 * batches), iterations=25, accumulate=2)
    assert model.weight.tolist() == before


def test_what_is_not_supported_is_refused_in_a_line():
    model, optimizer, batches, accuracy = problem()
    lbfgs = torch.optim.LBFGS(model.parameters())
    torch.optim.lr_scheduler.StepLR(lbfgs, 1)  # which wraps its step
    each = torch.nn.CrossEntropyLoss(reduction="none")
    usual, samples = (model, optimizer, CROSS_ENTROPY, batches), torch.utils.data.TensorDataset(*batches[0])
    shared, alone = (torch.nn.Linear(10, 4) for _ in range(2))
    shared.process_group, alone.process_group = SimpleNamespace(size=lambda: 2), SimpleNamespace(size=lambda: 1)
    of_alone = torch.optim.SGD(alone.parameters(), lr=0.1)
    assert len(range_test(alone, of_alone, CROSS_ENTROPY, batches, iterations=10)) == 10
    rateless, without = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    del rateless.param_groups[0]["lr"]
    without.param_groups[0]["lr"] = None
    empty = torch.optim.SGD(model.parameters(), lr=0.1)
    empty.param_groups.clear()
    others = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    upwards = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    for message, arguments, settings in (
        ("LBFGS calls a closure many times a step", (model, lbfgs, CROSS_ENTROPY, batches), {}),
        ("optimizer must be a torch.optim.Optimizer, not list", (model, [], CROSS_ENTROPY, batches), {}),
        ("model must be a torch.nn.Module, not function", (accuracy, optimizer, CROSS_ENTROPY, batches), {}),
        ("model is a Linear over 2 processes, each of", (shared, optimizer, CROSS_ENTROPY, batches), {}),
        ("the optimizer has maximize=True: give minus", (model, upwards, CROSS_ENTROPY, batches), {}),
        ("either a loss_fn", (model, optimizer, None, batches), {}),
        ("either a loss_fn", (model, optimizer, CROSS_ENTROPY, batches), dict(forward=accuracy)),
        ("give one of them", (model, optimizer, CROSS_ENTROPY, batches, accuracy), dict(validation=batches)),
        ("are called validation", (model, optimizer, CROSS_ENTROPY, batches, batches), {}),
        (
            "validation can be gone through only once",
            (model, optimizer, CROSS_ENTROPY, batches),
            dict(validation=iter(batches)),
        ),
        ("validation is empty", (model, optimizer, CROSS_ENTROPY, batches), dict(validation=[])),
        ("a tensor of one number, not a tensor of shape \\(50,\\)", (model, optimizer, each, batches), {}),
        ("a tensor of one number, not float", (model, optimizer, None, batches), dict(forward=lambda *_: 1.0)),
        (
            "a batch is inputs and a target, not a dict: give a forward",
            (model, optimizer, CROSS_ENTROPY, [{"x": 1}]),
            {},
        ),
        (
            "a batch is inputs and a target, not a list of fewer than two: give a forward",
            (model, optimizer, CROSS_ENTROPY, [[batches[0][0]]]),
            {},
        ),
        ("autocast must be a type such as torch.bfloat16, or None, not 'bfloat16'", usual, dict(autocast="bfloat16")),
        ("scaler must be a torch.amp.GradScaler, or None, not True", usual, dict(scaler=True)),
        (
            "accumulate must be a whole number above 0, not 0",
            (model, optimizer, CROSS_ENTROPY, batches),
            dict(accumulate=0),
        ),
        *(
            (f"{name} must be a whole number above 0, not {value!r}", usual, {name: value})
            for name in ("iterations", "evaluate_every", "accumulate")
            for value in (10.5, 0, -1, "4", True)
        ),
        ("the order is loss_fn, then batches", (model, optimizer, batches, CROSS_ENTROPY), {}),
        (r"CrossEntropyLoss\(\) is a loss", (model, optimizer, torch.nn.CrossEntropyLoss, batches), {}),
        ("batches must be e.g. a DataLoader, not int", (model, optimizer, CROSS_ENTROPY, 3), {}),
        ("batches is empty", (model, optimizer, CROSS_ENTROPY, []), {}),
        ("trains none of the model's parameters", (model, others, CROSS_ENTROPY, batches), {}),
        ("trains none of the model's parameters", (model, empty, CROSS_ENTROPY, batches), {}),
        ("evaluate_every must be between 1 and iterations=10, not 20", usual, dict(evaluate_every=20)),
        ("stop_factor must be above 1, or None, not '4'", usual, dict(stop_factor="4")),
        ("stop_factor must be above 1, or None, not 1", usual, dict(stop_factor=1)),
        ("min_lr must be below max_lr: min_lr=0.1, max_lr=0.1", usual, dict(min_lr=0.1, max_lr=0.1)),
        ("batches is a Dataset, .* DataLoader", (model, optimizer, CROSS_ENTROPY, samples), {}),
        ("validation is a Dataset, .* DataLoader", usual, dict(validation=samples)),
        ("evaluate must return a number, not NoneType", (*usual, lambda model: None), {}),
        ("no batch gave a loss", (model, optimizer, None, batches), dict(forward=lambda *_: None)),
        ("group 0 has no lr", (model, rateless, CROSS_ENTROPY, batches), {}),
        ("group 0 has lr=None", (model, without, CROSS_ENTROPY, batches), {}),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            range_test(*arguments, **{"iterations": 10, **settings})
        assert "\n" not in str(refused.value)
