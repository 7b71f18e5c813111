"""An entry of the rate finders' benchmark: `python -m modules score --rule studies/rules/halfway.py`.

The largest rate at which no more than half of the smoothed loss's fall is done. Source: this project, as an example.
"""

import numpy as np


def rule(lr, loss):
    """The rate.

    Args:
        lr, loss: of every iteration of a ramp, `[points]`; the loss is NaN from where it diverged.
    """
    finite = loss[np.isfinite(loss)]
    smooth = np.convolve(finite, np.ones(5) / 5, "valid")
    least = smooth.argmin()
    fallen = smooth[: least + 1] <= (smooth[0] + smooth[least]) / 2
    return lr[fallen.argmax() + 2]
