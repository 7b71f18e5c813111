"""The checkpoint of an unfinished run: saved whole or not at all, taken up only by the run that wrote it."""

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from modules.files import RunFiles, atomic_write
from modules.runs import RunError, Spec, differences


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

    A checkpoint that cannot be read is deleted. One of other settings or data may be hours of somebody's work, so it is
    set aside under another name. Either is said in one line.

    Args:
        files: the run's.
        spec, fingerprint: what is to be trained, and the data's fingerprint.
        say: called with the line.
    """
    path = files.checkpoint
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        found = differences(Spec(**json.loads(state["spec"])), spec)
        if state["fingerprint"] != fingerprint:
            found.append("data: another fingerprint")
    except Exception as error:  # torch.load raises whatever the damage leads to
        path.unlink()
        say(f"{path} could not be read ({type(error).__name__}): {spec.name} starts from the beginning")
        return None
    if found:
        aside = path.with_suffix(f".at-{state['iteration']}.pt")
        path.replace(aside)
        say(
            f"{path} is of other settings ({'; '.join(found)}): set aside as {aside.name}, "
            f"{spec.name} starts from the beginning"
        )
        return None
    return state
