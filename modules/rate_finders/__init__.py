"""One learning rate for a training: rules that read it off a ramp, and the benchmark that measures what they cost.

Its rooms: `rules` (each library's rule, and `suggest_rate`), `benchmark` (tasks, ramps, trainings), `regret` (what a
suggestion costs), `figures`.
"""
