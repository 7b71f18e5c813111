"""SIGKILL of the study, through make and its notebooks, and of a worker."""

import random
import time
from contextlib import suppress

import pytest
from small_study import FULL, HEADLINE, RANGE_TEST, family, gone, kill, until, workers

TIMES = 20 if FULL else 2


@pytest.mark.ci
def test_killed_study_loses_nothing(study, uninterrupted, tally):
    """At random moments, in turn everything at once and the driver alone, whose orphans must end by themselves."""
    notebooks = {"02_range_test": RANGE_TEST, "03_headline_experiment": HEADLINE}
    small = study(notebooks=notebooks if FULL else {"03_headline_experiment": HEADLINE})
    chance = random.Random(1)
    finished = {}

    def look():
        """No finished run may ever be written again: same file, same time."""
        for path in small.results.glob("*/*-seed*.csv"):
            status = path.stat()
            assert finished.setdefault(path, (status.st_ino, status.st_mtime_ns)) == (status.st_ino, status.st_mtime_ns)

    killed = 0
    while killed < TIMES:
        before = newest(small)
        small.start()
        if FULL:
            time.sleep(chance.uniform(1, 25))
        else:
            # A checkpoint of this start, so that there are workers to be orphaned.
            until(lambda before=before: newest(small) > before)
            assert len(family(small.process.pid)) > 4
            time.sleep(chance.uniform(0, 1))
        assert b"error" not in (small.process.stdout.peek() if small.process.poll() else b"")
        processes = small.kill(everything=killed % 2 == 0)
        killed += 1
        look()
        if killed % 2 == 0:
            assert gone(processes), "the driver's orphans are still there"
            look()
    status, output = small.run()
    look()
    assert status == 0, output
    assert small.leftovers() == []
    expected = (uninterrupted("range_test") if FULL else {}) | uninterrupted("headline")
    tally("SIGKILL of the study", killed, small.csvs("range_test") | small.csvs("headline"), expected)


@pytest.mark.ci
def test_killed_workers_cost_no_run(study, whole):
    """The study must end by itself: the worker's nanny starts another, and the run goes on from its checkpoint."""
    small, times = study(), 3 if FULL else 1
    small.start()
    for _ in range(times):
        until(lambda: list(small.results.rglob("*.pt")) and workers(small.process.pid))
        kill(workers(small.process.pid)[0])
        time.sleep(1)
    whole("SIGKILL of a worker", times, small, small.finish())


def newest(small):
    """When the last checkpoint was written."""
    times = [0.0]
    for path in small.results.rglob("*.pt"):
        with suppress(FileNotFoundError):  # replaced meanwhile
            times.append(path.stat().st_mtime)
    return max(times)
