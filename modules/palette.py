"""The colours and dashes of every figure: told apart by the colour-blind, and without colours."""

COLOURS = (
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#cc78bc",
    "#ca9161",
    "#fbafe4",
    "#949494",
    "#ece133",
    "#56b4e9",
)  # seaborn's "colorblind"
BASELINE, CHALLENGER = COLOURS[0], COLOURS[1]
DASHES = ("-", (0, (6, 2)), (0, (2, 1)), (0, (8, 2, 2, 2)), (0, (1, 2)))
