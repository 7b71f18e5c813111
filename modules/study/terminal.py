"""The terminal of a study: one live line for the notebook that runs, and whole lines above it."""

import sys
from typing import TextIO

from tqdm import tqdm

from modules.checks import printable_lines
from modules.runs.progress import Bar, State


class Screen:
    """Where a study's notebooks show what they print, and how far their runs are.

    Attributes:
        out, err: what is written to these appears in whole lines, never across the live one.
    """

    def __init__(self) -> None:
        self.out, self.err = _Lines(sys.stdout), _Lines(sys.stderr)
        self.bar: Bar | None = None

    def begin(self, title: str) -> None:
        """A notebook begins."""
        self.end()
        self.bar = Bar(title)

    def show(self, state: State) -> None:
        """Show how far a notebook's runs are; may be called by another thread."""
        if self.bar:
            self.bar.show(state)
            if state.ended == state.runs:  # a notebook may train several times
                title = self.bar.title.removesuffix(": ")
                self.bar.close()
                self.bar = Bar(title)

    def end(self) -> None:
        """The notebook has ended: its last line is complete, and no live line is left."""
        bar, self.bar = self.bar, None
        if bar:
            bar.close()
        self.out.close_line()
        self.err.close_line()


class _Lines:
    """A stream that gets whole lines, with the live line out of their way."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.rest = stream, ""

    def write(self, text: str) -> None:
        lines, newline, self.rest = (self.rest + text).rpartition("\n")
        if newline:
            with tqdm.external_write_mode(file=self.stream):
                self.stream.write(printable_lines(lines + newline))
                self.stream.flush()

    def flush(self) -> None:
        """What is no whole line waits for its end."""

    def close_line(self) -> None:
        if self.rest:
            self.write("\n")
