"""One live line, and whole lines above it; in a log a line a minute."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import small

from modules.checks import printable_lines
from modules.runs import progress
from modules.runs.progress import Bar, Progress, State
from modules.study.terminal import Screen

HALF = State(50, 100, 1, 2, 0.5, 0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_screen(text):
    """What a terminal shows of a text: what stands behind a carriage return is written over what was before it."""
    lines = [""]
    for part in re.findall(r"\r|\n|[^\r\n]+", text):
        if part == "\n":
            lines.append("")
        elif part == "\r":
            lines[-1] = "\r" + lines[-1].lstrip("\r")
        elif lines[-1].startswith("\r"):
            lines[-1] = part + lines[-1][1 + len(part) :]
        else:
            lines[-1] += part
    return [line.strip() for line in lines]


@pytest.fixture
def screen(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    made = Screen()
    made.terminal = terminal
    made.begin("02_range_test")
    return made


def test_text_and_live_line_never_share_a_line(screen):
    for number in range(20):
        screen.show(HALF._replace(iteration=number))
        screen.out.write("first half, ")
        screen.show(HALF._replace(iteration=number))
        screen.err.write("a warning\n")
        screen.out.write("second half\nanother line\n")
    screen.out.write("no end")
    screen.end()
    lines = on_screen(screen.terminal.getvalue())
    assert lines == [*["a warning", "first half, second half", "another line"] * 20, "no end", ""]


def test_escape_sequences_of_a_text_do_not_reach_the_terminal(screen):
    screen.out.write("\x1b[2J\x1b]0;title\x07\x9b31m größer\n")
    screen.end()
    assert "\\x1b[2J\\x1b]0;title\\x07\\x9b31m größer\n" in screen.terminal.getvalue()


@given(st.text())
def test_what_is_printable_changes_no_terminal(text):
    shown = printable_lines(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert printable_lines(shown) == shown


def test_the_live_line_has_bar_time_left_and_accuracy(screen):
    screen.show(HALF)
    last = on_screen(screen.terminal.getvalue())[-1]
    assert re.fullmatch(r"02_range_test: +\d+ % \|.+\| \S+ left, 1 of 2 runs, accuracy 0.500", last)
    screen.end()


def test_a_log_has_a_line_a_minute(monkeypatch):
    now, log = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = Bar("02_range_test", log)
    for second in range(181):
        now[0] = 2000.0 + second  # half an hour of something else came before
        bar.show(HALF._replace(iteration=second, iterations=300))
    bar.close()
    assert log.getvalue().splitlines() == [
        "02_range_test: 20%, 03:59 left, 1 of 2 runs, accuracy 0.500",
        "02_range_test: 41%, 02:58 left, 1 of 2 runs, accuracy 0.500",
    ]


def test_a_log_says_no_time_left_before_a_hundredth_is_done(monkeypatch):
    now, log = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = Bar("02_range_test", log)
    for minute, iteration in enumerate((0, 5, 400)):
        now[0] = 61.0 * minute
        bar.show(HALF._replace(iteration=iteration, iterations=1000, before=0))
    assert [line.split(", ")[1] for line in log.getvalue().splitlines()] == ["1 of 2 runs", "03:03 left"]


@pytest.mark.parametrize("runs", [3, 40])
def test_each_of_few_runs_has_a_line_when_it_ends_and_of_many_the_diverged_are_counted(runs, capsys):
    specs = [small(seed=seed, iterations=10) for seed in range(1, runs + 1)]
    count, shown = Progress(specs, {spec.name: 4 for spec in specs}), []
    count.show = shown.append
    count.update({"name": specs[0].name, "iteration": 7, "accuracy": 0.25})
    count.update({"said": "a checkpoint was damaged"})
    count.refresh()
    assert shown[-1] == State(4 * runs + 3, 10 * runs, 0, runs, 0.25, 4 * runs)
    count.done(specs[:2], ["accuracy 0.5", "accuracy 0.1, diverged"])
    count.update({"name": specs[0].name, "iteration": 9, "accuracy": 0.75})  # came late
    count.refresh()
    assert shown[-1] == State(4 * (runs - 2) + 20, 10 * runs, 2, runs, 0.25, 4 * runs)
    assert count.diverged == 1
    said = capsys.readouterr().out.splitlines()
    ends = ["triangular-seed1: accuracy 0.5", "triangular-seed2: accuracy 0.1, diverged"]
    assert said == ["a checkpoint was damaged", *(ends if runs == 3 else [])]
