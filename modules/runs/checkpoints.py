"""The checkpoint of an unfinished run: saved whole or not at all, taken up only by the run that wrote it."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from modules.checks import RunError
from modules.runs.files import RunFiles, atomic_write
from modules.runs.spec import Spec, differences


def save(path: Path, spec: Spec, fingerprint: str, state: dict) -> None:
    """Replace a run's checkpoint.

    Args:
        path: the checkpoint.
        spec, fingerprint: whose it is, and the data's.
        state: what `resume` is to give back; anything `torch.load(weights_only=True)` reads.

    Raises:
        RunError: it cannot be written; the one before is still there.
    """
    content = io.BytesIO()
    torch.save({"spec": spec.model_dump_json(), "fingerprint": fingerprint, **state}, content)
    try:
        while True:
            path.parent.mkdir(exist_ok=True)
            # A run that finishes just now takes the folder away when it looks empty: make it again.
            with suppress(FileNotFoundError):
                return atomic_write(path, content.getvalue())
    except OSError as error:
        raise RunError(f"checkpoint {path} cannot be written: {error.strerror}") from error


def resume(files: RunFiles, spec: Spec, fingerprint: str, say: Callable[[str], None] = print) -> dict | None:
    """The state of an unfinished run, or None where it has to start from the beginning.

    A checkpoint that cannot be read, or is of other settings or data, may still be hours of somebody's work: it is set
    aside in `.set-aside/`, which is said in one line.

    Args:
        files: the run's.
        spec, fingerprint: what is to be trained, and the data's fingerprint.
        say: called with the line.
    """
    path = files.checkpoint
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        # torch does not look at the archive's own checksums.
        if zipfile.ZipFile(io.BytesIO(content)).testzip():
            raise ValueError("a checksum does not match")
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        found = differences(Spec(**json.loads(state["spec"])), spec)
        if state["fingerprint"] != fingerprint:
            found.append("data: another fingerprint")
        why = f"is of other settings ({'; '.join(found)})"
    except MemoryError:
        raise
    except Exception as error:  # whatever the damage leads to
        state, found = None, ["damaged"]
        why = f"could not be read ({type(error).__name__})"
    if not found:
        return state
    aside = path.parents[1] / ".set-aside" / f"{path.stem}-{hashlib.sha256(content).hexdigest()[:8]}.pt"
    aside.parent.mkdir(exist_ok=True)
    path.replace(aside)
    say(f"{path} {why}: set aside as {aside.parent.name}/{aside.name}, {spec.name} starts from the beginning")
    return None
