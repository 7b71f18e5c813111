"""Which Python make uses, and what it says of an environment that is not the lock's."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTER = {"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment of any name in which `import modules` finds this checkout, and that has nothing else."""
    place = tmp_path_factory.mktemp("other-name")
    venv.create(place, symlinks=True)
    library = sysconfig.get_path("purelib", "venv", {"base": str(place)})
    Path(library, "checkout.pth").write_text(f"{ROOT}\n")
    return place


def make(*arguments, first=None, **active):
    """make with the variables of an active environment, and with a folder first on PATH."""
    variables = {name: value for name, value in os.environ.items() if name not in OUTER}
    variables |= {name: str(value) for name, value in active.items()}
    if first:
        variables["PATH"] = f"{first}{os.pathsep}{variables['PATH']}"
    return subprocess.run(["make", *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("variable", ["CONDA_PREFIX", "VIRTUAL_ENV"])
def test_an_active_environment_that_finds_this_checkout_is_used(environment, variable):
    planned = make("--dry-run", "lint", first=environment / "bin", **{variable: environment})
    assert "\npython -m ruff check ." in planned.stdout
    assert ".venv" not in planned.stdout


def test_any_other_environment_is_left_alone(environment, tmp_path):
    shutil.copytree(environment, tmp_path / "strange", symlinks=True)
    for found in (tmp_path / "strange").rglob("checkout.pth"):
        found.unlink()
    planned = make("--dry-run", "lint", first=tmp_path / "strange/bin", CONDA_PREFIX=tmp_path / "strange")
    assert ".venv/bin/python -m ruff check ." in planned.stdout
    # A PYTHONPATH that leads here makes no environment of it.
    planned = make("--dry-run", "lint", first=tmp_path / "strange/bin", PYTHONPATH=ROOT)
    assert ".venv/bin/python -m ruff check ." in planned.stdout


@pytest.mark.parametrize("variable", ["CONDA_PREFIX", "VIRTUAL_ENV"])
def test_another_python_first_on_the_path_is_refused_in_one_line(environment, tmp_path, variable):
    (tmp_path / "python").symlink_to(sys.executable)
    refused = make("env", first=tmp_path, **{variable: environment})
    assert refused.returncode == 2
    said = refused.stderr.splitlines()[0]
    assert said == (
        f"error: the active environment is {environment}, but the first python on PATH is {tmp_path}/python: "
        "activate it again"
    )


def test_an_environment_that_lacks_what_the_study_needs_is_refused_with_what_mends_it(environment):
    refused = make("lint", first=environment / "bin", VIRTUAL_ENV=environment)
    assert refused.returncode == 2
    assert re.match(
        rf"error: {environment} cannot run the study: packaging is missing. "
        rf"To mend it: \S+python -m pip install -r requirements.txt -e .\n",
        refused.stderr,
    )


@pytest.fixture
def asked(tmp_path):
    """What environment.py says of this Python, when requirements.txt and pyproject's dependencies are these."""

    def ask(lock, dependencies=()):
        shutil.copy(ROOT / "environment.py", tmp_path)
        (tmp_path / "requirements.txt").write_text("# a lock\n" + "\n".join(lock))
        (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {list(dependencies)}\n")
        said = subprocess.run([sys.executable, tmp_path / "environment.py"], capture_output=True, text=True)
        return said.returncode, said.stderr

    return ask


def test_a_stale_environment_is_named_in_one_line_and_used(asked):
    torch = metadata.version("torch").split("+")[0]
    status, said = asked(["no-such-package==1.0", "numpy==1.0", f"torch=={torch}"], ["numpy"])
    assert status == 0
    assert f"says: numpy {metadata.version('numpy')}, not 1.0; no-such-package is missing. To mend it: " in said
    assert said.count("\n") == 1


def test_what_the_lock_has_for_other_machines_is_not_missed(asked):
    assert asked(["no-such-package==1 ; sys_platform == 'nowhere'", "nvidia-no-such-package==1"]) == (0, "")


def test_a_package_of_the_project_that_is_too_old_is_refused(asked):
    status, said = asked([], ["numpy>=99"])
    assert status == 1
    assert f"cannot run the study: numpy {metadata.version('numpy')}, not >=99. To mend it: " in said
