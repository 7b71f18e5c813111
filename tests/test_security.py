"""What is loaded is data, servers listen to this machine alone, and results say nothing of it."""

import getpass
import http.client
import os
import platform
import subprocess
import urllib.request
from contextlib import suppress

import psutil
import pytest
import torch
from PIL import Image
from toys import small

from modules.data.pictures import DataError, read_pictures
from modules.runs.files import RunFiles
from modules.runs.parallel import cluster
from modules.runs.training import train


class Payload:
    """Unpickled, it would make a file."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_checkpoints_run_no_code(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = RunFiles(tmp_path, small().name)
    files.checkpoint.parent.mkdir()
    torch.save({"spec": Payload()}, files.checkpoint)
    assert files.saved(small(), "") is None
    assert "could not be read" in capsys.readouterr().out
    assert not (tmp_path / "owned").exists()


def test_pictures_start_no_program(tmp_path, monkeypatch):
    """Pillow gives PostScript, which is a language to program in, to Ghostscript, whatever the file is called."""
    picture = tmp_path / "cat.png"
    Image.new("RGB", (16, 16)).save(picture, "EPS")
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *arguments, **options: started.append(arguments))
    with pytest.raises(DataError, match="cat.png cannot be read as an image: its content is none of a known kind"):
        read_pictures([picture], 16)
    assert not started


def test_a_study_listens_to_this_machine_alone_and_shows_no_pages():
    with cluster(1) as client:
        client.wait_for_workers(1)
        listening = {
            connection.laddr
            for process in (psutil.Process(), *psutil.Process().children(recursive=True))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        answers = []
        for port in {place.port for place in listening}:
            for page in ("status", "info/main/workers.html", "json/counts.json", "metrics", "health"):
                with suppress(OSError, http.client.HTTPException):
                    answers.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=1).status)
    assert listening
    assert {place.ip for place in listening} <= {"127.0.0.1", "::1"}
    assert answers == []


def test_results_name_no_host_user_path_or_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLR_SECRET", "hush-hush-4711")
    path = train(small(), tmp_path)
    text = path.read_text() + path.with_suffix(".json").read_text()
    secrets = {"hush-hush-4711", platform.node(), str(tmp_path), os.getcwd(), os.path.expanduser("~")}
    with suppress(KeyError, OSError):  # a user without a name
        secrets.add(getpass.getuser())
    for secret in secrets:
        assert len(secret) <= 3 or secret not in text
