"""Short trainings of a user's model, with the schedule that will be used."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .. import snapshot
from ..range_test.loop import (
    LARGEST_RATE,
    backward,
    check_validation,
    endless,
    group_shares,
    ignored_by,
    measure_batch,
    optimizer_step,
    validate,
)
from ..schedulers import set_lr

#: A training whose loss is above its first by this, as a mean of three iterations, is ended: in falls of a ramp's loss.
#: Chosen on the four digits tasks of notebook 9.
HOPELESS = 15
MOST_STEPPED = 100_000  # iterations of a schedule that is looked at before the ramp: a second
CYCLES = 4  # in a training whose rate cycles
OTHER_SHAPE = 1.5  # the factor between two mean rates of a schedule, from which on its shape depends on its length


def _linear(t: int, iterations: int) -> float:
    return max(0.0, 1 - t / iterations)


def _cycle(t: int, iterations: int) -> float:
    """Whole cycles from a quarter to the top and back."""
    step_size = max(1, iterations // (2 * CYCLES))
    position = t % (2 * step_size) / step_size
    return 0.25 + 0.75 * (1 - abs(1 - position))


#: The schedules that go by a name: what the rate of iteration `t` of so many is a multiple of.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda t, iterations: 1.0,
    "linear": _linear,
    "cycle": _cycle,
}


def schedule_of(schedule: object) -> tuple[Callable[[Optimizer, int], LRScheduler], str]:
    """A function that makes the scheduler, and what it is called."""
    if callable(schedule):
        try:
            inspect.signature(schedule).bind(None, 1)
        except TypeError:
            raise ValueError(
                "schedule must be a function of two, an optimizer and a number of iterations, such as "
                "torch.optim.lr_scheduler.CosineAnnealingLR"
            ) from None
        return schedule, getattr(schedule, "__name__", type(schedule).__name__)
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)}, or a function of an optimizer and a number of "
            f"iterations, such as torch.optim.lr_scheduler.CosineAnnealingLR, not {schedule!r}"
        )
    factor = SCHEDULES[schedule]
    return lambda optimizer, length: LambdaLR(optimizer, lambda t: factor(t, length)), schedule


class Trials:
    """Short trainings of a user's model that leave no trace."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: Callable | None,
        batches: Iterable,
        validation: Iterable,
        make_scheduler: Callable[[Optimizer, int], LRScheduler],
        forward: Callable | None,
        accumulate: int,
        autocast: torch.dtype | None,
        scaler: torch.amp.GradScaler | None,
        keep_ratios: bool,
    ) -> None:
        self.model, self.optimizer, self.loss_fn, self.forward = model, optimizer, loss_fn, forward
        self.batches, self.validation, self.make_scheduler = batches, validation, make_scheduler
        self.accumulate, self.autocast, self.scaler = accumulate, autocast, scaler
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.shares = group_shares(optimizer, keep_ratios)
        #: Whether steps are divided by the gradient's size.
        self.scaled = any({"betas", "eps"} & group.keys() for group in optimizer.param_groups)
        used = (model, optimizer, loss_fn, forward, make_scheduler)
        self.reached = snapshot.reached(used, (batches, validation))
        #: What the loss of a ramp falls by; without one, a training is hopeless at ten times its first loss.
        self.fall: float | None = None

    def measure(self, batch: object) -> tuple[Tensor | None, object, object]:
        return measure_batch(self.model, self.loss_fn, self.forward, batch, self.device, self.autocast)

    @contextmanager
    def _traceless(self) -> Iterator[None]:
        """All that happens within is undone at its end. So each race has the same weights and the same batches."""
        with snapshot.forked(self.reached, self.device):
            restore = snapshot.contents([self.model, self.loss_fn], self.optimizer, self.scaler, self.reached)
            try:
                yield
            finally:
                restore()

    def check_schedule(self, iterations: int, length: int) -> None:
        """Make the scheduler and step it, for the whole training and for a race.

        Args:
            iterations: of the training to come.
            length: of a race, about.

        Raises:
            ValueError: it is none that is stepped once an iteration, it is another optimizer's, a step fails, or the
                rates are its own whatever the optimizer has.

        Warns:
            UserWarning: a race has another schedule than the training, as where a warm-up has a length of its own.
        """
        iterations = min(iterations, MOST_STEPPED)
        length = min(length, iterations)
        whole = self._rates(1.0, iterations)
        short, doubled = self._rates(1.0, length), self._rates(2.0, length)
        # Some schedulers take the first rate from the optimizer, and all others from their arguments.
        if length > 1 and np.array_equal(short[1:], doubled[1:]):
            raise ValueError(
                "schedule sets rates of its own, whatever the optimizer has: make it from the rates in "
                "optimizer.param_groups, such as max_lr=[group['lr'] for group in optimizer.param_groups]"
            )
        race, training = short.mean(), whole.mean()
        if min(race, training) * OTHER_SHAPE < max(race, training):
            warnings.warn(
                f"schedule: its mean rate in a race of {length:,} iterations is {race / training:.2g} times that in "
                f"{iterations:,}, so the rate found may be wrong by as much: let its lengths be shares of the number "
                "of iterations that it is given",
                stacklevel=3,
            )

    def _rates(self, rate: float, iterations: int) -> np.ndarray:
        """The largest group's rate in each iteration, `[iterations]`.

        Args:
            rate: that the scheduler is made at; the optimizer's own may be 0.
            iterations: that it is made for.

        Raises:
            ValueError: it is no scheduler, another optimizer's, or a step fails.
        """
        with self._traceless(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of")  # nothing is trained here
            set_lr(self.optimizer, [rate * share for share in self.shares], stacklevel=0)
            scheduler = self.make_scheduler(self.optimizer, iterations)
            step = getattr(scheduler, "step", None)
            if not callable(step):
                raise ValueError(f"schedule must return a torch scheduler, not {type(scheduler).__name__}")
            try:
                inspect.signature(step).bind()
            except TypeError:
                raise ValueError(
                    f"schedule: {type(scheduler).__name__}.step needs an argument, and there is no metric to give it: "
                    "take a schedule of the iteration alone"
                ) from None
            if getattr(scheduler, "optimizer", self.optimizer) is not self.optimizer:
                raise ValueError(
                    "schedule must make its scheduler with the optimizer that it is given, not with another"
                )
            rates = []
            for iteration in range(iterations):
                if iteration:
                    try:
                        step()
                    except Exception as error:
                        raise ValueError(f"schedule: step {iteration:,} of {iterations:,} fails: {error}") from error
                rates.append(max(float(group["lr"]) for group in self.optimizer.param_groups))
        return np.array(rates)

    def untrained(self) -> float:
        """The validation loss of the network as it is.

        Raises:
            AnalysisError: it is not finite.
        """
        with self._traceless():
            loss = validate(self.model, self.validation, self.measure, ignored_by(self.loss_fn))[0]
        check_validation(loss, "before any training")
        return loss

    def train(self, rate: float, length: int, done: Callable[[int], object]) -> tuple[float, float, int]:
        """Validation loss and accuracy after `length` iterations at a rate, and how many were trained.

        Loss and accuracy are NaN where the training diverged.

        Args:
            rate: of the largest parameter group.
            length: iterations.
            done: called with 1 after each iteration.
        """
        if not rate < LARGEST_RATE:
            return math.nan, math.nan, 0
        with self._traceless():
            if not self.model.training:
                self.model.train()
            modes = snapshot.modes(self.model)  # a BatchNorm that was frozen stays so
            set_lr(self.optimizer, [rate * share for share in self.shares], stacklevel=0)
            scheduler = self.make_scheduler(self.optimizer, length)
            stream = endless(self.batches, length * self.accumulate)
            losses: list[float] = []
            lost = False  # whether the last loss was not finite
            for iteration in range(length):
                snapshot.set_modes(modes)
                self.optimizer.zero_grad()
                given = (self.measure(next(stream))[0] for _ in range(self.accumulate))
                loss = backward(given, self.accumulate, self.scaler, self.model)
                done(1)
                if loss is not None and not math.isfinite(loss):
                    if lost:  # a single batch may be at fault, not two in a row
                        return math.nan, math.nan, iteration + 1
                    lost = True
                elif loss is not None:
                    optimizer_step(self.optimizer, self.scaler)
                    losses.append(loss)
                    lost = False
                    hopeless = 9 * losses[0] if self.fall is None else HOPELESS * self.fall
                    if hopeless > 0 and len(losses) > 3 and sum(losses[-3:]) / 3 - losses[0] > hopeless:
                        return math.nan, math.nan, iteration + 1
                if iteration < length - 1:  # some schedulers refuse a step beyond their end
                    with _no_complaint() if iteration == 0 else nullcontext():
                        scheduler.step()
            val_loss, accuracy = validate(self.model, self.validation, self.measure, ignored_by(self.loss_fn))
            return (val_loss, accuracy, length) if math.isfinite(val_loss) else (math.nan, math.nan, length)


@contextmanager
def _no_complaint() -> Iterator[None]:
    """Where the first batch was lost, the optimizer has not stepped, which torch's schedulers complain of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of")
        yield
