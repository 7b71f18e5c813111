"""A rate by full trainings: at neighbouring rates, until the best has a worse one on both sides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

FACTOR = 2  # between neighbouring rates
MOST = 8  # rates of a schedule: they span a factor of 128


@dataclass(frozen=True)
class Tried:
    """What full trainings at some rates say.

    Attributes:
        rate: the best of those tried.
        low, high: its neighbours, which were tried and are worse. Where no lower rate was tried, `low` is 0; where no
            higher one was, `high` is infinite.
        tried: a row a rate: `rate`, `accuracy`, `val_loss`; both NaN where it diverged.
        note: what to know of this answer, or empty.
    """

    rate: float
    low: float
    high: float
    tried: pd.DataFrame = field(repr=False, compare=False)
    note: str = ""

    @property
    def where(self) -> str:
        """Where the best rate probably lies, in words."""
        return between(self.low, self.high)

    def __str__(self) -> str:
        return f"rate {self.rate:.3g}, the best is probably {self.where}. {self.note}".rstrip()


class Bracket:
    """Which rates to try next, given how those before ended.

    Args:
        start: a first guess. It and half and twice of it are tried first; then further ones, beside the best, one at a
            time, until it has neighbours on both sides, or there are `MOST`.
    """

    def __init__(self, start: float) -> None:
        self.start = start
        self.ends: dict[float, tuple[float, float]] = {}  # accuracy and less the loss, by rate

    def ask(self) -> list[float]:
        """Rates to try; none at the end."""
        if not self.ends:
            return [_three_digits(self.start * times) for times in (1 / FACTOR, 1, FACTOR)]
        lower, higher = self._neighbours()
        if len(self.ends) >= MOST or (lower and higher):
            return []
        return [_three_digits(self._best() * FACTOR if lower else self._best() / FACTOR)]

    def tell(self, ends: Sequence[tuple[float, float, float]]) -> None:
        """How trainings ended.

        Args:
            ends: rate, accuracy (0 to 1) and loss on images that do not train; of one that diverged NaN.
        """
        for rate, accuracy, loss in ends:
            lost = math.isnan(accuracy) or math.isnan(loss)
            self.ends[rate] = (-math.inf, -math.inf) if lost else (accuracy, -loss)

    def _best(self) -> float:
        """The most accurate; of equals the one with the least loss; the lowest where all diverged."""
        return max(sorted(self.ends), key=self.ends.__getitem__)

    def _neighbours(self) -> tuple[list[float], list[float]]:
        best = self._best()
        return [rate for rate in self.ends if rate < best], [rate for rate in self.ends if rate > best]

    def found(self) -> Tried:
        """The answer so far."""
        lower, higher = self._neighbours()
        rows = [(rate, accuracy, -loss) for rate, (accuracy, loss) in sorted(self.ends.items())]
        tried = pd.DataFrame(rows, columns=["rate", "accuracy", "val_loss"])
        tried.loc[tried.accuracy == -math.inf, ["accuracy", "val_loss"]] = math.nan
        if tried.accuracy.isna().all():
            note = f"All {len(tried)} trainings diverged."
        elif lower and higher:
            note = ""
        else:
            end = "highest" if lower else "lowest"
            note = f"Of {len(tried)} rates the {end} is the best: others beyond may be better."
        return Tried(self._best(), max(lower, default=0.0), min(higher, default=math.inf), tried, note)


def between(low: float, high: float) -> str:
    """A range of rates in words, such as `between 0.001 and 0.02`; 0 and infinity leave a side open."""
    if low == 0:
        return f"below {high:.2g}"
    return f"above {low:.2g}" if math.isinf(high) else f"between {low:.2g} and {high:.2g}"


def _three_digits(rate: float) -> float:
    return float(f"{rate:.3g}")
