"""A learning rate by a race: a ramp for the edge, then short trainings with the schedule that will be used."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from ..range_test import range_test
from ..range_test.loop import check_given, check_precision
from ..statistics import AnalysisError
from .bracket import between
from .trials import Trials, schedule_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Chosen on the four digits tasks of notebook 9, on one of them with a longer training, and on MNIST's dense network
# with ReLU and Adam; for budgets of a fifth, a half and the whole of the training.
RAMP_SHARE = 1 / 3  # of the budget
LEAST_RAMP = 50  # iterations: a shorter ramp passes over the rates too fast
LEAST_RACE = 30  # iterations: before that hardly anything is learnt, and any rate may win
LADDER = (5, 3)  # rates in each round; neighbours differ by a factor of 2
WIDE, WIDE_FACTOR = (7, 3), 8  # where the ramp shows no edge
POWER = 0.4  # the best rate falls with the length of the training to this power
FLAT_START = 80  # iterations: in shorter trainings it falls faster, as all that a rate can do is leave the flat start
REACH = 6  # a ramp of n iterations ends, on average, at the best rate for n / REACH iterations
BELOW_EDGE = 20  # for Adam and its like: their ramps end at this many times the best rate, whatever their length
BESIDE_A_RAMP = {"constant": 0.6, "linear": 1.2, "cycle": 0.9}  # a rate that stays must be lower than one that falls
# The next three are shares of what the ramp's loss falls by, so that a constant that is added to it changes nothing.
# They and `OF_NOISE` were chosen on the four digits tasks alone.
DIVERGED = 0.08  # by this a ramp's loss must exceed what it was at its start, and clear of its noise
GONE = 1.5  # further up a ramp's loss is not looked at
LEARNT = 0.05  # a training that gains less than this tells nothing
OF_NOISE = 30  # standard deviations of a single loss at the start: a ramp's loss counts as falling by that at least
CLEAR = 3  # standard deviations
LEAST_BUDGET = 20  # iterations
RACE_SHARE = 0.1  # of the budget, about what one race has
UNSURE = 0.25  # by how much `POWER` may be off, on the same tasks


@dataclass(frozen=True)
class FoundRate:
    """What `find_rate` found.

    Attributes:
        rate: for the whole training: a constant rate, where a line to zero starts, the top of a cycle, or the rate that
            a schedule of your own is made at. Of the parameter group with the largest rate, before any `lr_mult`.
        low, high: between these the best rate probably lies: nearly always on the tasks that the rules were fixed on,
            on others less often. They are a step of the ladder away, and further by what is unknown of how the best
            rate falls with a training's length: the shorter the races beside the training, the further. Where no lower
            rate was raced, or no race learnt anything, `low` is 0; where no higher one was, `high` is infinite.
        tried: a row a race, as it was run: `round`, `iterations`, `rate` (for the whole training), `trained_at` (what
            it was in a race of that length), `val_loss` and `accuracy` at the end; NaN where it diverged, or where the
            targets are no classes.
        ramp: the range test, as `range_test` gives it.
        start_loss: the validation loss before any training.
        edge: where the ramp diverged; None if nowhere.
        cost: iterations trained, ramp and races together; never above `budget`.
        budget, iterations, schedule: as they were asked for.
        note: what to know of this answer, a few sentences.
    """

    rate: float
    low: float
    high: float
    tried: pd.DataFrame = field(repr=False, compare=False)
    ramp: pd.DataFrame = field(repr=False, compare=False)
    start_loss: float = field(repr=False)
    edge: float | None
    cost: int
    budget: int
    iterations: int
    schedule: str
    note: str

    @property
    def where(self) -> str:
        """Where the best rate probably lies, in words, such as `between 0.001 and 0.02`."""
        return between(self.low, self.high)

    def __str__(self) -> str:
        return (
            f"rate {self.rate:.2g}, the best is probably {self.where} ({self.schedule}, "
            f"{self.iterations:,} iterations; {self.cost:,} of {self.budget:,} iterations spent). {self.note}"
        )

    def figure(self) -> "Figure":
        """The picture: the ramp and its edge, the validation loss of every race, the rate and how sure it is."""
        from . import figures

        return figures.race(self)


def find_rate(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    batches: Iterable = (),
    validation: Iterable | None = None,
    *,
    iterations: int,
    schedule: str | Callable[[Optimizer, int], LRScheduler] = "linear",
    budget: int | None = None,
    forward: Callable[[nn.Module, object], Tensor | None] | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    keep_ratios: bool = True,
) -> FoundRate:
    """Find a learning rate for a training to come, by short trainings of the same kind.

    1. A ramp (`range_test`, a third of the budget) shows where rates are too large.
    2. Below that edge a ladder of five rates, each half of the next, is raced: trainings of a few iterations with the
       whole schedule in that time. A short training wants a higher rate than a long one, so each rate is raced at a
       higher one: by the factor `(iterations / length) ** 0.4`, and more in races of less than some hundred iterations
       (`best_beside`).
    3. The rate of the least validation loss and its two neighbours go on to a round that is twice as long. Where it is
       the highest or the lowest of the ladder, its neighbour beyond that is new.
    4. The lowest point of a parabola through these three losses is the rate.

    With a small budget there is one round, of three rates, or none: then the ramp alone says the rate. Where the ramp
    shows no edge, the ladder spans a wide range below its end.

    Each race starts from the network's present weights and the optimizer's present state, with the same batches in the
    same order, so a network that has been trained before can be trained further. Afterwards everything is as it was,
    whether it ended well or not: see `range_test`.

    Args:
        model, optimizer, loss_fn, forward, accumulate, autocast, scaler, keep_ratios: as for `range_test`. The
            optimizer's own rates say only what the ratios of its groups are.
        batches: as for `range_test`; gone through anew for each race, so no generator.
        validation: batches that do not train, as `batches`: the mean loss over them decides. It is measured once a
            race, some ten times in all.
        iterations: of the training to come.
        schedule: what the rate will do in it: `constant`, `linear` (to zero), `cycle` (four cycles from a quarter of
            the rate to it), or a function of an optimizer whose rates are set and of the number of iterations that
            gives a torch scheduler, stepped once an iteration, such as torch's `CosineAnnealingLR`. Lengths within it,
            such as a warm-up's, are shares of that number. It is called once for each race, and three times before the
            ramp, where its rates are looked at.
        budget: iterations that ramp and races may train together; by default a fifth of `iterations`. More makes the
            rate surer: half of `iterations` is a good price for a training that is repeated.

    Raises:
        ValueError: an argument that makes no sense, in a line that names it, before any training.
        AnalysisError: the validation loss is not finite before any training; the training loss is so at every rate;
            every race diverged; or the ramp shows no edge, and the budget is too small for a race.

    Warns:
        UserWarning: the schedule has another shape in a race than in the training to come; `validation` is the very
            object that trains; and as for `range_test`.

    Source: successive halving (Jamieson and Talwalkar, AISTATS 2016, algorithm 1), on a ladder that a range test (the
    paper, 3.3) places. Fixed before any other task was tried.
    """
    check_given(model, optimizer, loss_fn, batches, forward, None, validation)
    check_precision(autocast, scaler)
    make_scheduler, name = schedule_of(schedule)
    budget = _budget(budget, iterations, accumulate)
    if validation is None:
        raise ValueError("validation is missing: batches that do not train, a DataLoader or a list, decide the race")
    if isinstance(batches, Iterator):
        raise ValueError("batches can be gone through only once, and each race needs them anew: pass a DataLoader")
    if validation is batches:
        warnings.warn(
            "validation is what trains, so a rate that learns it by heart looks best: pass data that do not train",
            stacklevel=2,
        )
    shared = dict(
        forward=forward, accumulate=accumulate, autocast=autocast, scaler=scaler, keep_ratios=keep_ratios
    )  # of ramp and races
    trials = Trials(model, optimizer, loss_fn, batches, validation, make_scheduler, **shared)
    if callable(schedule):
        races = ramp_length(budget) < budget
        trials.check_schedule(iterations, max(LEAST_RACE, int(budget * RACE_SHARE)) if races else iterations)
    lazy = any(is_lazy(tensor) for tensor in chain(model.parameters(), model.buffers()))
    start_loss = math.nan if lazy else trials.untrained()  # the ramp's first batch initialises lazy modules
    rows = dict(iterations=ramp_length(budget), evaluate_every=1, lost_in_a_row=2)  # as `Race` counts its cost
    curve = range_test(model, optimizer, loss_fn, batches, **rows, **shared)
    trials = Trials(model, optimizer, loss_fn, batches, validation, make_scheduler, **shared)  # with what is new since
    race = Race(curve, iterations, budget, name, trials.scaled)
    trials.fall = race.fall
    with tqdm(total=budget, initial=race.cost, desc="find_rate", unit="it", leave=False, disable=None) as bar:
        if race.rounds:
            race.start_loss = trials.untrained() if lazy else start_loss
        while asked := race.ask():
            race.tell([trials.train(rate, asked.length, bar.update) for rate in asked.trained_at])
    return race.found()


def ramp_length(budget: int) -> int:
    """How many iterations of a budget the ramp has: a third, or all of it where that leaves nothing for a race."""
    length = max(LEAST_RAMP, int(budget * RAMP_SHARE))
    return length if budget - length >= LADDER[-1] * LEAST_RACE else budget


def _budget(budget: int | None, iterations: int, accumulate: int) -> int:
    given = dict(iterations=iterations, accumulate=accumulate) | ({} if budget is None else dict(budget=budget))
    for name, value in given.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number above 0, not {value!r}")
    if budget is None:
        budget = iterations // 5
        if budget < LEAST_BUDGET:
            raise ValueError(
                f"iterations={iterations}: a fifth of them is too small a budget, give budget={LEAST_BUDGET} or more"
            )
    if budget < LEAST_BUDGET:
        raise ValueError(f"budget={budget}: {LEAST_BUDGET} iterations or more are needed")
    return int(budget)


class Asked(NamedTuple):
    """A round of a race.

    Attributes:
        number: of the round, from 1.
        length: iterations of each training.
        rates: for the whole training to come.
        trained_at: the rates that these short trainings have in their place.
    """

    number: int
    length: int
    rates: list[float]
    trained_at: list[float]


class Race:
    """The ladder, round by round, within the budget: `ask` for a round, train it, `tell` how it ended.

    Args:
        ramp: the range test, a row an iteration, `lr` and `train_loss`; NaN from where it diverged.
        iterations: of the training to come.
        budget: of ramp and races.
        schedule: what the schedule is called.
        scaled: whether the optimizer divides its steps by the gradient's size, as Adam does.

    Attributes:
        rounds: how many rates each round has; none where the budget leaves nothing for a race.
        start_loss: the validation loss before any training; set it before the first round is told.
        cost: iterations trained so far.
        fall: what the ramp's loss falls by.

    Raises:
        AnalysisError: the ramp's loss is nowhere finite.
    """

    def __init__(self, ramp: pd.DataFrame, iterations: int, budget: int, schedule: str, scaled: bool) -> None:
        self.ramp, self.iterations, self.budget, self.schedule, self.scaled = ramp, iterations, budget, schedule, scaled
        finite = np.flatnonzero(np.isfinite(ramp.train_loss))
        if not len(finite):
            raise AnalysisError("the loss is not finite even at the lowest rates: look at the model and the batches")
        # The two iterations that ended the ramp were computed, too.
        self.cost = min(len(ramp), int(finite[-1]) + 3)
        self.edge = edge(ramp.lr.to_numpy(), ramp.train_loss.to_numpy())
        self.fall = _Start.of(ramp.train_loss.to_numpy()).fall
        end = self.edge or float(ramp.lr.iloc[-1])
        below = 1 / BELOW_EDGE if scaled else best_beside(iterations, len(ramp) / REACH, scaled=False)
        self.centre = BESIDE_A_RAMP.get(schedule, 1.0) * end * below
        self.rows: list[tuple] = []
        self.rate, self.length, self.learnt = self.centre, max(1, len(ramp) // REACH), False
        self.start_loss = math.nan
        self.rounds = self._rounds()
        factor = 2 if self.edge is not None else WIDE_FACTOR
        first = self.rounds[0] if self.rounds else 0
        self.ladder = [self.centre * float(factor) ** (1 - step) for step in range(first)]
        self.asked: Asked | None = None

    def _rounds(self) -> tuple[int, ...]:
        """How many rates each round has. Where even one round would be too short, none; without an edge all of them."""
        if self.edge is None:
            return WIDE
        left = self.budget - self.cost
        shortest = {rounds: left // _shares_of_budget(rounds) for rounds in (LADDER, LADDER[1:])}
        return next((rounds for rounds, length in shortest.items() if length >= LEAST_RACE), ())

    def ask(self) -> Asked | None:
        """The next round; None when all are told.

        Raises:
            AnalysisError: the ramp shows no edge, and the budget is too small for a race.
        """
        number = self.asked.number + 1 if self.asked else 1
        if number > len(self.rounds):
            return None
        length = min((self.budget - self.cost) // _shares_of_budget(self.rounds[number - 1 :]), self.iterations)
        if length < 1:
            raise AnalysisError(
                f"the ramp shows no rate that is too large, and budget={self.budget} leaves nothing for a race: "
                "give a larger budget"
            )
        beside = best_beside(length, self.iterations, self.scaled)
        self.asked = Asked(number, length, self.ladder, [rate * beside for rate in self.ladder])
        return self.asked

    def tell(self, ends: Sequence[tuple[float, float, int]]) -> None:
        """How the trainings that were asked for ended.

        Args:
            ends: of each, in the order asked: validation loss, accuracy, both NaN where it diverged, and the iterations
                that were trained.

        Raises:
            AnalysisError: every rate led to the very same loss.
        """
        number, length, rates, trained_at = self.asked
        for rate, at, (val_loss, accuracy, trained) in zip(rates, trained_at, ends, strict=True):
            self.rows.append((number, length, rate, at, val_loss, accuracy))
            self.cost += trained
        losses = np.array([val_loss for val_loss, *_ in ends])
        self._judge(np.array(rates), losses, length)
        self.ladder = self._following(np.array(rates), losses)

    def _below(self, loss: float) -> bool:
        """Whether a validation loss is so far below the one at the start that something was learnt."""
        return not math.isfinite(self.start_loss) or self.start_loss - loss > LEARNT * self.fall

    def _judge(self, rates: np.ndarray, losses: np.ndarray, length: int) -> None:
        """Take the round's rate for the answer, if the round tells anything.

        Raises:
            AnalysisError: every rate led to the very same loss.
        """
        if len(losses) > 1 and np.isfinite(losses).all() and np.ptp(losses) == 0:
            raise AnalysisError(
                f"every rate ended at the validation loss {losses[0]:.4g}: the loss does not depend on the weights, or "
                "any rate learns all there is"
            )
        self.learnt = bool(np.isfinite(losses).any()) and self._below(np.nanmin(losses))
        if self.learnt:
            self.rate, self.length = lowest_point(rates, losses), length

    def _following(self, rates: np.ndarray, losses: np.ndarray) -> list[float]:
        """The next round's rates: the best one and its neighbours, also beyond an end of the ladder."""
        if self.learnt:
            middle = rates[np.nanargmin(losses)]
        elif np.isfinite(losses).any():  # no rate is better than another: the one nearest to what is known so far
            fine = rates[np.isfinite(losses)]
            middle = fine[np.abs(np.log(fine / self.rate)).argmin()]
        else:
            middle = rates.min() / 4
        return [float(middle * 2), float(middle), float(middle / 2)]

    def found(self) -> FoundRate:
        """The answer.

        Raises:
            AnalysisError: every race diverged.
        """
        if self.rows and not any(math.isfinite(row[4]) for row in self.rows):
            raise AnalysisError(
                f"every race diverged, down to the rate {min(row[2] for row in self.rows):.2g}: look for inputs "
                "that are not normalised, or batches whose loss is not finite, two of which in a row end a race"
            )
        columns = ["round", "iterations", "rate", "trained_at", "val_loss", "accuracy"]
        factor = 2 * max(1.0, self.iterations / self.length) ** UNSURE
        end = self._end()
        return FoundRate(
            rate=float(f"{self.rate:.3g}"),
            low=0.0 if end == "lowest" else float(f"{self.rate / factor:.3g}"),
            high=math.inf if end == "highest" else float(f"{self.rate * factor:.3g}"),
            tried=pd.DataFrame(self.rows, columns=columns),
            ramp=self.ramp,
            start_loss=self.start_loss,
            edge=self.edge,
            cost=self.cost,
            budget=self.budget,
            iterations=self.iterations,
            schedule=self.schedule,
            note=self._note(),
        )

    def _nothing_learnt(self) -> bool:
        return bool(self.rows) and not any(self._below(row[4]) for row in self.rows)

    def _end(self) -> str | None:
        """Which end of the rates that were raced the answer is, if it is one; then nothing is known beyond."""
        raced = [row[2] for row in self.rows]
        if self._nothing_learnt():
            return "lowest"  # all of them may have been too high
        if not self.learnt or min(raced) < self.rate < max(raced):
            return None
        return "highest" if self.rate > self.centre else "lowest"

    def _note(self) -> str:
        said = []
        if not self.rows:
            said.append("The budget is too small for a race: the ramp alone says it.")
        elif self._nothing_learnt():
            said.append(
                "No race learnt anything, so the ramp alone says it: their rates were too high, or they too short."
            )
        if self.edge is None:
            said.append("The ramp shows no rate that is too large.")
        elif not self._nothing_learnt() and (end := self._end()):
            said.append(f"It is the {end} rate that was tried: a larger budget would look further.")
        return " ".join(said)


def best_beside(length: float, other: float, scaled: bool) -> float:
    """The best rate of a training of `length` iterations as a multiple of that of one of `other` iterations.

    Args:
        length, other: iterations.
        scaled: whether the optimizer divides its steps by the gradient's size, as Adam does: then no start is flat.
    """
    flat = 0 if scaled else FLAT_START
    return (other / length) ** POWER * (1 + flat / length) / (1 + flat / other)


def _shares_of_budget(rounds: tuple[int, ...]) -> int:
    """How many trainings of the first round's length all rounds cost, each twice as long as the one before."""
    return sum(count * 2**number for number, count in enumerate(rounds))


@dataclass(frozen=True)
class _Start:
    """What a ramp `[points]` says of its loss before it diverges, NaN from there on; no constant added to it counts.

    Attributes:
        level: the mean of its first third, before which hardly anything is learnt.
        window: points of the mean that smooths it.
        clear: how much more than the noise of such a mean.
        fall: from the level to the least such mean, or `OF_NOISE` deviations of a single loss, whatever is more, as a
            short ramp may learn next to nothing: the size of what a training changes.
    """

    level: float
    window: int
    clear: float
    fall: float

    @classmethod
    def of(cls, loss: np.ndarray) -> "_Start":
        first, window = loss[np.isfinite(loss)][: max(3, len(loss) // 3)], max(1, len(loss) // 12)
        level, noise = float(first.mean()), float(first.std()) / math.sqrt(window)
        fallen = np.convolve(np.fmin(loss - level, 0.0), np.ones(window) / window, "valid")
        return cls(level, window, CLEAR * noise, max(-float(fallen.min()), OF_NOISE * float(first.std())))


def edge(lr: np.ndarray, loss: np.ndarray) -> float | None:
    """The rate at which a ramp diverges: behind its least the loss is above where it started.

    That is surer than where the loss is least, which noise moves. Where the loss never gets there, it is the rate at
    which it has lost half of what it had gained; None, where it did not do that either. Differences alone count.

    Args:
        lr, loss: of every iteration, `[points]`; NaN from where it diverged.
    """
    if not np.isfinite(loss).any():
        return None
    loss = loss - loss[np.isfinite(loss)][0]  # so that a constant changes no rounding
    start = _Start.of(loss)
    clear = max(DIVERGED * start.fall, start.clear)
    gone = start.level + GONE * start.fall
    loss = np.minimum(np.where(np.isfinite(loss), loss, gone), gone)
    smooth = np.convolve(loss, np.ones(start.window) / start.window, "valid")
    middle = lr[start.window // 2 :][: len(smooth)]
    least = int(smooth.argmin())
    half = [(start.level + smooth[least]) / 2] if start.level - smooth[least] > clear else []
    for limit in (start.level + clear, *half):
        beyond = np.flatnonzero(smooth[least:] > limit)
        if len(beyond):
            return float(middle[least + beyond[0]])
    return None


def lowest_point(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate of the least loss, by a parabola through it and its two neighbours, over log rate.

    Args:
        rates: in any order, `[rates]`.
        losses: NaN where a training diverged, `[rates]`; of one at least it is known.

    Returns:
        At an end, or where the parabola has no lowest point, the rate itself; never nearer to a neighbour than to it.
    """
    order = np.argsort(rates)
    x, y = np.log(rates[order]), np.where(np.isfinite(losses[order]), losses[order], np.inf)
    at = int(y.argmin())
    if 0 < at < len(x) - 1 and np.isfinite(y[at - 1 : at + 2]).all():
        bend, slope, _ = np.polyfit(x[at - 1 : at + 2] - x[at], y[at - 1 : at + 2], 2)
        if bend > 0:
            low, high = (x[at - 1] - x[at]) / 2, (x[at + 1] - x[at]) / 2
            return float(np.exp(x[at] + np.clip(-slope / (2 * bend), low, high)))
    return float(rates[order][at])
