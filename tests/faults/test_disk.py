"""No space, a disk that cannot be written, damaged checkpoints and edited results."""

import shutil
import subprocess

import pytest
from run_small import EVERY, FULL, specs
from small_study import in_full

from modules.data.datasets import load
from modules.report.tables import read_runs
from modules.runs.files import RunFiles
from modules.runs.training import train


@pytest.mark.ci
def test_file_size_limit_is_said_and_what_was_finished_stays(study, trained, uninterrupted, tally, tmp_path):
    small = study(experiments=("range_test", "headline"))
    shutil.copytree(trained("range_test"), small.results / "range_test")
    before = small.csvs("range_test")
    run = next(iter(specs("headline").values()))
    train(run, tmp_path, stop_after=EVERY)
    # Half a checkpoint, in units of 1,024 bytes: everything else still fits.
    limit = RunFiles(tmp_path, run.name).checkpoint.stat().st_size // 2048
    for _ in range(3 if FULL else 1):
        status, output = small.run("bash", "-c", f'ulimit -f {limit}; exec "$@"', "-")
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
def test_full_disk_is_said_and_what_was_finished_stays(study, disk, whole):
    load("digits")
    small = study()
    small.results = disk / "results"
    status, output = small.run()
    assert status == 2
    assert "No space left on device" in output
    assert "Traceback" not in output
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
    whole("full disk", 1, small, small.run())
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    status, output = small.run()
    assert status == 2
    assert "headline cannot be written: Read-only file system" in output
    assert read_runs(small.results / "headline").seed.nunique() == 2


@in_full
def test_damaged_checkpoints_cost_their_own_runs_only(study, whole):
    small = study()
    folder = small.results / "headline"
    fixed, clr = (specs("headline")[name] for name in ("fixed-seed1", "triangular-seed1"))
    train(fixed, folder, stop_after=EVERY)
    damaged = RunFiles(folder, fixed.name).checkpoint
    damaged.write_bytes(damaged.read_bytes()[:5000])
    train(clr.model_copy(update={"weight_decay": 0.5}), folder, stop_after=EVERY)
    output = whole("checkpoints truncated or another's", 2, small, small.run())
    assert "fixed-seed1.pt could not be read" in output
    assert "triangular-seed1.pt is of other settings (weight_decay: 0.5, not 0.0): set aside as" in output
    assert len(list((folder / ".set-aside").iterdir())) == 2
