"""Has this Python what the study needs? make asks this of an active environment, before every command.

Packages of pyproject.toml that are missing or too old end it with one line. Other differences from requirements.txt are
named in one line, and the command goes on: an environment may have another torch on purpose.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CUDA = ("cuda-", "nvidia-", "triton")  # a CPU build of torch goes without them


def mend() -> str:
    """The command that makes this environment the lock's."""
    if Path(sys.prefix, "conda-meta").exists():
        return f"conda env update --prefix {sys.prefix}"
    return f"{sys.executable} -m pip install -r requirements.txt -e ."


def unmet(lines: list[str]) -> list[str]:
    """Those requirements that are not met here, as `torch 2.13.0, not >=2.14`."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version}, not {str(requirement.specifier).removeprefix('==')}")
    return found


def main() -> int:
    """Print what differs, and how to mend it; the exit status is 1 when the study cannot run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lock = [line for line in lock if not line.startswith("#")]
    needed = project["dependencies"] + project["optional-dependencies"]["study"]
    own = [re.match(r"[\w-]+", line)[0] for line in needed]
    order = {name: place for place, name in enumerate(own)}  # pyproject's: torch is named first
    lock.sort(key=lambda line: order.get(line.split("==")[0], len(own)))
    try:
        lacking = unmet(needed)
        differences = [found for found in unmet(lock) if not (found.startswith(CUDA) and found.endswith("missing"))]
    except ModuleNotFoundError as error:
        lacking = [f"{error.name} is missing"]
    if lacking:
        print(f"error: {sys.prefix} cannot run the study: {shown(lacking)}. To mend it: {mend()}", file=sys.stderr)
        return 1
    if differences:
        print(
            f"{sys.prefix} is not what requirements.txt says: {shown(differences)}. To mend it: {mend()}",
            file=sys.stderr,
        )
    return 0


def shown(found: list[str]) -> str:
    """The first three, and how many more there are."""
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


if __name__ == "__main__":
    sys.exit(main())
