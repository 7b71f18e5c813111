"""One run: the training loop, its evaluations and checkpoints.

A run is bound by its convolutions. What surrounds them is kept small: images stay uint8 in one memory-mapped array,
the network and its batches are channels_last, one run has one thread (several runs share the cores better than
several threads share one run), and denormal numbers, which the momentum buffers would fill with, are flushed to zero.
"""

import random
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modules import models, snapshot
from modules.checks import RunError
from modules.data.batches import Data, batches, flip_crop
from modules.data.datasets import Dataset, load
from modules.data.splits import split
from modules.policies import PolicyBase
from modules.range_test import LARGEST_RATE
from modules.range_test.ramp import climbed
from modules.runs.files import RunFiles, set_aside
from modules.runs.provenance import record, remember
from modules.runs.spec import Spec
from modules.schedulers import Annealed

EVALUATION_BATCH = 250
REPORT_SECONDS = 1.0
SAVING = 20  # between two checkpoints a run trains at least this many times as long as one takes to write

#: Called with (iterations done, last accuracy or None) about once a second and at every evaluation.
Report = Callable[[int, float | None], None]


def make_optimizer(spec: Spec, model: nn.Module) -> Optimizer:
    """The spec's optimizer over the model's parameter groups; its rate is set by the scheduler."""
    groups = models.parameter_groups(model, spec.bias_lr_mult, spec.multipliers, spec.weight_decay)
    if spec.optimizer == "schedulefree":
        from schedulefree import SGDScheduleFree

        settings = dict(momentum=spec.momentum, weight_decay=spec.weight_decay, warmup_steps=spec.iterations // 20)
        optimizer = SGDScheduleFree(groups, lr=1.0, **settings)
        optimizer.train()
        return optimizer
    return plain_optimizer(spec, groups)


def plain_optimizer(spec: Spec, groups: list[dict]) -> Optimizer:
    """One of torch's own optimizers over parameter groups."""
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=spec.momentum, weight_decay=spec.weight_decay)
    if spec.optimizer == "adam":
        return torch.optim.Adam(groups, weight_decay=spec.weight_decay)
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=spec.weight_decay)
    return torch.optim.RMSprop(groups, momentum=spec.momentum, weight_decay=spec.weight_decay)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread and no denormals, as both change the numbers of a run; then the threads there were, and denormals.

    On a GPU, convolutions are deterministic, and float32 is float32.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def draw_from(seed: int, iteration: int, device: torch.device) -> None:
    """Set all the random state that a network may draw from in training, such as its dropout.

    It depends on the run's seed and the iteration alone, so a resumed run draws what it would have drawn, whatever its
    process did before.
    """
    number = int(np.random.SeedSequence((seed, iteration)).generate_state(1, np.uint64)[0]) >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def step(model: nn.Module, optimizer: Optimizer, inputs: Tensor, labels: Tensor, precision: str = "float32") -> Tensor:
    """One iteration: forward, backward, update.

    Args:
        model, optimizer: trained in place.
        inputs, labels: one batch, `[B, C, H, W]` and `[B]`.
        precision: `float32`, or `bfloat16` for the forward pass under autocast.

    Returns:
        The batch's mean cross entropy before the update, detached.
    """
    context = torch.autocast(inputs.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    with context:
        loss = F.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.inference_mode()
def evaluate(model: nn.Module, data: Data, part: str = "test") -> tuple[float, Tensor]:
    """Mean cross entropy over a part of the data, and which of its images are classified right; in float32.

    Args:
        model: the network; its modes are left as they were, so a BatchNorm that is frozen stays so.
        data: the data.
        part: `test` or `validation`.

    Returns:
        The loss, and a boolean `[N]`.
    """
    modes = snapshot.modes(model)
    model.eval()
    images, labels = data.part(part)
    loss = torch.zeros((), dtype=torch.float64, device=data.mean.device)
    correct = torch.empty(len(labels), dtype=torch.bool, device=data.mean.device)
    for start in range(0, len(labels), EVALUATION_BATCH):
        piece = slice(start, start + EVALUATION_BATCH)
        logits = model(data.pixels(images[piece]))
        loss += F.cross_entropy(logits, labels[piece], reduction="sum")
        correct[piece] = logits.argmax(1) == labels[piece]
    snapshot.set_modes(modes)
    return loss.item() / len(labels), correct


def accuracy_of(correct: Tensor) -> float:
    """The share of `[N]` images that were classified right."""
    return correct.sum().item() / len(correct)


def train(
    spec: Spec,
    folder: str | Path,
    data_dir: str | Path | None = None,
    device: str | None = None,
    report: Report | None = None,
    stop_after: int | None = None,
    fingerprint: str | None = None,
    branches: Sequence[Spec] = (),
    tell: Callable[[str], None] = print,
) -> Path:
    """Train one run to its end, from its checkpoint where there is one, and write its files.

    Args:
        spec: what to train.
        folder: results folder, made when missing.
        data_dir: where the data set lies, as for `datasets.load`.
        device: `cpu` or `cuda`; by default `cuda` where there is one.
        report: called about once a second with (iterations done, last accuracy).
        stop_after: stop at the first checkpoint at or after this many iterations, leaving the run unfinished.
        fingerprint: of the data it must be, where only one will do.
        branches: runs that are this one up to an iteration (`leaves_at`): each gets a checkpoint to go on from there.
        tell: called with a line about what the user should know, such as a damaged checkpoint.

    Returns:
        The path of the CSV.

    Raises:
        RunError: a complete run of other settings lies in the folder, the batch exceeds the data, these are other data
            than `fingerprint` says, or the folder cannot be written.
        DataError: the data cannot be read.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    files = RunFiles(folder, spec.name)
    dataset = data_for(spec, data_dir, fingerprint)
    check(spec, dataset)
    files.check(spec, dataset.fingerprint)
    if files.complete:
        return files.csv
    with files.training(), one_thread(), snapshot.forked(snapshot.Reached(), device):
        if files.complete:  # by the process that was waited for
            files.check(spec, dataset.fingerprint)
            return files.csv
        return _train(spec, files, dataset, device, report or (lambda done, accuracy: None), stop_after, branches, tell)


def data_for(spec: Spec, data_dir: str | Path | None, fingerprint: str | None) -> Dataset:
    """A run's data set.

    Raises:
        RunError: it is other data than `fingerprint` says.
        DataError: it cannot be read.
    """
    dataset = load(spec.dataset, data_dir)
    if fingerprint not in (None, dataset.fingerprint):
        raise RunError(f"{spec.dataset} in {data_dir} are other data here than where the run was asked for")
    return dataset


def check(spec: Spec, dataset: Dataset) -> None:
    """Raise RunError when the spec does not fit the data set."""
    count = len(split(dataset, spec.split, spec.seed).train)
    if spec.batch_size > count:
        raise RunError(f"batch_size={spec.batch_size} exceeds the {count} training images")
    try:
        device = torch.device("cpu" if models.own.is_own(spec.model) else "meta")  # a user's may need real numbers
        with device, snapshot.forked(snapshot.Reached(), torch.device("cpu")):
            models.parameter_groups(build(spec, dataset), spec.bias_lr_mult, spec.multipliers)
    except ValueError as error:
        raise RunError(str(error)) from error


def leaves_at(branch: Spec, trunk: Spec) -> int | None:
    """The iteration up to which a run is the same as another, and need not be trained twice.

    That is where its anneal begins, or its end, where it is the other's beginning and no more.

    Args:
        branch: the run that may go on from the other's checkpoint.
        trunk: the other one; it is not annealed before that iteration itself.

    Returns:
        None where they are not the same up to there, or where there is no evaluation: the loss since the last one
        would be lost.
    """
    start, length = branch.policy.anneal_start(branch.iterations), branch.iterations
    if (
        branch.seed != trunk.seed
        or start % branch.evaluate_every
        or start > trunk.policy.anneal_start(trunk.iterations)
    ):
        return None
    if length != trunk.iterations and not (branch.policy.any_length and branch.optimizer != "schedulefree"):
        return None
    about = dict(variant=trunk.variant, test_at_end=trunk.test_at_end, iterations=trunk.iterations)
    policy = branch.policy.model_copy(update={"anneal": trunk.policy.anneal})
    return start if branch.model_copy(update={"policy": policy, **about}) == trunk else None


def branches_of(specs: Sequence[Spec], begun: Container[str] = ()) -> dict[str, list[Spec]]:
    """By a run's name, the runs that go on from its checkpoints, and so have to wait for it.

    Each goes on from the run that it shares most with, which itself waits for nobody.

    Args:
        specs: the runs that are to be trained.
        begun: names of those that wait for nobody, as they have checkpoints of their own.
    """
    found: dict[str, list[Spec]] = {}
    trunks: dict[Spec, list[Spec]] = {}
    for spec in sorted(specs, key=lambda spec: -spec.policy.anneal_start(spec.iterations)):
        # By all that `leaves_at` wants to be the same: else every run would be compared with every other.
        plain = spec.policy.model_copy(update={"anneal": None})
        alike = spec.model_copy(update=dict(policy=plain, variant=None, test_at_end=False, iterations=1))
        others = trunks.setdefault(alike, [])
        trunk = next((other for other in others if leaves_at(spec, other) is not None), None)
        if trunk and spec.name not in begun:
            found.setdefault(trunk.name, []).append(spec)
        else:
            others.append(spec)
    return found


def build(spec: Spec, dataset: Dataset) -> nn.Module:
    """The spec's network for the data set's images, freshly drawn."""
    shape = dataset.channels, dataset.size, len(dataset.classes)
    return models.build(spec.model, *shape, spec.pooling, spec.init, spec.activation)


class _State:
    """What changes while a run goes on: network, optimizer, scheduler, rows, seconds; saved and restored whole."""

    def __init__(self, spec: Spec, dataset: Dataset, device: torch.device) -> None:
        draw_from(spec.seed, 0, device)
        torch.manual_seed(spec.seed)
        model = build(spec, dataset)
        if not model.training:
            model.train()
        self.spec, self.fingerprint = spec, dataset.fingerprint
        self.model = model.to(device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(spec, self.model)
        self.scheduler = spec.policy.scheduler(self.optimizer, spec.iterations)
        self.average = None
        if spec.ema:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(spec.ema), use_buffers=True)
        self.iteration, self.seconds = 0, 0.0
        self.starts: dict[str, list[str]] = {}
        self.rows: list[list] = []
        self.forked: dict | None = None

    def save(self, files: RunFiles) -> None:
        """Write the run's checkpoint."""
        files.save(self.spec, self.fingerprint, self._state())

    def fork(self, files: RunFiles, branch: Spec) -> None:
        """Write a checkpoint from which `branch` goes on, which is the same run up to here."""
        forked = {"from": self.spec.name, "iteration": self.iteration}
        scheduler = self.scheduler.state_dict()
        if self.spec.policy.anneal:
            scheduler = scheduler["scheduler"]
        if branch.policy.anneal:
            scheduler = Annealed.state_of(scheduler)
        files.save(branch, self.fingerprint, self._state() | {"scheduler": scheduler, "forked": forked})

    def _state(self) -> dict:
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "starts": self.starts,
            "rows": self.rows,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "forked": self.forked,
        }

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.optimizer.load_state_dict(state["optimizer"])  # last: it holds the rates, whatever a scheduler wrote
        self.iteration, self.seconds, self.rows = state["iteration"], state["seconds"], state["rows"]
        self.starts, self.forked = state["starts"], state.get("forked")
        if self.average:
            self.average.load_state_dict(state["average"])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Schedule-free optimizers keep two sets of weights, one to train and one to evaluate."""
        switches = self.spec.optimizer == "schedulefree"
        if switches:
            self.optimizer.eval()
        try:
            yield
        finally:
            if switches:
                self.optimizer.train()


def _train(
    spec: Spec,
    files: RunFiles,
    dataset: Dataset,
    device: torch.device,
    report: Report,
    stop_after: int | None,
    branches: Sequence[Spec],
    tell: Callable[[str], None],
) -> Path:
    state = _State(spec, dataset, device)
    if saved := files.saved(spec, dataset.fingerprint, tell):
        try:
            state.restore(saved)
        except MemoryError:
            raise
        except Exception as error:  # whatever another network or optimizer of this name leads to
            set_aside(files.checkpoint, f"does not fit ({type(error).__name__})", f"{spec.name} starts", tell)
            state = _State(spec, dataset, device)
    data = Data(split(dataset, spec.split, spec.seed), device, spec.pixels)
    model, optimizer, scheduler = state.model, state.optimizer, state.scheduler
    accuracy = state.rows[-1][-1] if state.rows else None
    order = batches(len(data.split.train), spec.batch_size, spec.seed, state.iteration)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    since, diverged, last = 0, False, None
    saved_at, save_took = -np.inf, 0.0
    forks = [(leaves_at(branch, spec), branch) for branch in branches]
    # Now: these are the sources the run is trained with, whatever happens to the files meanwhile.
    remember(state.starts, device)
    started = reported = time.monotonic()
    while state.iteration < spec.iterations:
        rates = scheduler.get_last_lr()
        if not max(rates) < LARGEST_RATE:
            diverged = True
            break
        images, labels = data.batch(next(order))
        if spec.augment == "flip_crop":
            images = flip_crop(images, spec.seed, state.iteration)
        inputs = data.pixels(images)
        draw_from(spec.seed, state.iteration, device)
        loss_sum += step(model, optimizer, inputs, labels, spec.precision)
        if state.average:
            state.average.update_parameters(model)
        scheduler.step()
        since += 1
        state.iteration += 1
        if state.iteration % spec.evaluate_every == 0 or state.iteration == spec.iterations:
            train_loss = loss_sum.item() / since
            val_loss = accuracy = None
            if spec.evaluation != "none":
                with state.evaluating():
                    val_loss, correct = last = evaluate(model, data, spec.evaluation)
                accuracy = accuracy_of(correct)
            row = [state.iteration, rates[0], train_loss, val_loss, accuracy]
            if diverged := not add_row(state.rows, row, spec.policy):
                break
            loss_sum.zero_()
            since = 0
            now = time.monotonic()
            state.seconds, started = state.seconds + now - started, now
            for iteration, branch in forks:
                if state.iteration == iteration:
                    state.fork(RunFiles(files.csv.parent, branch.name), branch)
            stopping = stop_after is not None and stop_after <= state.iteration < spec.iterations
            if stopping or now - saved_at >= SAVING * save_took:
                state.save(files)
                saved_at = time.monotonic()
                save_took = saved_at - now
            if stopping:
                return files.csv
        if time.monotonic() - reported > REPORT_SECONDS or since == 0:
            reported = time.monotonic()
            report(state.iteration, accuracy)
    draw_from(spec.seed, state.iteration, device)
    ends = {} if diverged else _ends(state, data, last)
    state.seconds += time.monotonic() - started
    if spec.keep_weights:
        files.keep(model.state_dict())
    about = record(spec, dataset, data.split.sizes, state.starts, state.iteration, state.seconds, diverged)
    files.finish(state.rows, about | ({"forked": state.forked} if state.forked else {}) | ends)
    return files.csv


def add_row(rows: list[list], row: list, policy: PolicyBase) -> bool:
    """Add an evaluation to a run's rows; False where it has diverged: a loss is no number, or climbed too far."""
    if not np.isfinite([row[2], row[3] or 0]).all():
        return False
    rows.append(row)
    factor = getattr(policy, "stop_factor", None)
    return not (factor and climbed([loss for _, _, loss, *_ in rows], factor))


def _ends(state: _State, data: Data, last: tuple[float, Tensor] | None) -> dict:
    """What the finished network and its average are worth, for the run's record; `last` is the last row's evaluation.

    A run that is taken up at its very end has no `last`.
    """
    spec, ends = state.spec, {}
    if spec.reads_test:
        with state.evaluating():
            known = last if spec.evaluation == "test" else None
            ends["test"] = evaluation_record(*(known or evaluate(state.model, data, "test")))
    if state.average:
        ends["ema"] = {"decay": spec.ema}
        if spec.evaluation == "validation":
            ends["ema"]["validation"] = evaluation_record(*evaluate(state.average.module, data, "validation"))
        if spec.reads_test:
            ends["ema"]["test"] = evaluation_record(*evaluate(state.average.module, data, "test"))
    return ends


def evaluation_record(loss: float, correct: Tensor) -> dict:
    """An evaluation for the record."""
    return {"loss": loss, "accuracy": accuracy_of(correct)}
