"""What convex theory says of a schedule: a bound on the last iterate, and the rate that makes it smallest.

Schaipp, Hägele, Taylor, Simsekli and Bach (arXiv:2501.18965) take it from Theorem 10 of Defazio, Cutkosky, Mehta and
Mishchenko (arXiv:2310.07831). For subgradient steps with rates `r e_1, ..., r e_T` on a convex function whose gradients
are no longer than G, at a distance D from the minimum,

    f(x_T) - f*  <=  D^2 / (2 r S_1)  +  r G^2 / 2  (Q_1 / S_1  +  sum_{k<T} e_k / S_{k+1}  Q_k / S_k),

where `S_k = e_k + ... + e_T` and `Q_k = e_k^2 + ... + e_T^2`. The best `r` makes both parts equal.
"""

from typing import NamedTuple

import numpy as np


class Bound(NamedTuple):
    """The smallest bound of a schedule, and the factor of its rates that has it, both for D = G = 1."""

    value: float
    rate: float


def last_iterate(schedule: np.ndarray) -> Bound:
    """The bound of a schedule of learning rates `[iterations]`, all above 0; multiples have the same."""
    from_here = np.cumsum(schedule[::-1])[::-1]
    squares = np.cumsum(schedule[::-1] ** 2)[::-1]
    distance = 1 / (2 * from_here[0])
    steps = squares[0] / from_here[0] + (schedule[:-1] / from_here[1:] * squares[:-1] / from_here[:-1]).sum()
    return Bound(float(2 * np.sqrt(distance * steps / 2)), float(np.sqrt(distance / (steps / 2))))
