"""Many runs of one network trained together, as one stacked computation.

A small network leaves a processor idle: an iteration is fifty little operations, and each costs more to start than to
do. Runs that differ only in seed, policy and rate do the same operations on other numbers, so their weights are stacked
`[runs, ...]` and one operation serves them all. Same specification, same images in the same order, same initial weights
and same files as a run alone. The last digits differ from it, as sums are taken in another order, and the record says
so. What a run's numbers are does not depend on who shares its group.

Dense layers with ReLU between them are batched matrix products with their gradient written out, which takes half the
time of `vmap` and autograd; every other network goes through these.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from modules import models
from modules.checks import RunError
from modules.data.batches import Data, batches, scaled
from modules.data.datasets import Dataset
from modules.data.splits import split
from modules.range_test import LARGEST_RATE
from modules.runs.files import RunFiles, check_state, read_checkpoint, sweep, write_checkpoint
from modules.runs.provenance import record, remember
from modules.runs.spec import Spec
from modules.runs.training import add_row, build, check, data_for, evaluation_record, one_thread, plain_optimizer

#: What may differ between runs that are trained together.
OWN = {"seed": 0, "policy": None, "variant": None, "test_at_end": False, "registration": None}

#: Every setting that the stacked trainer implements, with the values of it that it does; `ANY`: all there are, as what
#: they decide is the same code as for a run alone. A run with anything else is trained alone.
ANY = object()
IMPLEMENTED = {
    **dict.fromkeys(("dataset", "model", "pooling", "init", "pixels"), ANY),
    **dict.fromkeys(("policy", "variant", "momentum", "weight_decay", "bias_lr_mult", "multipliers"), ANY),
    **dict.fromkeys(("batch_size", "iterations", "evaluate_every", "split", "seed", "registration"), ANY),
    "activation": ("relu",),
    "augment": ("none",),
    "optimizer": ("sgd", "adam"),
    "evaluation": ("test", "validation", "none"),
    "test_at_end": (True, False),
    "ema": (None,),
    "precision": ("float32",),
    "keep_weights": (False,),
}
ANY_IMAGE = 1, 28  # channels and size that every network takes, for a look at its layers
CHECKPOINT_SECONDS = 20.0
GROUP = {"cpu": 20, "cuda": 40}  # runs; more gain nothing: on a CPU their weights leave the cache
EVALUATED_AT_ONCE = 100_000  # images of all runs

#: Called with the iterations done by each run, and each run's last accuracy or None.
Report = Callable[[int, dict[str, float | None]], None]


def common(spec: Spec) -> Spec:
    """What a run shares with those it can be trained together with."""
    return spec.model_copy(update=OWN)


def why_not(spec: Spec) -> str | None:
    """Why a run cannot be trained together with others; None where it can."""
    for setting, value in spec:
        taken = IMPLEMENTED.get(setting, ())
        if taken is not ANY and value not in taken:
            return f"{setting}={value!r}"
    if models.own.is_own(spec.model):
        return f"{models.label(spec.model)} is a network of your own"
    with torch.device("meta"):
        network = models.build(spec.model, *ANY_IMAGE)
    if any(True for _ in network.buffers()):
        return f"{spec.model} keeps running statistics"
    if not all(parameter.requires_grad for parameter in network.parameters()):
        return f"not all of {spec.model} is trained"
    return None


def is_dense(spec: Spec) -> bool:
    """Whether the run's network is dense layers with ReLU between them: on a CPU, those gain from company."""
    with torch.device("meta"):
        return _dense(models.build(spec.model, *ANY_IMAGE)) is not None


def _dense(network: nn.Module) -> int | None:
    """How many dense layers a network is a chain of, with ReLU between them; None where it is something else."""
    kinds = [type(layer) for layer in network.children()]
    count = kinds.count(nn.Linear)
    chain = [nn.Flatten, *[nn.Linear, nn.ReLU] * count][:-1]
    return count if isinstance(network, nn.Sequential) and kinds == chain else None


def divided(specs: Sequence[Spec], kind: str) -> tuple[list[Spec], list[list[Spec]]]:
    """The runs that are faster alone on a device, and groups of those that are faster together.

    A run alone in its group is trained like the others, so its bytes do not depend on which runs are left to do.

    Args:
        specs: the runs.
        kind: `cpu` or `cuda`.
    """
    alone, groups = [], {}
    for spec in specs:
        # Convolutions keep a core busy by themselves.
        pays = why_not(spec) is None and (kind == "cuda" or is_dense(spec))
        (groups.setdefault(common(spec), []) if pays else alone).append(spec)
    size = GROUP[kind]
    return alone, [runs[at : at + size] for runs in groups.values() for at in range(0, len(runs), size)]


class _Stack:
    """The stacked state of a group: weights and optimizer state `[runs, ...]`, rows and rates of each run."""

    def __init__(self, specs: Sequence[Spec], dataset: Dataset, device: torch.device) -> None:
        self.specs, self.device, one = specs, device, specs[0]
        networks = []
        for spec in specs:
            with torch.random.fork_rng():
                torch.manual_seed(spec.seed)
                networks.append(build(spec, dataset))
        self.network = build(one, dataset).to("meta")
        self.layers = _dense(self.network)
        # All weights of a run in one row: an update is then three operations, not three a parameter.
        rows = [parameters_to_vector(network.parameters()).detach() for network in networks]
        self.flat = torch.stack(rows).to(device)
        self.gradient = torch.zeros_like(self.flat)
        self.shapes = {name: weight.shape for name, weight in networks[0].named_parameters()}
        # Leaves of autograd's graphs that share the memory of the rows.
        self.weights = {name: view.detach().requires_grad_() for name, view in self._views(self.flat)}
        self.gradients = dict(self._views(self.gradient))
        groups = models.parameter_groups(networks[0], one.bias_lr_mult, one.multipliers, one.weight_decay)
        self.decay = [group.get("weight_decay", one.weight_decay) for group in groups]
        self.pieces = self._pieces(groups, list(networks[0].parameters()))
        kinds = ("momentum",) if one.optimizer == "sgd" else ("mean", "square")
        self.moments = {kind: torch.zeros_like(self.flat) for kind in kinds}
        # Runs of one policy share its rates; they are stepped anew after a stop, which takes no time.
        self.policies = list(dict.fromkeys(spec.policy for spec in specs))
        self.policy_of = [self.policies.index(spec.policy) for spec in specs]
        self.which = torch.tensor(self.policy_of, device=device)
        self.schedulers = []
        for policy in self.policies:
            # The groups' multipliers over a single number to train.
            stubs = [{**group, "params": [torch.zeros(1, requires_grad=True)]} for group in groups]
            optimizer = plain_optimizer(one, stubs)
            self.schedulers.append(policy.scheduler(optimizer, one.iterations))
            optimizer.step()  # once, as schedulers warn of optimizers that never took a step
        self.iteration, self.seconds = 0, 0.0
        self.starts: dict[str, list[str]] = {}
        self.rows: list[list[list]] = [[] for _ in specs]
        self.ended: list[int | None] = [None] * len(specs)  # the iterations done by runs that have diverged

    def rates(self) -> list[list[float]]:
        """The present rates, by policy and parameter group."""
        return [scheduler.get_last_lr() for scheduler in self.schedulers]

    def advance(self) -> None:
        """Step every policy."""
        for scheduler in self.schedulers:
            scheduler.step()

    def _views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """By name, each parameter's `[runs, ...]` within the rows."""
        start = 0
        for name, shape in self.shapes.items():
            yield name, flat[:, start : start + shape.numel()].view(-1, *shape)
            start += shape.numel()

    @staticmethod
    def _pieces(groups: list[dict], parameters: list[nn.Parameter]) -> list[tuple[slice, int]]:
        """Stretches of the rows whose parameters are of one group, with that group's number."""
        group_of = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
        pieces, start = [], 0
        for parameter in parameters:
            stop, group = start + parameter.numel(), group_of[id(parameter)]
            if pieces and pieces[-1][1] == group:
                pieces[-1] = slice(pieces[-1][0].start, stop), group
            else:
                pieces.append((slice(start, stop), group))
            start = stop
        return pieces

    def logits(self, inputs: Tensor) -> Tensor:
        """`[runs, B, C, H, W]` to `[runs, B, classes]`."""
        if self.layers:
            return self._chain(inputs)[-1]
        return vmap(lambda weights, x: functional_call(self.network, weights, (x,)))(self.weights, inputs)

    def _chain(self, inputs: Tensor) -> list[Tensor]:
        """What goes into each dense layer, `[runs, B, features]`, and the logits."""
        values, weights = [inputs.flatten(2)], list(self.weights.values())
        for number in range(self.layers):
            weight, bias = weights[2 * number : 2 * number + 2]
            out = torch.baddbmm(bias[:, None], values[-1], weight.mT)
            values.append(out.relu_() if number < self.layers - 1 else out)
        return values

    def backward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Each run's mean cross entropy `[runs]`; its gradient goes to `gradient`."""
        if self.layers:
            with torch.no_grad():
                return self._dense_backward(inputs, labels)
        losses = F.cross_entropy(self.logits(inputs).flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view(labels.shape).mean(1)
        found = torch.autograd.grad(losses.sum(), list(self.weights.values()))
        for place, gradient in zip(self.gradients.values(), found, strict=True):
            place.copy_(gradient)
        return losses.detach()

    def _dense_backward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        values, weights, gradients = self._chain(inputs), [*self.weights.values()], [*self.gradients.values()]
        # The cross entropy by hand: over ten classes it takes a third of log_softmax's time.
        logits, where = values.pop(), labels[..., None]
        logits.sub_(logits.amax(2, keepdim=True))
        delta = logits.exp()
        total = delta.sum(2, keepdim=True)
        losses = total.log().sub_(logits.gather(2, where)).squeeze(2).mean(1)
        # Its gradient by the logits: softmax less one at the label, shared by the batch.
        delta.div_(total).scatter_add_(2, where, torch.full_like(where, -1, dtype=delta.dtype)).div_(labels.shape[1])
        for number in range(2 * self.layers - 2, -1, -2):
            value = values.pop()
            torch.bmm(delta.mT, value, out=gradients[number])
            torch.sum(delta, 1, out=gradients[number + 1])
            if number:
                # The gradient of ReLU in one pass, as autograd has it.
                delta = torch.ops.aten.threshold_backward(torch.bmm(delta, weights[number]), value, 0)
        return losses

    @torch.no_grad()
    def update(self, rates: Tensor) -> None:
        """The optimizer's step; `rates` `[groups, runs]`."""
        for piece, group in self.pieces:
            weight, gradient = self.flat[:, piece], self.gradient[:, piece]
            if self.decay[group]:
                gradient.add_(weight, alpha=self.decay[group])
            weight.addcmul_(self._step(piece, gradient), rates[group][:, None], value=-1)

    def _step(self, piece: slice, gradient: Tensor) -> Tensor:
        """What weights move by, at a rate of 1: torch's SGD with momentum, or its Adam."""
        if "momentum" in self.moments:
            # torch starts the buffer at the first gradient: the same as momentum times nothing, plus the gradient.
            moment = self.moments["momentum"][:, piece]
            return torch.add(gradient, moment, alpha=self.specs[0].momentum, out=moment)
        mean, square = (self.moments[kind][:, piece] for kind in ("mean", "square"))
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        done = self.iteration + 1
        spread = square.sqrt().div_((1 - 0.999**done) ** 0.5).add_(1e-8)
        return mean.div(1 - 0.9**done).div_(spread)

    def state(self) -> dict:
        """What a checkpoint holds."""
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "starts": self.starts,
            "rows": self.rows,
            "ended": self.ended,
            "weights": self.flat,
            "moments": self.moments,
        }

    def restore(self, state: dict) -> None:
        """Go on from a checkpoint."""
        self.flat.copy_(state["weights"])
        for kind, moment in self.moments.items():
            moment.copy_(state["moments"][kind])
        self.seconds, self.starts, self.rows, self.ended = (
            state[key] for key in ("seconds", "starts", "rows", "ended")
        )
        while self.iteration < state["iteration"]:
            self.advance()
            self.iteration += 1


class _Images:
    """The images of all runs of a group: each run has a split of its own, all point into the same array."""

    def __init__(self, specs: Sequence[Spec], dataset: Dataset, device: torch.device) -> None:
        self.data, by_split = [], {}
        for spec in specs:
            # Seeds that share a fold share its split.
            found = split(dataset, spec.split, spec.seed)
            key = found.train.tobytes()
            if key not in by_split:
                by_split[key] = Data(found, device, spec.pixels)
            self.data.append(by_split[key])
        self.scale, self.device = self.data[0].scale, device
        self.mean = torch.stack([data.mean[0] for data in self.data])[:, None]
        self.deviation = None
        if self.data[0].deviation is not None:
            self.deviation = torch.stack([data.deviation[0] for data in self.data])[:, None]
        self.images, self.labels = self.data[0].images, self.data[0].labels

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 `[runs, B, C, H, W]` to scaled and centred float32."""
        return scaled(images, self.scale, self.mean, self.deviation)

    def batch(self, which: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Inputs `[runs, B, C, H, W]` and labels `[runs, B]` of each run's training images with these numbers."""
        index = np.stack([data.split.train[w] for data, w in zip(self.data, which, strict=True)])
        index = torch.from_numpy(index).to(self.device)
        images = self.images.index_select(0, index.flatten()).view(*index.shape, *self.images.shape[1:])
        return self.pixels(images), self.labels[index]

    def part(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Images `[runs, N, C, H, W]`, labels and a mask `[runs, N]` of a part; short parts are filled up."""
        parts = [data.part(name) for data in self.data]
        longest = max(len(labels) for _, labels in parts)
        fill = [torch.arange(longest, device=self.device).remainder(len(labels)) for _, labels in parts]
        images = torch.stack([part[0][index] for part, index in zip(parts, fill, strict=True)])
        labels = torch.stack([part[1][index] for part, index in zip(parts, fill, strict=True)])
        count = torch.tensor([len(labels) for _, labels in parts], device=self.device)
        return images, labels, torch.arange(longest, device=self.device) < count[:, None]


@torch.no_grad()
def _evaluate(stack: _Stack, images: _Images, part: str) -> list[tuple[float, Tensor]]:
    """Of every run, mean cross entropy over a part of its data and which of its images are classified right."""
    pixels, labels, mask = images.part(part)
    losses, correct = [], []
    at_once = max(1, EVALUATED_AT_ONCE // len(stack.specs))
    for start in range(0, labels.shape[1], at_once):
        piece = slice(start, start + at_once)
        logits = stack.logits(images.pixels(pixels[:, piece]))
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, piece].flatten(), reduction="none")
        losses.append(loss.view(labels[:, piece].shape))
        correct.append(logits.argmax(2) == labels[:, piece])
    loss, right = torch.cat(losses, 1).double(), torch.cat(correct, 1)
    return [(loss[run][mask[run]].mean().item(), right[run][mask[run]]) for run in range(len(stack.specs))]


def train_together(
    specs: Sequence[Spec],
    folder: str | Path,
    data_dir: str | Path | None = None,
    device: str | None = None,
    report: Report | None = None,
    stop_after: int | None = None,
    fingerprint: str | None = None,
    tell: Callable[[str], None] = print,
) -> list[Path]:
    """Train runs together to their end, from their checkpoint where there is one, and write each run's files.

    Args:
        specs: runs that differ in the settings `OWN` alone.
        folder, data_dir, device, stop_after, fingerprint: as for `training.train`.
        report: called about once a second with the iterations each run has done, and their last accuracies by name.
        tell: called with a line about what the user should know, such as a damaged checkpoint.

    Returns:
        The paths of their CSVs.

    Raises:
        RunError: as `training.train`; and runs that cannot be trained together.
        DataError: the data cannot be read.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if len({common(spec) for spec in specs}) != 1:
        raise RunError(f"runs that are trained together may differ in {', '.join(OWN)} alone")
    if why := why_not(specs[0]):
        raise RunError(f"{specs[0].name} cannot be trained together with others: {why}")
    dataset = data_for(specs[0], data_dir, fingerprint)
    files = {spec.name: RunFiles(folder, spec.name) for spec in specs}
    for spec in specs:
        files[spec.name].check(spec, dataset.fingerprint)
    check(specs[0], dataset)
    with ExitStack() as held:
        for spec in sorted(specs, key=lambda spec: spec.name):  # in one order, so that no two wait for each other
            if not files[spec.name].complete:
                held.enter_context(files[spec.name].training())
        pending = [spec for spec in specs if not files[spec.name].complete]
        if not pending:
            return [files[spec.name].csv for spec in specs]
        # A group that was killed while it wrote its runs' files goes on whole.
        whole = _checkpoint(folder, specs, dataset.fingerprint)
        group = specs if whole.exists() else pending
        with one_thread(), torch.inference_mode(False):
            arguments = files, dataset, device, report or (lambda done, accuracies: None), stop_after
            _train_in_parts(group, *arguments, tell=tell)
    return [files[spec.name].csv for spec in specs]


def rows_so_far(spec: Spec, folder: str | Path, fingerprint: str) -> list[list]:
    """The rows of a run that was stopped, where it was the only one of its group."""
    return torch.load(_checkpoint(folder, [spec], fingerprint), weights_only=True, map_location="cpu")["rows"][0]


def _checkpoint(folder: str | Path, specs: Sequence[Spec], fingerprint: str) -> Path:
    """Where the group's checkpoint is: named after everything that decides it, so another group's is never taken."""
    asked = "\n".join([fingerprint, *(spec.model_dump_json() for spec in specs)])
    return Path(folder) / ".partial" / f"together-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.pt"


def _train_in_parts(specs: Sequence[Spec], *arguments, tell: Callable[[str], None]) -> None:
    """Train a group, or one half of it after the other where the device's memory is too small for all.

    Each half has a checkpoint of its own, so a group that was split goes on where it was after a stop, too.
    """
    try:
        _train(specs, *arguments, tell)
        return
    except torch.OutOfMemoryError as error:
        if len(specs) == 1:
            raise RunError(f"{specs[0].name} does not fit into the device's memory: lower its batch_size") from error
    # Outside the handler, which keeps the failed group's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    tell(f"{len(specs)} runs together do not fit into the device's memory: one half after the other")
    half = len(specs) // 2
    _train_in_parts(specs[:half], *arguments, tell=tell)
    _train_in_parts(specs[half:], *arguments, tell=tell)


def _train(
    specs: Sequence[Spec],
    files: dict[str, RunFiles],
    dataset: Dataset,
    device: torch.device,
    report: Report,
    stop_after: int | None,
    tell: Callable[[str], None],
) -> None:
    one = specs[0]
    stack, images = _Stack(specs, dataset, device), _Images(specs, dataset, device)
    checkpoint = _checkpoint(files[one.name].csv.parent, specs, dataset.fingerprint)
    sweep(checkpoint.parent, checkpoint.name)

    def take_up(state: dict) -> None:
        check_state(state, one.iterations, stack.state(), len(specs))
        stack.restore(state)

    there = checkpoint.exists()
    if read_checkpoint(checkpoint, take_up, f"its {len(specs)} runs start", tell, device) is None and there:
        stack = _Stack(specs, dataset, device)  # it may have been taken up in part
    counts = [len(data.split.train) for data in images.data]
    orders = [
        batches(count, one.batch_size, spec.seed, stack.iteration) for count, spec in zip(counts, specs, strict=True)
    ]
    loss_sum, since = torch.zeros(len(specs), dtype=torch.float64, device=device), 0
    last: list[tuple[float, Tensor]] | None = None
    remember(stack.starts, device)
    started = reported = saved = time.monotonic()
    while stack.iteration < one.iterations and None in stack.ended:
        rates = stack.rates()
        if not all(max(own) < LARGEST_RATE for own in rates):
            for run, policy in enumerate(stack.policy_of):
                if stack.ended[run] is None and not max(rates[policy]) < LARGEST_RATE:
                    stack.ended[run] = stack.iteration
        inputs, labels = images.batch([next(order) for order in orders])
        loss_sum += stack.backward(inputs, labels)
        stack.update(torch.tensor(rates, dtype=torch.float32, device=device)[stack.which].T)
        stack.advance()
        since += 1
        stack.iteration += 1
        if stack.iteration % one.evaluate_every == 0 or stack.iteration == one.iterations:
            last = _evaluate(stack, images, one.evaluation) if one.evaluation != "none" else None
            _write_rows(stack, rates, (loss_sum / since).tolist(), last)
            loss_sum.zero_()
            since = 0
            now = time.monotonic()
            stack.seconds, started = stack.seconds + now - started, now
            stopping = stop_after is not None and stop_after <= stack.iteration < one.iterations
            if stopping or (now - saved > CHECKPOINT_SECONDS and stack.iteration < one.iterations):
                write_checkpoint(checkpoint, stack.state())
                saved = now
            if stopping:
                return
        if time.monotonic() - reported > 1:
            reported = time.monotonic()
            accuracies = {
                spec.name: rows[-1][-1] if rows else None for spec, rows in zip(specs, stack.rows, strict=True)
            }
            report(stack.iteration, accuracies)
    tested = _evaluate(stack, images, "test") if any(spec.reads_test for spec in specs) else None
    stack.seconds += time.monotonic() - started
    if len(specs) > 1:  # killed while it writes, the group goes on whole, and says so in the same records
        write_checkpoint(checkpoint, stack.state())
    for run, spec in enumerate(specs):
        if files[spec.name].complete:  # before the group was killed
            continue
        diverged = stack.ended[run] is not None
        iterations = stack.ended[run] if diverged else stack.iteration
        # A run's seconds are its share of the group's.
        sizes, seconds = images.data[run].split.sizes, stack.seconds / len(specs)
        about = record(spec, dataset, sizes, stack.starts, iterations, seconds, diverged)
        about["together"] = len(specs)
        if tested and spec.reads_test and not diverged:
            about["test"] = evaluation_record(*tested[run])
        files[spec.name].finish(stack.rows[run], about)
    checkpoint.unlink(missing_ok=True)
    with suppress(OSError):  # other runs are still in there, or it never was
        checkpoint.parent.rmdir()


def _write_rows(
    stack: _Stack, rates: list[list[float]], train_losses: list[float], found: list[tuple[float, Tensor]] | None
) -> None:
    """A row for every run that has not ended; one that has diverged ends without disturbing the others."""
    for run, spec in enumerate(stack.specs):
        if stack.ended[run] is not None:
            continue
        val_loss, accuracy = (found[run][0], found[run][1].double().mean().item()) if found else (None, None)
        row = [stack.iteration, rates[stack.policy_of[run]][0], train_losses[run], val_loss, accuracy]
        if not add_row(stack.rows[run], row, spec.policy):
            stack.ended[run] = stack.iteration
