"""The parts for your own training code, under a name that no folder of yours has.

The files are those of `modules`, which stays the study's own name; they import each other relatively, so a folder of
yours that is called `modules` is not in their way. Take all from one of the two names: Python loads each by itself, and
a class of one is not the class of the other.
"""

from pathlib import Path

__path__ = [str(Path(__file__).with_name("modules"))]  # so `clr_study.schedulers` and the rest are there, too

from clr_study.describe import Description, describe
from clr_study.range_test import BestRate, Bounds, apply_rate, best_rate, range_test, suggest_bounds
from clr_study.rate_finders import FoundRate, find_rate, suggest_rate
from clr_study.schedulers import (
    Annealed,
    CyclicLR,
    RangeTestLR,
    WarmedUp,
    decay,
    exponential,
    fixed,
    separate_rates,
    set_lr,
)
from clr_study.statistics import AnalysisError

__all__ = [
    "AnalysisError",
    "Annealed",
    "BestRate",
    "Bounds",
    "CyclicLR",
    "Description",
    "FoundRate",
    "RangeTestLR",
    "WarmedUp",
    "apply_rate",
    "best_rate",
    "decay",
    "describe",
    "exponential",
    "find_rate",
    "fixed",
    "range_test",
    "separate_rates",
    "set_lr",
    "suggest_bounds",
    "suggest_rate",
]
