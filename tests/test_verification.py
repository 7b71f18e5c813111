"""Complete runs trained again from their first row: what is as it was passes, what is not is named."""

import pytest
from toys import FIXED, TRIANGULAR, make_images, small

from modules.checks import RunError
from modules.data.datasets import DataError, load
from modules.runs.files import RunFiles, pack_runs
from modules.runs.training import train
from modules.runs.verification import runs_in, verify
from modules.study import cli


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
@pytest.mark.parametrize("policy", [TRIANGULAR, dict(name="range_test", min_lr=0.001, max_lr=0.1)])
def test_runs_come_out_again(tmp_path, policy, rows):
    path = train(small(policy), tmp_path)
    before = path.read_bytes()
    assert verify(run_at(path), rows) is None
    assert path.read_bytes() == before
    assert not (tmp_path / ".partial").exists()


def run_at(path):
    return RunFiles(path.parent, path.stem)


def found(place):
    return [run.csv for run in runs_in(place)]


def forge(path, change):
    """Write a run anew, with checksums that fit: `change` is called with its rows and its record. Returns both."""
    files = run_at(path)
    text, record = files.read()
    rows = [line.split(",") for line in text.splitlines()[1:]]
    change(rows, record)
    files.finish(rows, record)
    return rows, record


def forge_loss(path, row, number):
    forge(path, lambda rows, record: rows[row - 1].__setitem__(2, number))


def test_a_forged_row_is_named(tmp_path):
    path = train(small(), tmp_path)
    loss = path.read_text().splitlines()[2].split(",")[2]
    forge_loss(path, 2, "0.5")
    assert verify(run_at(path), 1) is None
    found = verify(run_at(path), 2)
    assert found.startswith("row 2 is 12,")
    assert loss in found
    assert ",0.5," in found
    assert found.count("torch") == 2


def test_rows_that_were_left_out_are_named(tmp_path):
    path = train(small(), tmp_path)
    files, (_, record) = run_at(path), forge(path, lambda rows, record: rows.pop())
    assert verify(files, 3).startswith(f"test accuracy is {record['test']['accuracy']} in its record, and ")
    assert verify(files, 4).startswith("row 4 is 24,")


def test_what_the_record_says_of_the_end_is_trained_again_with_all_rows(tmp_path):
    path = train(small(split="validation", evaluation="validation", test_at_end=True), tmp_path)
    files = run_at(path)
    forge(path, lambda rows, record: record["test"].update(correct="AAAA"))  # as records had it once
    assert verify(files, 4) is None
    forge(path, lambda rows, record: record["test"].update(accuracy=0.9))
    assert verify(files, 3) is None
    assert verify(files, 4).startswith("test is {'loss': ")
    assert "0.9} (made on " in verify(files, 4)


def test_a_run_of_a_gpu_needs_one(tmp_path, monkeypatch):
    path = train(small(), tmp_path)
    forge(path, lambda rows, record: record.update(device="Some GPU"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RunError, match="was trained on Some GPU: a GPU is needed"):
        verify(run_at(path))


def test_a_run_of_a_cpu_is_trained_on_one(tmp_path, monkeypatch):
    path = train(small(), tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert verify(run_at(path)) is None


def test_other_data_are_refused(tmp_path):
    path = train(small(), tmp_path)
    forge(path, lambda rows, record: record["data"].update(fingerprint="0" * 64))
    with pytest.raises(RunError, match="was trained on digits .*, fingerprint 000000000000, and the data here have 45"):
        verify(run_at(path))


@pytest.mark.parametrize("there", ["FashionMNIST/raw", "mine/cat"])
def test_data_that_are_not_there_are_named_with_how_to_give_them(tmp_path, there):
    """What lies in the data folder instead, such as a failed download, is said last."""
    images = make_images(tmp_path / "images")
    path = train(small(dataset="images", batch_size=4), tmp_path, images)
    fingerprint = load("images", images).fingerprint
    (tmp_path / "data" / there).mkdir(parents=True)
    with pytest.raises(DataError) as error:
        verify(run_at(path), data_dir=tmp_path / "data")
    said = str(error.value)
    assert f"was trained on images (folder of images), fingerprint {fingerprint[:12]}; name the folder" in said
    assert said.index("--data-dir <folder>") < said.index(", or mend what was found instead: ")
    assert "\n" not in said


def test_edited_runs_and_wrong_places_are_refused(tmp_path):
    with pytest.raises(RunError, match="holds no complete run"):
        runs_in(tmp_path)
    path = train(small(), tmp_path)
    with pytest.raises(RunError, match="rows=0"):
        verify(run_at(path), 0)
    path.write_text(path.read_text().replace("24,", "25,"))
    with pytest.raises(RunError, match="is not as the run wrote it"):
        verify(run_at(path))


def test_a_run_is_found_by_its_name_in_a_pack(tmp_path):
    path = train(small(), tmp_path / "headline")
    named = [path, path.with_suffix(""), path.with_suffix(".json")]
    assert [found(place) for place in named] == [[path]] * 3
    pack_runs(path.parent)
    packed = [*named, path.parent, tmp_path, path.parent / "runs.csv", path.parent / "runs.jsonl"]
    assert [found(place) for place in packed] == [[path]] * 7
    assert verify(run_at(path), 3) is None
    with pytest.raises(RunError, match="holds no complete run"):
        runs_in(path.with_name("triangular-seed2"))


def test_command_line(tmp_path, capsys):
    folder = tmp_path / "results" / "headline"
    images = make_images(tmp_path / "images", size=16)
    load("images", images)
    for seed, policy in ((1, TRIANGULAR), (2, FIXED)):
        train(small(policy, seed, dataset="images", batch_size=4), folder, images)
    assert found(tmp_path / "results") == found(folder)
    arguments = ["verify", "--results", str(tmp_path / "results"), "--data-dir", str(images)]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.count(": same bytes\n") == 2
    forge_loss(folder / "fixed-seed2.csv", 1, "0.5")
    assert cli.main(arguments) == 1
    assert "fixed-seed2.csv: row 1 is" in capsys.readouterr().out
    assert cli.main([*arguments[:2], str(tmp_path / "nowhere")]) == 2


def test_escape_sequences_in_a_record_are_shown_as_text(tmp_path, capsys):
    path = train(small(), tmp_path)
    forge_loss(path, 1, "0.5")
    forge(path, lambda rows, record: record.update(processor="\x1b[2Jfast"))
    assert cli.main(["verify", "--results", str(path.with_suffix(""))]) == 1
    assert "made on \\x1b[2Jfast, cpu" in capsys.readouterr().out
