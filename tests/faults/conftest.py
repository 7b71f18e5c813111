"""The small study and what it gives without any fault, and the table of what each fault cost."""

import pytest
from run_small import specs
from small_study import Study

from modules.runs.training import train

FAULT = "fault"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A function giving a folder with an experiment's runs, trained one after the other without any fault."""
    known = {}

    def folder(experiment):
        if experiment not in known:
            known[experiment] = tmp_path_factory.mktemp(experiment)
            for run in specs(experiment).values():
                train(run, known[experiment])
        return known[experiment]

    return folder


@pytest.fixture
def uninterrupted(trained):
    """A function giving the CSV bytes of an experiment's runs without any fault, by name."""
    return lambda experiment: {path.stem: path.read_bytes() for path in trained(experiment).glob("*.csv")}


@pytest.fixture
def study(tmp_path):
    """A function that makes the small study, by default its headline's runs alone; its processes end with the test."""
    made = []

    def make(**options):
        made.append(Study(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        if one.process and one.process.poll() is None:
            one.kill()


@pytest.fixture
def tally(record_property):
    """A function that puts one line into the table of faults.

    Its arguments: the fault, how often it was made, and the finished runs' CSV bytes found and expected, by name.
    """

    def add(fault, times, found, expected):
        lost = [name for name in expected if name not in found]
        rows = sum(expected[n].count(b"\n") - found[n].count(b"\n") for n in expected if n in found)
        different = sum(found[name] != expected[name] for name in expected if name in found)
        record_property(FAULT, [fault, times, len(lost), rows, different])
        assert (lost, rows, different) == ([], 0, 0)

    return add


@pytest.fixture
def whole(tally, uninterrupted):
    """As `tally`, of a study with its status and output, which is returned: it ended well and left nothing over."""

    def look(fault, times, study, ended):
        status, output = ended
        assert status == 0, output
        assert study.leftovers() == []
        tally(fault, times, study.csvs("headline"), uninterrupted("headline"))
        return output

    return look


def pytest_terminal_summary(terminalreporter):
    """The table, in whatever process the tests ran."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [value for report in reports for name, value in report.user_properties if name == FAULT]
    if lines:
        width = max(len(line[0]) for line in lines)
        terminalreporter.write_line(f"{'fault':{width}}  times  runs lost  rows lost  runs of different bytes")
        for fault, times, lost, rows, different in lines:
            terminalreporter.write_line(f"{fault:{width}}  {times:5}  {lost:9}  {rows:9}  {different:23}")
