"""What parameters must be, and how a message shows them: every check names the parameter and its value in one line."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


LARGEST = 1e100  # of a parameter
LEAST_FILES = 256  # open at a time: a kernel alone has some eighty, each worker ten


class RunError(ValueError):
    """A specification or a results folder that cannot be used; the message is one line for the user."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the nearest known name, or nothing when none is near."""
    near = get_close_matches(name, list(known), 1)
    return f", did you mean {near[0]!r}?" if near else ""


def complaints(error: "ValidationError", known: Iterable[str], of: str = "") -> str:
    """What pydantic found wrong, in one line: each setting by the user's name for it, its value, what is wrong with it.

    Args:
        error: pydantic's.
        known: the names of the settings there are.
        of: whose settings they are, for the message; with a space in front.
    """
    return "; ".join(_complaint(item, known, of) for item in error.errors())


def _complaint(item: dict, known: Iterable[str], of: str) -> str:
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" and not isinstance(item["input"], bool | int | float | str):
        return message  # of several settings together: it names them
    if message.startswith("unknown "):
        return message  # a registry's, which names the value
    where = [str(part) for part in item["loc"]]
    if item["type"] == "missing":
        return f"{where[-1]} is missing"
    if item["type"] == "extra_forbidden":
        return f"{where[-1]}={short(item['input'])}: no such setting{of}{did_you_mean(where[-1], known)}"
    # A list's index is not a name.
    name = next((part for part in reversed(where) if not part.isdigit()), where[0])
    return f"{name}={short(item['input'])}: {message[0].lower()}{message[1:]}"


def first_line(error: BaseException | str) -> str:
    """What an error says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def short(value: object) -> str:
    """A value as a message shows it: on one line, cut off where it gets long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def printable(text: object) -> str:
    """Foreign text, or a path, on one line as a terminal may show it: what steers a terminal is spelled out."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text))


def printable_lines(text: str) -> str:
    """`printable` of each line of a text."""
    return "\n".join(printable(line) for line in text.expandtabs().split("\n"))


def at_root() -> None:
    """Make the project's folder the working directory, so that a notebook's relative paths mean the same anywhere."""
    os.chdir(Path(__file__).resolve().parents[1])


def enough_files() -> None:
    """Let this process and its children have as many files open as they may.

    Raises:
        RunError: that is too few for a notebook's kernel and its workers.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < LEAST_FILES:
        raise RunError(f"this shell allows {most} open files (ulimit -n): at least {LEAST_FILES} are needed")


def seeds(runs: int) -> range:
    """Seeds 1 to `runs`, of which there are at most a thousand: every run is described before the first begins.

    Raises:
        RunError: `runs` is not a whole number of that size.
    """
    return range(1, whole("runs", runs, most=1000) + 1)


def whole(name: str, value: object, most: int = 10**9) -> int:
    """A parameter's value, when it is a whole number from 1 to `most`.

    Raises:
        RunError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise RunError(f"{name}={short(value)}: a whole number from 1 to {most:,} is needed")
    return value


def positive(name: str, value: object) -> float:
    """A parameter's value, when it is a number above 0 that can be added to others without an overflow.

    Raises:
        RunError: it is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 < value <= LARGEST):
        raise RunError(f"{name}={short(value)}: a number above 0 is needed, at most {LARGEST:g}")
    return value


def check_file(name: str, value: object) -> None:
    """Raise RunError when a parameter's value is not the path of a file."""
    try:
        found = isinstance(value, str | Path) and Path(value).is_file()
    except (OSError, ValueError):  # no path at all
        found = False
    if not found:
        raise RunError(f"{name}={short(value)}: no such file")


def check_folder(name: str, value: object) -> None:
    """Raise RunError when a parameter's value is not a folder that can be written, or made."""
    try:
        path = Path(value)
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        good = bool(value) and nearest.is_dir() and os.access(nearest, os.W_OK)
    except (OSError, ValueError, TypeError):
        good = False
    if not good:
        raise RunError(f"{name}={short(value)}: a folder that can be written is needed")
