"""The learning rate range test (the paper, 3.3): run it on any model, and read bounds off its curve as numbers.

Its rooms: `ramp` (`range_test`), `reading` (what its curve says), `loop` (a user's own training, a batch at a time:
the race of `rate_finders` trains with the same).
"""

from .loop import LARGEST_RATE, apply_rate
from .ramp import range_test
from .reading import BestRate, Bounds, best_rate, suggest_bounds

__all__ = ["LARGEST_RATE", "BestRate", "Bounds", "apply_rate", "best_rate", "range_test", "suggest_bounds"]
