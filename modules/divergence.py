"""When a run has diverged, beside the plain case of a loss that is no number any more."""

import numpy as np

#: Beyond this a rate does not fit into float32, whatever the optimizer divides it by: such a run has diverged.
LARGEST_RATE = 1e36


def climbed(losses: list[float], factor: float) -> bool:
    """Whether the loss, as a mean of three rows, exceeds `factor` times the least such mean so far.

    Args:
        losses: mean training loss of each row so far.
        factor: above 1.
    """
    means = np.convolve(losses, np.ones(3) / 3, "valid") if len(losses) >= 3 else []
    return len(means) > 0 and bool(means[-1] > factor * min(means))
