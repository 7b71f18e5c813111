"""One learning rate for a training: a race that finds it, rules that read it off a ramp, and what both cost.

Its rooms: `race` (`find_rate`) on `trials` (short trainings), `rules` (each library's rule, and `suggest_rate`),
`benchmark` (tasks, ramps, trainings), `regret` (what a suggestion costs), `figures`.
"""

from .race import FoundRate, find_rate
from .rules import suggest_rate

__all__ = ["FoundRate", "find_rate", "suggest_rate"]
