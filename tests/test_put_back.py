"""After a range test everything is as it was: the network, and all that a training may use beside it."""

import functools
import random
import warnings
from collections import OrderedDict, deque
from copy import deepcopy

import numpy as np
import pytest
import torch
from toys import CROSS_ENTROPY, every, problem

from modules import snapshot
from modules.range_test import range_test


def test_frozen_modules_stay_frozen_and_modes_are_put_back():
    frozen = torch.nn.BatchNorm1d(4)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), frozen, torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    frozen.eval()
    before = frozen.running_mean.clone()
    modes = {module: module.training for module in model.modules()}
    seen = []

    def evaluate(model):
        seen.append((model[1].training, model[2].training))
        model.eval()
        return 0.5

    batches = [(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    range_test(model, optimizer, torch.nn.CrossEntropyLoss(), batches, evaluate, 0.01, 0.1, 4, 2)
    assert seen == [(False, True)] * 2
    assert {module: module.training for module in model.modules()} == modes
    assert torch.equal(frozen.running_mean, before)


class Odd(torch.nn.Module):
    """What is easily forgotten: dropout, a BatchNorm, a buffer that is not saved, state that is not a tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = torch.nn.Linear(10, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.register_buffer("late", None)
        self.calls = 0

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]

    def forward(self, inputs):
        self.seen += 1
        self.calls += 1
        self.late = self.seen + random.random() + np.random.rand()
        return self.last(torch.nn.functional.dropout(self.norm(self.first(inputs)).relu()))


@pytest.mark.parametrize("fails", [None, RuntimeError, KeyboardInterrupt])
def test_afterwards_everything_is_as_it_was(fails):
    _, _, batches, _ = problem()
    generator = torch.Generator().manual_seed(1)
    loader = torch.utils.data.DataLoader(
        [(x, y) for inputs, labels in batches for x, y in zip(inputs, labels, strict=True)],
        batch_size=20,
        shuffle=True,
        generator=generator,
    )
    model, rate = Odd(), torch.tensor(0.01)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    CROSS_ENTROPY(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    moments = dict(optimizer.state[model.last.bias])
    model.norm.eval()

    def everything():
        tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
        state = [value for values in optimizer.state.values() for value in values.values()]
        return deepcopy(
            (
                [tensor.tolist() for tensor in tensors + state],
                {key: value for key, value in optimizer.param_groups[0].items() if key != "params"},
                [module.training for module in model.modules()],
                (model.calls, scaler.state_dict(), random.getstate(), np.random.get_state()[1].tolist()),
                (torch.get_rng_state().tolist(), generator.get_state().tolist()),
            )
        )

    def loss_fn(outputs, labels):
        if fails and model.calls > 20:
            raise fails("the user's own")
        return CROSS_ENTROPY(outputs, labels)

    gradients, before = [parameter.grad for parameter in model.parameters()], everything()
    settings = dict(iterations=30, scaler=scaler, autocast=torch.bfloat16, validation=batches)
    if fails:
        with pytest.raises(fails, match="the user's own"):
            range_test(model, optimizer, loss_fn, loader, **settings)
    else:
        table = range_test(model, optimizer, loss_fn, loader, **settings)
        assert table.val_loss.notna().any()
    assert everything() == before
    assert optimizer.param_groups[0]["lr"] is rate
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(optimizer.state[model.last.bias][key] is value for key, value in moments.items())
    assert "initial_lr" not in optimizer.param_groups[0]
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_scaler_unscales_the_next_step_although_the_one_before_was_interrupted(error, when):
    model, data = torch.nn.Linear(4, 2), [(torch.randn(8, 4), torch.randint(2, (8,)))] * 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler, loss_fn = torch.amp.GradScaler("cpu", init_scale=1024.0), torch.nn.CrossEntropyLoss()

    def fail(*_):
        raise error

    with getattr(optimizer, f"register_step_{when}_hook")(fail), pytest.raises(error):
        range_test(model, optimizer, loss_fn, data, scaler=scaler, iterations=8)
    before, own = model.weight.detach().clone(), deepcopy(model)
    loss_fn(own(data[0][0]), data[0][1]).backward()
    scaler.scale(loss_fn(model(data[0][0]), data[0][1])).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.allclose(before - model.weight, 0.1 * own.weight.grad, atol=1e-7)


def test_a_criterion_with_parameters_is_trained_and_put_back():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, outputs, labels):
            scales.append(self.scale.item())
            return CROSS_ENTROPY(self.scale * outputs, labels)

    scales = []
    model, _, batches, _ = problem()
    criterion = Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    range_test(model, optimizer, criterion, batches, iterations=20)
    assert len(set(scales)) > 5
    assert criterion.scale.item() == 1


class OfTimm(torch.optim.Optimizer):
    """As timm's Lookahead: no state of its own, slow weights in the state of the optimizer it wraps."""

    def __init__(self, base):
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        self._base_optimizer, self.param_groups, self.defaults = base, base.param_groups, base.defaults
        self.state = {}

    def state_dict(self):
        return self._base_optimizer.state_dict()

    def step(self, closure=None):
        self._base_optimizer.step()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self._base_optimizer.state[parameter]
                slow = state.setdefault("lookahead_slow_buff", parameter.detach().clone())
                parameter.data.copy_(slow.lerp_(parameter.data, 0.5))


class OfPytorchOptimizer(torch.optim.Optimizer):
    """As pytorch_optimizer's Lookahead, with slow weights in a list: neither state nor groups have them."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer, self.steps = optimizer, 0
        self.slow = [parameter.detach().clone() for group in self.param_groups for parameter in group["params"]]

    def step(self, closure=None):
        self.optimizer.step()
        self.steps += 1
        self.late = self.steps
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for parameter, slow in zip(parameters, self.slow, strict=True):
            parameter.data.copy_(slow.lerp_(parameter.data, 0.5))


@pytest.mark.parametrize("wrapper", [OfTimm, OfPytorchOptimizer])
def test_an_optimizer_that_wraps_another_is_put_back_with_it(wrapper):
    """So what is trained afterwards is what would have been trained without the test."""
    trained = []
    for tests in (False, True):
        model, _, batches, _ = problem()
        optimizer = wrapper(torch.optim.Adam(model.parameters(), lr=0.01))
        losses = []
        for index, (inputs, labels) in enumerate(4 * batches):
            if tests and index in (0, 3):
                known = set(vars(optimizer))
                range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=30)
                assert set(vars(optimizer)) == known
            optimizer.zero_grad()
            CROSS_ENTROPY(model(inputs), labels).backward()
            optimizer.step()
            losses.append(model.weight.tolist())
        trained.append(losses)
    assert trained[0] == trained[1]


def network():
    return torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.BatchNorm1d(4))


SECOND = network()


def with_second(outputs, labels, second=None):
    """A loss that uses a second network; a global, unless one is given."""
    looked = (second or SECOND)(torch.ones(len(labels), 10) * outputs.detach().mean())
    return CROSS_ENTROPY(outputs, labels) + looked.square().mean()


class Adversary:
    """An object with a loss, whose own network is trained in it by an optimizer of its own."""

    def __init__(self, second):
        self.parts = {"second": second}
        self.optimizer = torch.optim.Adam(second.parameters(), lr=0.1)

    def __call__(self, outputs, labels):
        self.optimizer.zero_grad()
        with_second(outputs.detach(), labels, self.parts["second"]).backward()
        self.optimizer.step()
        return CROSS_ENTROPY(outputs, labels)


class Taught(torch.nn.Module):
    """A second network in a list, so that its parameters are not this one's."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.kept = first, [second]

    def forward(self, inputs):
        return self.first(inputs) + self.kept[0](inputs).detach()


class Names(torch.nn.Module):
    """A loss that names a global in its method."""

    def forward(self, outputs, labels):
        return with_second(outputs, labels)


class Object:
    """The same, of no module."""

    loss = Names.forward

    def __call__(self, outputs, labels):
        return self.loss(outputs, labels)


class Average:
    """An average of the weights that is no module and has no `state_dict()`."""

    def __init__(self, model, anew):
        self.shadow, self.updates, self.anew = [p.detach().clone() for p in model.parameters()], 0, anew

    def update(self, model):
        self.updates += 1
        with torch.no_grad():
            pairs = list(zip(self.shadow, model.parameters(), strict=True))
            if self.anew:
                self.shadow = [old + (new - old) / self.updates for old, new in pairs]
            for old, new in pairs:
                old.lerp_(new, 0.1)


WAYS = {
    "global": lambda second: with_second,
    "closure": lambda second: lambda outputs, labels: with_second(outputs, labels, second),
    "partial": lambda second: functools.partial(with_second, second=second),
    "default": lambda second: lambda outputs, labels, second=second: with_second(outputs, labels, second),
    "within a function": lambda second: lambda *of: sum(with_second(*each, SECOND) for each in [of]),
    "a module's method": lambda second: Names(),
    "an object's method": lambda second: Object(),
    "a class": lambda second: lambda *of: with_second(*of, type("Holder", (), {"second": second}).second),
}


@every(
    "way", [*WAYS, "method", "object", "list", "step hook", "module hook", "average", "average made anew", "collate"]
)
def test_a_second_network_that_is_used_is_put_back_too(way):
    """With its optimizer, where it has one: a teacher, an adversary, an average of the weights."""
    model, optimizer, batches, _ = problem()
    second, average = network(), Average(model, way == "average made anew")
    adversary = Adversary(second)
    loss_fn = WAYS.get(way, lambda second: CROSS_ENTROPY)(second)
    if way in ("method", "object"):
        loss_fn = adversary if way == "object" else adversary.__call__
    elif way == "list":
        model = Taught(model, second)
    elif way == "step hook":
        second = torch.optim.swa_utils.AveragedModel(model)
        optimizer.register_step_post_hook(lambda *_: second.update_parameters(model))
    elif way == "module hook":
        second = torch.optim.swa_utils.AveragedModel(model)
        model.register_forward_hook(lambda *_: second.update_parameters(model))
    elif way.startswith("average"):
        optimizer.register_step_post_hook(lambda *_: average.update(model))
    elif way == "collate":
        batches = torch.utils.data.DataLoader(batches, collate_fn=lambda each: (second[1](second[0](each[0][0])), 0))
        model, optimizer = torch.nn.Linear(4, 4), None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_fn = lambda outputs, _: outputs.square().mean()  # noqa: E731

    def state():
        return str((second.state_dict(), SECOND.state_dict(), adversary.optimizer.state_dict(), vars(average)))

    changed, before, shadow = [], state(), average.shadow
    optimizer.register_step_post_hook(lambda *_: changed.append(state() != before))
    range_test(model, optimizer, loss_fn, batches, iterations=30)
    assert any(changed)
    assert state() == before
    assert average.shadow is shadow


class Slots:
    """An average in slots; `__slots__` may also be a single name."""

    __slots__ = ("average", "updates")

    def __init__(self):
        self.average, self.updates = torch.zeros(4, 10), 0


class MoreSlots(Slots):
    __slots__ = "other"


@pytest.mark.parametrize("way", ["register_hook", "register_post_accumulate_grad_hook", "slots"])
def test_what_hooks_of_parameters_and_slots_hold_is_put_back(way):
    model, optimizer, batches, _ = problem()
    kept, total = MoreSlots(), torch.zeros(4, 10)
    kept.other = torch.zeros(1)

    def hook(tensor):
        total.add_(1)

    def loss_fn(outputs, target):
        if way == "slots":
            kept.average, kept.updates = kept.average + 1, kept.updates + 1
            kept.other.add_(1)
        return CROSS_ENTROPY(outputs, target)

    if way != "slots":
        getattr(model.weight, way)(hook)
    average = kept.average
    range_test(model, optimizer, loss_fn, batches, iterations=10)
    assert not total.any()
    assert kept.average is average
    assert [kept.average.sum(), kept.updates, kept.other.sum()] == [0, 0, 0]


ODD = {
    "coo": lambda: torch.eye(4).to_sparse(),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("where", ["buffer", "attribute", "closure"])
@pytest.mark.parametrize("layout", ODD)
def test_sparse_and_nested_tensors_are_put_back_wherever_they_are(layout, where):
    model, optimizer, batches, _ = problem()
    odd = ODD[layout]()
    before = odd.clone()
    if where == "buffer":
        model.register_buffer("odd", odd)
    elif where == "attribute":
        model.odd = odd

    def forward(model, batch):
        used = odd if where == "closure" else model.odd
        if layout == "coo":  # the others have no such method
            used.mul_(2)
        return CROSS_ENTROPY(model(batch[0]), batch[1])

    range_test(model, optimizer, None, batches, iterations=10, forward=forward)
    assert snapshot._same(odd, before)
    assert where == "closure" or model.odd is odd


def test_sparse_momentum_is_put_back():
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True), torch.nn.Flatten(), torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = [(torch.randint(10, (8, 1)), torch.randint(2, (8,))) for _ in range(4)]
    CROSS_ENTROPY(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    before = deepcopy(optimizer.state_dict()["state"][0]["momentum_buffer"])
    range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=10)
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"].to_dense(), before.to_dense())


def test_where_one_tensor_cannot_be_put_back_all_others_are_and_it_is_named():
    model, optimizer, batches, _ = problem()
    model.register_buffer("shared", torch.zeros(1).expand(3))  # cannot be written to
    CROSS_ENTROPY(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    before = deepcopy((model.weight, optimizer.state_dict()))
    whole = model.shared

    def forward(model, batch):
        whole.data[0] += 1
        return CROSS_ENTROPY(model(batch[0]), batch[1])

    named = (r"could not put back buffer shared \(RuntimeError\)", "range_test could not put back Linear shared")
    with pytest.warns(match=named[0]), pytest.warns(match=named[1]):
        range_test(model, optimizer, None, batches, iterations=10, forward=forward)
    assert torch.equal(model.weight, before[0])
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"], before[1]["state"][0]["momentum_buffer"])


class Observer(torch.nn.Module):
    """Its buffer gets its size from the first batch, as those of quantization do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros(0))

    def forward(self, inputs):
        if not len(self.largest):
            self.largest.resize_(inputs.shape[1]).zero_()
        self.largest.copy_(torch.maximum(self.largest, inputs.detach().amax(0)))
        return inputs


def test_a_buffer_that_grows_in_place_is_put_back_and_may_grow_again():
    model, optimizer, batches, _ = problem()
    observed = torch.nn.Sequential(observer := Observer(), model)
    buffer = observer.largest
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            range_test(observed, optimizer, CROSS_ENTROPY, batches, iterations=10)
        assert observer.largest is buffer
        assert len(buffer) == 0


class Noisy(torch.nn.Module):
    """A layer that adds noise of its own generators."""

    def __init__(self):
        super().__init__()
        self.generators = torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0)

    def forward(self, inputs):
        ours, numpy_s, legacy, python_s = self.generators
        return inputs + torch.rand(1, generator=ours) + numpy_s.random() + legacy.rand() + python_s.random()


class Drawn(torch.utils.data.Dataset):
    """A data set that draws its images."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.tensor(self.generator.normal(size=10), dtype=torch.float32), index % 4


class Wrapped:
    """A loader around another."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


@every("where", ["loader", "sampler", "batch sampler", "wrapped", "dataset", "layer"])
def test_generators_of_random_numbers_are_put_back_wherever_they_are(where):
    """So what is drawn after the test is what would have been drawn without it, and all races see the same batches."""
    generator = torch.Generator().manual_seed(0)
    utils, (_, _, pairs, _) = torch.utils.data, problem()
    points = (
        Drawn() if where == "dataset" else utils.TensorDataset(*(torch.cat(each) for each in zip(*pairs, strict=True)))
    )
    sampler = utils.RandomSampler(points, generator=generator)
    loader = {
        "sampler": lambda: utils.DataLoader(points, 20, sampler=sampler),
        "batch sampler": lambda: utils.DataLoader(points, batch_sampler=utils.BatchSampler(sampler, 20, False)),
        "wrapped": lambda: Wrapped(utils.DataLoader(points, 20, shuffle=True, generator=generator)),
    }.get(where, lambda: utils.DataLoader(points, 20, shuffle=True, generator=generator))()
    noise = Noisy()
    model = torch.nn.Sequential(*([noise] if where == "layer" else []), torch.nn.Linear(10, 4))

    def drawn():
        owners = (generator, noise.generators[0])
        states = [each.get_state().tolist() for each in owners]
        others = noise.generators[1].bit_generator.state, str(noise.generators[2].get_state())
        own = points.generator.bit_generator.state if where == "dataset" else None
        return deepcopy((states, others, noise.generators[3].getstate(), own))

    before, during = drawn(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: during.append(drawn() != before))
    range_test(model, optimizer, CROSS_ENTROPY, loader, iterations=10)
    assert all(during)
    assert drawn() == before


class Remembers(torch.nn.Module):
    """A network that counts its steps, and has hidden states that are still to come."""

    def __init__(self):
        super().__init__()
        self.layer, self.steps, self.hidden, self.several = torch.nn.Linear(10, 4), 0, None, [None, (None, None)]

    def forward(self, inputs):
        self.steps += 1
        if not hasattr(self, "first"):
            self.first = inputs.mean(0)
        self.hidden = inputs.mean(0) if self.hidden is None else self.hidden + self.first
        self.several = [self.hidden, (self.hidden, self.hidden)]
        return self.layer(inputs + self.hidden)


def test_what_a_network_counts_and_remembers_is_put_back():
    """Or a diverged race would leave its hidden state to the next one, and a schedule within the network be over."""
    _, _, batches, _ = problem()
    model = torch.nn.Sequential(Remembers())
    several = model[0].several
    range_test(model, torch.optim.SGD(model.parameters(), lr=0.1), CROSS_ENTROPY, batches, iterations=10)
    assert (model[0].steps, model[0].hidden, model[0].several) == (0, None, [None, (None, None)])
    assert model[0].several is several
    assert not hasattr(model[0], "first")


class Epochs(torch.utils.data.Sampler):
    """An order that depends on a count of its epochs."""

    def __init__(self, length):
        self.length, self.epoch = length, 0

    def __iter__(self):
        self.epoch += 1
        return iter(torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self):
        return self.length


@pytest.mark.parametrize("within", [False, True])
def test_a_sampler_that_counts_its_epochs_goes_on_where_it_was(within):
    model, optimizer, batches, _ = problem()
    utils, sampler = torch.utils.data, Epochs(400)
    points = utils.TensorDataset(*(torch.cat(each) for each in zip(*batches, strict=True)))
    order = dict(batch_sampler=utils.BatchSampler(sampler, 50, False)) if within else dict(sampler=sampler)
    loader = utils.DataLoader(points, **order, **({} if within else dict(batch_size=50)))
    list(loader)
    range_test(model, optimizer, CROSS_ENTROPY, loader, iterations=20)
    assert sampler.epoch == 1


@pytest.mark.parametrize("started", [False, True])
def test_workers_that_stay_are_set_aside(started):
    """An epoch in whose middle a range test is made goes on to its end, in the order that it would have had."""
    orders = []
    for tests in (False, True):
        model, optimizer, batches, _ = problem()
        points = torch.utils.data.TensorDataset(*(torch.cat(each) for each in zip(*batches, strict=True)))
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader(points, 50, shuffle=True, num_workers=1, persistent_workers=True)
        order = []
        for epoch in range(2):
            if tests and epoch == 0 and not started:
                range_test(model, optimizer, CROSS_ENTROPY, loader, iterations=10)
            for index, (_, labels) in enumerate(loader):
                order += labels.tolist()
                if tests and epoch == 0 and index == 2 and started:
                    range_test(model, optimizer, CROSS_ENTROPY, loader, iterations=10)
        orders.append(order)
    assert orders[0] == orders[1]


def test_workers_that_stay_train_whole_epochs_though_their_loader_is_the_validation_too():
    model, optimizer, batches, _ = problem()
    points = torch.utils.data.TensorDataset(*(torch.cat(each) for each in zip(*batches, strict=True)))
    loader = torch.utils.data.DataLoader(points, 50, num_workers=1, persistent_workers=True)
    seen = []

    def loss_fn(outputs, labels):
        seen.extend([labels.tolist()] * torch.is_grad_enabled())
        return CROSS_ENTROPY(outputs, labels)

    range_test(model, optimizer, loss_fn, loader, validation=loader, iterations=16, evaluate_every=3)
    assert seen == [labels.tolist() for _, labels in 2 * batches]


def test_what_an_optimizer_keeps_in_attributes_is_put_back():
    class Keeper(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.1)
            self.kept = np.zeros(2), deque([1, 2], maxlen=2), {1}, {"a": [torch.zeros(1)]}, OrderedDict(a=1)
            self.array, self.queue, self.seen, self.tensors, self.ordered = self.kept

        def step(self, closure=None):
            super().step()
            self.array += 1
            self.queue.append(len(self.seen))
            self.seen.add(len(self.seen))
            self.tensors["a"][0] += 1
            self.tensors["b"] = torch.ones(1)
            self.ordered["a"] += 1

    model, _, batches, _ = problem()
    optimizer = Keeper(model.parameters())
    before = str(optimizer.kept)
    range_test(model, optimizer, CROSS_ENTROPY, batches, iterations=5)
    assert str(optimizer.kept) == before
    assert [*map(id, optimizer.kept[:4])] == [
        *map(id, (optimizer.array, optimizer.queue, optimizer.seen, optimizer.tensors))
    ]


@pytest.mark.filterwarnings("ignore:The given NumPy array")
def test_more_tensors_than_are_kept_and_what_did_not_change_are_not_touched(monkeypatch):
    """Data may be large, and lie in memory that cannot be written."""
    model, optimizer, batches, _ = problem()
    data = np.ones(4)
    data.flags.writeable = False
    read_only, large, small = torch.from_numpy(data), torch.zeros(1000), torch.zeros(1)

    def loss_fn(outputs, labels):
        large.add_(read_only.sum())
        small.add_(1)
        return CROSS_ENTROPY(outputs, labels)

    range_test(model, optimizer, loss_fn, batches, iterations=5)
    assert large.sum() == 0
    monkeypatch.setattr(snapshot, "MOST_BYTES", 1000)
    range_test(model, optimizer, loss_fn, batches, iterations=5)
    assert large.sum() > 0
    assert small == 0  # what is too large does not leave the others behind


def test_what_could_not_be_put_back_is_named():
    class Memory:
        """What only it can put back."""

        def __init__(self):
            self.seen = iter(range(100))

        def state_dict(self):
            return {"seen": str(self.seen.__reduce__())}

    memory = Memory()

    def loss_fn(outputs, labels):
        next(memory.seen)
        return CROSS_ENTROPY(outputs, labels)

    model, optimizer, batches, _ = problem()
    with pytest.warns(UserWarning, match="range_test could not put back Memory seen: make them anew") as warned:
        range_test(model, optimizer, loss_fn, batches, iterations=5)
    assert warned[0].filename == __file__
