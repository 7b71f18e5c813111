"""Where a run's numbers come from: the record beside its CSV. Nothing in it names a host, a user or a path."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modules.checks import RunError, complaints, short
from modules.data.datasets import Dataset
from modules.models import own
from modules.runs.spec import Spec, spec


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Data(_Part):
    label: str
    fingerprint: str
    train: int = Field(ge=0)
    test: int = Field(ge=0)


class _Versions(_Part):
    torch: str


class _Evaluation(_Part):
    loss: float
    accuracy: float = Field(ge=0, le=1)


class _Averaged(_Part):
    test: _Evaluation = Field(default=None)  # it may be missing, and is never null
    validation: _Evaluation = Field(default=None)


class Record(_Part):
    """What a run's record has at least, and between which bounds; more may be in it."""

    spec: dict
    diverged: bool
    iterations: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    data: _Data
    processor: str
    device: str
    versions: _Versions
    test: _Evaluation = Field(default=None)
    ema: _Averaged = Field(default=None)


def recorded(record: object) -> Spec:
    """The specification in a run's record, which is foreign text: no file that it names is opened.

    Raises:
        RunError: the record is not what a run writes; one line that names each wrong entry and its value.
    """
    try:
        settings = Record.model_validate(record).spec
    except ValidationError as error:
        raise RunError(complaints(error, Record.model_fields)) from None
    model = settings.get("model")
    if isinstance(model, str) and own.is_own(model) and not own.PATTERN.fullmatch(model)["checksum"]:
        raise RunError(f"model={short(model)}: the checksum of its file is missing")
    return spec(**settings)


def record(
    spec: Spec,
    dataset: Dataset,
    counts: dict[str, int],
    starts: dict[str, list[str]],
    iterations: int,
    seconds: float,
    diverged: bool,
) -> dict:
    """What a run's JSON says.

    Args:
        spec: what was trained.
        dataset: the data it was trained on.
        counts: how many of its images trained, chose and tested.
        starts: what trained it, as `remember` keeps it; what changed between its starts is there with all its values.
        iterations: iterations done.
        seconds: seconds they took, evaluations and checkpoints included, over all starts.
        diverged: whether it ended early: loss or rate stopped being finite, or the loss climbed by `stop_factor`.
    """
    return {
        "spec": spec.model_dump(mode="json"),
        "diverged": diverged,
        "iterations": iterations,
        "seconds": round(seconds, 3),
        "data": {"label": dataset.label, "fingerprint": dataset.fingerprint, **counts},
        "processor": " / ".join(starts["processor"]),
        "device": " / ".join(starts["device"]),
        "versions": {name: " / ".join(starts[name]) for name in ("python", "torch", "numpy")},
        "revision": ", ".join(starts["revision"]) or None,
    }


def remember(starts: dict[str, list[str]], device: torch.device) -> None:
    """Add to what has trained a run so far, by kind, what trains it from here on.

    Args:
        starts: values of `revision`, `processor`, `device`, `python`, `torch`, `numpy`, each in the order they came.
        device: the device it goes on on.
    """
    now = {
        "revision": revision(),
        "processor": processor(),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy")},
    }
    for kind, value in now.items():
        known = starts.setdefault(kind, [])
        if value is not None and value not in known:
            known.append(value)


#: Variables that let the same processor give other last digits.
CHOOSES_INSTRUCTIONS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
)


@cache
def processor() -> str:
    """The processor's model, the instruction set torch uses on it, and variables that choose among instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    asked = [f", {variable}={os.environ[variable]}" for variable in CHOOSES_INSTRUCTIONS if os.environ.get(variable)]
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}{''.join(asked)}"


#: What a run's numbers come from, beside the data. README or results that are not committed yet change none of them.
SOURCES = ("modules", "notebooks", "studies", "benchmarks", "requirements.txt")


@cache
def revision() -> str | None:
    """The project's git commit, with `+` when one of its `SOURCES` differs from it; None outside a clone.

    Asked once a process: what it has imported does not change later.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", Path(__file__).parents[2], *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")
