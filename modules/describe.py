"""What a learning rate schedule will do, before anything is trained with it."""

import copy
import inspect
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as theirs
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, SequentialLR

from .schedulers import Annealed, CyclicLR, RangeTestLR, WarmedUp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A schedule ends low at this part of its highest rate, or below; ten times 0.1 rounds to a little more than 1.
LOW = 0.1 + 1e-9

_TINY = 1e-6  # a step at this part of the highest rate changes nothing
_COMPARED = 1000  # iterations after each stop
_SHOWN = 12  # phases of a group in the text

_CYCLES = (CyclicLR, theirs.CyclicLR, theirs.CosineAnnealingWarmRestarts)  # rates that rise again are meant to


@dataclass(frozen=True)
class Description:
    """What `describe` found. As text it is a page; `figure` draws it.

    Attributes:
        name: the classes of the schedulers.
        rates: `[iterations, groups]`; shorter where a step failed.
        table: a row for each parameter group: `first`, `highest`, `mean` and `last` rate, `highest_at` (iteration), and
            `ends_low`: a tenth of the highest or less, at the last iteration or where the fall would go on to.
        phases: for each `group`, `what` the rate does from iteration `start` to `stop`: it climbs, falls or stays, or
            it jumps up or drops in a single step; with the rates `before` and `after`. Groups of one shape stand there
            once, as the first of them.
        alike: for each group the first one of its shape.
        stops: the iterations at which a stop was tried: states saved, and loaded by fresh copies.
        resumes: whether the rates after each stop were those without a stop.
        warnings: what is probably not meant, in words.
    """

    name: str
    rates: np.ndarray
    table: pd.DataFrame
    phases: pd.DataFrame
    alike: list[int]
    stops: list[int]
    resumes: bool
    warnings: list[str]

    def figure(self) -> "Figure":
        """Rate against iteration, a line for each group; groups of equal rates are one line."""
        import matplotlib.pyplot as plt  # slow to import, and only needed here

        lines: dict[bytes, list[str]] = {}
        for group, rates in enumerate(self.rates.T):
            lines.setdefault(rates.tobytes(), []).append(str(group))
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="tight")
        plt.close(figure)  # a notebook shows what is returned, and would show an open figure again
        for index, (rates, groups) in enumerate(lines.items()):
            style = ("-", "--", "-.", ":")[index % 4]
            axes.plot(np.frombuffer(rates), style, label=f"group {', '.join(groups)}")
        axes.set(xlabel="iteration", ylabel="learning rate", title=self.name)
        if len(lines) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)  # hides no curve
        return figure

    def __str__(self) -> str:
        table = self.table.rename(columns={"highest_at": "highest at", "ends_low": "ends low"})
        parts = [f"{self.name}, {len(self.rates):,} iterations", table.to_string(float_format="{:.4g}".format)]
        for group, rows in self.phases.groupby("group"):
            others = [str(other) for other, first in enumerate(self.alike) if first == group and other != group]
            told = [f"group {group}" + (f" (the same shape: {', '.join(others)})" if others else "")]
            for row in rows.head(_SHOWN).itertuples():
                where = f"{row.stop:,}" if row.what in ("jumps up", "drops") else f"{row.start:,} to {row.stop:,}"
                told.append(f"{where:>20}  {row.what} {_from_to(row)}")
            if len(rows) > _SHOWN:
                told.append(f"{'...':>20}  {len(rows) - _SHOWN:,} more in phases")
            parts.append("\n".join(told))
        if self.stops:
            stops = ", ".join(f"{stop:,}" for stop in self.stops)
            parts.append(f"Stopped at {stops}, it resumes {'to the same rates' if self.resumes else 'to OTHER rates'}.")
        told = ["Warnings:", *(f"- {each}" for each in self.warnings)] if self.warnings else ["No warnings."]
        parts.append("\n".join(told))
        return "\n\n".join(parts)


def describe(scheduler: LRScheduler | Sequence[LRScheduler], optimizer: Optimizer, iterations: int) -> Description:
    """Step a copy of a schedule to its end; say what it does, and what is probably not meant.

    The copy has a stand-in for the optimizer, with its groups and none of its parameters: nothing of yours is stepped,
    loaded or written. Only what a function of yours remembers outside of the scheduler cannot be copied. A million
    iterations take about a minute.

    Args:
        scheduler: one of torch's or of `modules.schedulers`, also a `SequentialLR` or a `ChainedScheduler`; or a list
            of schedulers that are stepped together, in this order. Fresh, or in the middle of a training: what is
            still to come is described.
        optimizer: the one that the scheduler was made with.
        iterations: how many times `step` will be called until the training ends: the number of batches if you step
            after each batch, the number of epochs if you step after each epoch.

    Raises:
        TypeError: the scheduler or the optimizer is none of torch's.
        ValueError: the scheduler belongs to another optimizer or cannot be copied; `iterations` is no count.
    """
    schedulers = list(scheduler) if isinstance(scheduler, list | tuple) else [scheduler]
    _check(schedulers, optimizer, iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: the stand-in's step is not wrapped
        played = _Copy(schedulers, optimizer)
        asking = [type(each).__name__ for each in played.asking]
        stops = sorted({1, iterations // 4, iterations // 2, 3 * iterations // 4} & set(range(1, iterations)))
        rates, states, failure = _trace(played, iterations, stops)
        lost = [_lost(_Copy(schedulers, optimizer), stop, states[stop], rates) for stop in states]
    whole, rates = rates, rates[:iterations]
    alike = _alike(rates)
    ends = np.array([_end(whole[:, group]) for group in alike])  # as parts of the highest rates
    phases = {group: _phases(rates[:, group]) for group in sorted(set(alike))}
    horizons = [each for part in schedulers for each in _horizons(part, _done(part) + iterations)]
    every = _every(schedulers)
    rises = any(isinstance(each, _CYCLES) for each in every) or any("rises again" in each for each in horizons)
    told = [f"{name} follows a metric, and there is none yet: its rates are left as they are." for name in asking]
    told += [failure] if failure else []
    told += [next(each for each in lost if each)] if any(lost) else []
    told += horizons
    told += [] if rates.any() else ["The rate is 0 all the time: nothing is trained."]
    for group, rows in phases.items():
        of_group = f"Group {group}: " if len(phases) > 1 else ""
        found = list(_of_rates(rates[:, group], list(rows.itertuples()), rises))
        if not (asking or any(isinstance(each, RangeTestLR) for each in every)):
            found += _of_end(rates[:, group], ends[group], list(rows.itertuples()))
        told += [of_group + each for each in found]
    return Description(
        name=" and ".join(_name(each) for each in schedulers),
        rates=rates,
        table=_table(rates, ends),
        phases=pd.concat([rows.assign(group=group) for group, rows in phases.items()], ignore_index=True),
        alike=alike,
        stops=list(states),
        resumes=not any(lost),
        warnings=told,
    )


def _check(schedulers: list, optimizer: Optimizer, iterations: int) -> None:
    for each in schedulers or [None]:
        if not isinstance(each, LRScheduler):
            within = isinstance(getattr(each, "scheduler", None), LRScheduler)
            hint = "; give the one in its attribute scheduler" if within else ""
            raise TypeError(f"scheduler must be torch's, or a list of these, not {type(each).__name__}{hint}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, not {type(optimizer).__name__}")
    for each in schedulers:
        if each.optimizer is not optimizer:
            raise ValueError(f"optimizer must be the one that {type(each).__name__} was made with, not another")
    if isinstance(iterations, bool) or not isinstance(iterations, Integral) or iterations < 1:
        raise ValueError(f"iterations must be a count, not {iterations!r}")


class _StandIn(Optimizer):
    """An optimizer's groups, without its parameters."""

    def __init__(self, optimizer: Optimizer) -> None:
        groups = [
            {key: copy.deepcopy(x) for key, x in group.items() if key not in ("params", "param_names")}
            for group in optimizer.param_groups
        ]
        super().__init__([{**group, "params": [torch.zeros(1)]} for group in groups], {})
        self.defaults = copy.deepcopy(optimizer.defaults)  # schedulers look there for momentum and betas

    def step(self) -> None:
        """Nothing: rates need no weights."""


class _Copy:
    """Schedulers with a stand-in for their optimizer."""

    def __init__(self, schedulers: list[LRScheduler], optimizer: Optimizer) -> None:
        self.optimizer = _StandIn(optimizer)
        try:
            self.schedulers = copy.deepcopy(schedulers, {id(optimizer): self.optimizer})
        except Exception as error:
            raise ValueError(f"scheduler cannot be copied: {error}") from error
        self.asking = [each for each in self.schedulers if _asks(each)]

    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def step(self) -> None:
        for each in self.schedulers:
            if each not in self.asking:
                each.step()

    def save(self) -> bytes:
        buffer = io.BytesIO()
        torch.save([self.optimizer.state_dict(), *(each.state_dict() for each in self.schedulers)], buffer)
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        states = torch.load(io.BytesIO(saved), weights_only=False)  # written above
        for each, state in zip((self.optimizer, *self.schedulers), states, strict=True):
            each.load_state_dict(state)


def _asks(scheduler: LRScheduler) -> bool:
    """Whether `step` has to be given something: a metric."""
    arguments = inspect.signature(scheduler.step).parameters.values()
    return any(x.default is x.empty and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD) for x in arguments)


def _trace(played: _Copy, iterations: int, stops: list[int]) -> tuple[np.ndarray, dict, str | None]:
    """Rates `[iterations + 1, groups]`, the last one after the run; states at the stops; why a step failed."""
    rates, states = [played.rates()], {}
    for t in range(iterations):
        if t in stops:
            try:
                states[t] = played.save()
            except Exception as error:
                states[t] = error
        try:
            played.step()
        except Exception as error:
            return np.array(rates), states, f"Step {t + 1:,} of {iterations:,} fails: {error}"
        rates.append(played.rates())
    return np.array(rates), states, None


def _lost(fresh: _Copy, stop: int, saved: bytes | Exception, rates: np.ndarray) -> str | None:
    """What is wrong with a resume at `stop`; None where the rates go on as without it."""
    if isinstance(saved, Exception):
        return f"Stopped at {stop:,}, its state cannot be saved: {saved}"
    try:
        fresh.load(saved)
        for t, expected in enumerate(rates[stop : stop + _COMPARED], start=stop):
            got = np.array(fresh.rates())
            if not np.allclose(got, expected, rtol=1e-9, atol=0, equal_nan=True):
                group = int(np.argmax(got != expected))
                pair = f"{got[group]:.4g} instead of {expected[group]:.4g}"
                return f"Stopped at {stop:,} and resumed, it has other rates: iteration {t:,} has {pair}."
            if t + 1 < len(rates):
                fresh.step()
    except Exception as error:
        return f"Stopped at {stop:,}, it does not resume: {error}"
    return None


def _alike(rates: np.ndarray) -> list[int]:
    """For each group the first one whose rates are the same but for a factor."""
    highest = np.abs(rates).max(axis=0)
    shapes = rates / np.where(highest > 0, highest, 1)
    return [
        next(
            first
            for first in range(group + 1)
            if np.allclose(shapes[:, first], shapes[:, group], rtol=1e-9, atol=1e-12, equal_nan=True)
        )
        for group in range(rates.shape[1])
    ]


def _table(rates: np.ndarray, ends: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame({"first": rates[0], "highest": rates.max(axis=0), "highest_at": rates.argmax(axis=0)})
    return table.assign(mean=rates.mean(axis=0), last=rates[-1], ends_low=ends <= LOW).rename_axis("group")


def _end(rates: np.ndarray) -> float:
    """How low a rate ends, as a part of its highest: a fall to 0 over 5 epochs has its last epoch at a fifth.

    So the rate after the run, the last of `rates`, counts as well, unless it is a drop that comes too late.
    """
    late = len(rates) > 1 and _phases(rates).what.iloc[-1] == "drops"
    highest = rates[: max(1, len(rates) - 1)].max()  # a single rate, where the first step failed
    return (rates[-2] if late else rates[-2:].min()) / (highest or 1)


def _phases(rates: np.ndarray) -> pd.DataFrame:
    """Where one group's rate climbs, falls, stays, jumps up and drops."""
    change = np.diff(rates)
    higher = np.maximum(rates[:-1], rates[1:])
    way = np.where(np.abs(change) > 1e-12 * higher + 1e-16 * rates.max(), np.sign(change), 0)  # not by rounding
    # A jump is much larger than the steps of its kind beside it: a steep ramp is none, a break in a curve is one.
    beside = np.pad(change, 1)
    beside = np.maximum(np.maximum(way * beside[:-2], way * beside[2:]), 0)
    jumps = np.abs(change) > np.maximum(3 * beside, 0.02 * higher)
    bent = way[:-2] * way[2:] != 0  # a top that lies between two iterations is no rest
    way[1:-1] = np.where(bent & (way[1:-1] == 0) & ~jumps[:-2] & ~jumps[2:], way[:-2], way[1:-1])
    names = {(1, False): "climbs", (-1, False): "falls", (1, True): "jumps up", (-1, True): "drops"}
    rows, start = [], 0
    for (jump, sign), steps in groupby(range(len(change)), key=lambda t: (t + 1 if jumps[t] else 0, way[t])):
        stop = start + len(list(steps))
        rows.append((names.get((sign, jump > 0), "stays"), start, stop, rates[start], rates[stop]))
        start = stop
    rows = rows or [("stays", 0, 0, rates[0], rates[0])]
    return pd.DataFrame(rows, columns=["what", "start", "stop", "before", "after"])


def _from_to(phase) -> str:
    return f"at {phase.after:.4g}" if phase.what == "stays" else f"from {phase.before:.4g} to {phase.after:.4g}"


def _of_rates(rates: np.ndarray, phases: list, rises: bool) -> Iterator[str]:
    """What is odd about one group's rates, whatever schedulers made them.

    Args:
        rates: of each iteration.
        phases: rows of `_phases`.
        rises: whether it is known that the rate rises again once it was low.
    """
    odd = ~np.isfinite(rates) | (rates < 0)
    if odd.any():
        yield f"Iteration {odd.argmax():,} has the rate {rates[odd.argmax()]:.4g}."
        return
    idle = rates <= _TINY * rates.max()
    if rates.max() > 0 and idle.sum() > 1 and idle.mean() > 0.05:
        yield (
            f"{idle.sum():,} of {len(rates):,} iterations have a rate of 0 or nearly, from iteration {idle.argmax():,} "
            "on: they change nothing. Is it stepped too often?"
        )
    for climb, drop in pairwise(phases):
        if climb.what == "climbs" and drop.what == "drops":
            yield f"The rate climbs until iteration {climb.stop:,}, and then drops at once {_from_to(drop)}."
            break
    for row in phases if not rises else []:
        fallen = row.before <= LOW * rates[: row.start].max(initial=0) and rates[: row.start].any()
        if row.what in ("climbs", "jumps up") and fallen and row.after > max(2 * row.before, LOW * rates.max()):
            yield f"The rate is low at iteration {row.start:,}, and rises again {_from_to(row)}."
            break


def _of_end(rates: np.ndarray, end: float, phases: list) -> Iterator[str]:
    """How a rate ends that does not end low, at `end` of its highest."""
    last, highest = rates[-1], rates.max()
    if end <= LOW or not np.isfinite(rates).all():
        return
    share = f"{last:.4g}, {last / highest:.0%} of its highest"
    if len(phases) == 1 and phases[0].what == "stays":
        yield f"The rate is {last:.4g} from the first iteration to the last: nothing is annealed."
    elif phases[-1].what == "climbs":
        yield f"The rate is still climbing at the end, to {share}."
    elif phases[-1].what == "falls":
        yield f"The rate is still falling at the end, at {share}."
    else:
        yield f"The rate does not end low: it ends at {share}."


def _parts(scheduler: LRScheduler) -> list[LRScheduler]:
    """The schedulers that it is made of."""
    if isinstance(scheduler, Annealed | WarmedUp):
        return [scheduler.scheduler]
    return list(getattr(scheduler, "_schedulers", []))


def _name(scheduler: LRScheduler) -> str:
    parts = ", ".join(_name(part) for part in _parts(scheduler))
    return type(scheduler).__name__.removeprefix("_Own") + (f"({parts})" if parts else "")


def _every(schedulers: Sequence[LRScheduler]) -> list[LRScheduler]:
    """The schedulers, and all that they are made of."""
    return [part for each in schedulers for part in (each, *_every(_parts(each)))]


def _done(scheduler: LRScheduler) -> int:
    """How many iterations it has behind it; a `ChainedScheduler` does not count."""
    return _done(_parts(scheduler)[0]) if isinstance(scheduler, ChainedScheduler) else scheduler.last_epoch


def _horizons(scheduler: LRScheduler, end: int) -> Iterator[str]:
    """Where a length that a scheduler was made with does not fit the iterations it has, `end` from its own start."""
    if isinstance(scheduler, SequentialLR):
        starts = [0, *scheduler._milestones]
        for part, start, stop in zip(_parts(scheduler), starts, [*scheduler._milestones, end], strict=True):
            if start >= end:
                yield f"{_name(part)} never has its turn: its milestone is {start:,}, the run ends at {end:,}."
            elif stop > scheduler.last_epoch:
                yield from _horizons(part, min(stop, end) - start)
        return
    for part in _parts(scheduler):
        yield from _horizons(part, end)
    found = _misfit(scheduler, end)
    if found:
        yield f"{_name(scheduler)}: {found}"


def _misfit(scheduler: LRScheduler, end: int) -> str | None:
    only = f"but only {end:,} steps come"
    match scheduler:
        case theirs.OneCycleLR(total_steps=length) if length > 1.1 * end:
            return f"total_steps={length}, {only}: it is not annealed. Step it after every batch, or give it {end}."
        case theirs.CosineAnnealingLR(T_max=length) if length < end - 1:
            return f"T_max={length}, but {end:,} steps come: the rate rises again after {length:,}."
        case theirs.CosineAnnealingLR(T_max=length) if length > 1.1 * end:
            return f"T_max={length}, {only}: it does not get to its end."
        case theirs.LinearLR(total_iters=length, start_factor=first, end_factor=last) if length > end and first < last:
            return f"total_iters={length}, {only}: the warm-up is not over then."
        case theirs.LinearLR(total_iters=length) | theirs.ConstantLR(total_iters=length) if length > end:
            return f"total_iters={length}, {only}: it does not get to its end."
        case theirs.PolynomialLR(total_iters=length) if length > 1.1 * end:
            return f"total_iters={length}, {only}: it does not get to its end."
        case theirs.MultiStepLR(milestones=milestones) if max(milestones, default=0) >= end:
            late = ", ".join(str(each) for each in sorted(milestones) if each >= end)
            return f"milestones={late}, {only}: they are never reached."
        case theirs.StepLR(step_size=length) if length >= end:
            return f"step_size={length}, {only}: it is never reached."
        case theirs.CyclicLR(total_size=length, step_ratio=part) if length * part > end:
            return f"step_size_up={length * part:g}, {only}: it never gets to max_lr."
        case CyclicLR(step_size=length) if length > end:
            return f"step_size={length:g}, {only}: it never gets to max_lr."
        case RangeTestLR(iterations=length) if length > end:
            return f"iterations={length}, {only}: it never gets to max_lr."
        case Annealed(end=length) if length > end:
            return f"end={length}, {only}: it does not get to 0."
    return None
