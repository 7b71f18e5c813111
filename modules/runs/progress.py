"""How far many runs have come: counted from what workers tell, shown in one live line, or in a line a minute."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

from tqdm import tqdm

from modules.runs.spec import Spec

EVERY = 60  # seconds between two lines where nothing can be live, such as in a log
SHORT = 12  # runs, up to which each has a line when it ends


class State(NamedTuple):
    """How far runs have come.

    Attributes:
        iteration, iterations: of all runs: done, and asked for.
        ended, runs: runs that have ended, and all of them.
        accuracy: the mean of the runs' last accuracies; None before the first.
        before: iterations that earlier starts had done.
    """

    iteration: int
    iterations: int
    ended: int
    runs: int
    accuracy: float | None
    before: int

    @property
    def text(self) -> str:
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.3f}"
        return f"{self.ended} of {self.runs} runs{accuracy}"


class Bar:
    """One live line, or a line a minute where `stream` is no terminal.

    Args:
        title: what stands in front.
        stream: by default this process's stderr.
    """

    def __init__(self, title: str = "", stream: TextIO | None = None) -> None:
        self.title, self.stream = f"{title}: " if title else "", stream or sys.stderr
        # A page of Jupyter's is no terminal, and has live lines, too.
        self.live = self.stream.isatty() or type(self.stream).__module__.startswith("ipykernel")
        self.bar: tqdm | None = None
        self.started: float | None = None
        self.said = time.monotonic()

    def show(self, state: State) -> None:
        """Show how far it is; time counts from the first call, as a notebook may do something else before it trains."""
        if self.started is None:
            self.started = self.said = time.monotonic()
        if self.live:
            if self.bar is None:
                self.bar = tqdm(
                    total=state.iterations,
                    initial=state.before,
                    file=self.stream,
                    bar_format=self.title + "{percentage:3.0f} % |{bar}| {remaining} left{postfix}",
                    dynamic_ncols=True,
                    leave=False,
                    mininterval=0.5,
                    miniters=0,
                )
                self.bar.set_postfix_str(state.text)
            self.bar.set_postfix_str(state.text, refresh=False)
            self.bar.update(state.iteration - self.bar.n)
        elif time.monotonic() - self.said > EVERY:
            self.said = time.monotonic()
            done, all_of_it = state.iteration - state.before, state.iterations - state.before
            seconds = (self.said - self.started) * (all_of_it / done - 1) if done else 0
            # Before that it is mostly the workers' start that is measured.
            left = f", {tqdm.format_interval(seconds)} left" if done > all_of_it / 100 else ""
            share = state.iteration / state.iterations
            print(f"{self.title}{share:.0%}{left}, {state.text}", file=self.stream, flush=True)

    def close(self) -> None:
        """End the live line; nothing is left of it."""
        if self.bar is not None:
            self.bar.close()


class Progress:
    """The count of all runs' iterations, and of what became of them.

    Args:
        specs: the runs.
        done: by name, the iterations that earlier starts have done: they are no part of this one's speed.

    Attributes:
        trouble: what last kept a worker from starting.
        diverged: how many runs have.
    """

    def __init__(self, specs: Sequence[Spec], done: dict[str, int]) -> None:
        self.at = {spec.name: done[spec.name] for spec in specs}  # by name, how far a run is; without finished runs
        self.iterations, self.runs = sum(spec.iterations for spec in specs), len(specs)
        self.before, self.finished = sum(self.at.values()), 0
        self.accuracies: dict[str, float] = {}
        self.trouble, self.diverged = "", 0
        self.waiting: list[str] = []  # lines of workers, to be said by the main thread
        self.lock = threading.Lock()  # events come in the client's thread, endings in the main one
        self.show: Callable[[State], None] = lambda state: None

    def update(self, event: dict) -> None:
        """Take a worker's event, `{"name", "iteration", "accuracy"}` or `{"said"}`, or the cluster's, `{"trouble"}`."""
        with self.lock:
            if "trouble" in event:
                self.trouble = event["trouble"]
            elif "said" in event:
                self.waiting.append(event["said"])
            elif event["name"] in self.at:  # else it has finished
                self.at[event["name"]] = event["iteration"]
                if event["accuracy"] is not None:
                    self.accuracies[event["name"]] = event["accuracy"]

    def refresh(self) -> None:
        """Show how far it is, and say what workers had to say."""
        with self.lock:
            lines, self.waiting = self.waiting, []
            known = list(self.accuracies.values())
            iteration = self.finished + sum(self.at.values())
            accuracy = sum(known) / len(known) if known else None
            ended = self.runs - len(self.at)
        for line in lines:
            tqdm.write(line)  # above the live one
        self.show(State(iteration, self.iterations, ended, self.runs, accuracy, self.before))

    def done(self, runs: Sequence[Spec], outcomes: Sequence[str]) -> None:
        """Runs ended, each with a line that says how; it is said where there are few runs."""
        for spec, outcome in zip(runs, outcomes, strict=True):
            if spec.name not in self.at:  # complete before, and in a group with others that were not
                continue
            with self.lock:
                self.at.pop(spec.name)
                self.finished += spec.iterations
            self.diverged += "diverged" in outcome
            if self.runs <= SHORT:
                tqdm.write(f"{spec.name}: {outcome}")
        self.refresh()
