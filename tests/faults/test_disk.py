"""No space, a disk that cannot be written, damaged checkpoints and edited results."""

import json
import subprocess

import pytest
from small_study import FULL, HEADLINE, RANGE_TEST, in_full, specs, until

from modules.data.datasets import load
from modules.report.tables import read_runs
from modules.runs.files import RunFiles
from modules.runs.training import train
from modules.study import cli as driver

# A checkpoint is 1.3 MB: less than that, and everything else still fits.
LIMITED = ("bash", "-c", 'ulimit -f 600; exec "$@"', "-")


def test_file_size_limit_is_said_and_what_was_finished_stays(study, uninterrupted, tally):
    load("digits")  # its cache, outside the results, is no part of this fault
    small = study(**{"02_range_test": RANGE_TEST})
    assert small.run()[0] == 0
    before = small.csvs("range_test")
    small.file.write_text(json.dumps({"notebooks": {"03_headline_experiment": HEADLINE}}))
    for _ in range(3 if FULL else 1):
        status, output = small.run(*LIMITED)
        assert status == 2
        assert "cannot be written: File too large" in output
        assert "Traceback" not in output
        assert small.csvs("headline") == {}
        assert small.csvs("range_test") == before
        assert read_runs(small.results / "range_test").seed.nunique() == 2
    status, output = small.run()
    assert status == 0, output
    assert small.leftovers() == []
    found = small.csvs("range_test") | small.csvs("headline")
    tally("file size limit", 3 if FULL else 1, found, uninterrupted("range_test") | uninterrupted("headline"))


@pytest.fixture
def disk(tmp_path):
    """A file system of 3 MB; a test without the right to mount one is skipped."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    try:
        allowed = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("mounting a small file system is not allowed here; the file size limit stands for it")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@in_full
def test_full_disk_is_said_and_what_was_finished_stays(study, disk, uninterrupted, tally):
    load("digits")
    small = study()
    small.results = disk / "results"
    status, output = small.run()
    assert status == 2
    assert "No space left on device" in output
    assert "Traceback" not in output
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    status, output = small.run()
    assert status == 0, output
    assert small.leftovers() == []
    tally("full disk", 1, small.csvs("headline"), uninterrupted("headline"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    status, output = small.run()
    assert status == 2
    assert "results cannot be written: Read-only file system" in output
    assert read_runs(small.results / "headline").seed.nunique() == 2


def test_damaged_checkpoints_cost_their_own_runs_only(study, uninterrupted, tally, tmp_path):
    small = study()
    small.start()
    partial = small.results / "headline" / ".partial"
    until(lambda: len(list(partial.glob("*.pt"))) == 2)
    small.kill()
    (fixed, clr) = sorted(partial.glob("*.pt"))[:2]
    fixed.write_bytes(fixed.read_bytes()[:5000])
    other = specs("headline")[clr.stem].model_copy(update={"momentum": 0.5})
    train(other, tmp_path, stop_after=50)
    RunFiles(tmp_path, clr.stem).checkpoint.replace(clr)
    status, output = small.run()
    assert status == 0, output
    assert f"{fixed.name} could not be read" in output
    assert f"{clr.name} is of other settings (momentum: 0.5, not 0.9): set aside as" in output
    assert small.leftovers() == []
    assert len(list((small.results / "headline" / ".set-aside").iterdir())) == 2
    tally("checkpoints truncated or another's", 2, small.csvs("headline"), uninterrupted("headline"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A complete headline, trained here."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "results" / "headline").mkdir(parents=True)
    (folder / "study").mkdir()
    (folder / "study" / "03_headline_experiment.yaml").write_text(json.dumps(HEADLINE))
    for run in specs("headline").values():
        train(run, folder / "results" / "headline")
    return folder


def half(text):
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("fixed-seed2.csv", lambda text: text.replace("0.", "0.9", 1), "fixed-seed2.csv is not as the run wrote it"),
        ("fixed-seed2.csv", half, "fixed-seed2.csv is not as the run wrote it"),
        (
            "fixed-seed2.json",
            lambda text: text.replace('"momentum": 0.9', '"momentum": 0.8'),
            "fixed-seed2.json is not",
        ),
        ("fixed-seed2.json", half, "has no readable fixed-seed2.json beside it"),
    ],
)
def test_edited_results_are_named_and_never_read(finished, capsys, name, damage, message):
    path = finished / "results" / "headline" / name
    text = path.read_text()
    path.write_text(damage(text))
    try:
        arguments = ["reproduce", "--study", str(finished / "study"), "--results", str(finished / "results")]
        assert driver.main(arguments) == 2
        assert message in capsys.readouterr().err
        with pytest.raises(ValueError, match=message):
            read_runs(finished / "results" / "headline")
        assert not (finished / "results" / "tables").exists()
    finally:
        path.write_text(text)
