"""Which Python make uses, and what it says of an environment that is not the lock's."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    """What environment.py says of this Python, when requirements.txt and what pyproject asks for are these."""

    def ask(lock, dependencies=(), study=()):
        shutil.copy(ROOT / "environment.py", tmp_path)
        (tmp_path / "requirements.txt").write_text("# a lock\n" + "\n".join(lock))
        (tmp_path / "pyproject.toml").write_text(
            f"[project]\ndependencies = {list(dependencies)}\noptional-dependencies.study = {list(study)}\n"
        )
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


@pytest.mark.parametrize("where", ["dependencies", "study"])
def test_a_package_of_the_project_that_is_too_old_is_refused(asked, where):
    status, said = asked([], **{where: ["numpy>=99"]})
    assert status == 1
    assert f"cannot run the study: numpy {metadata.version('numpy')}, not >=99. To mend it: " in said


#: Python code that finds none of these packages any more.
REFUSE = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *where):
        return None if name.partition(".")[0] in {names!r} else self.finder.find_spec(name, *where)
sys.meta_path[:] = map(Without, sys.meta_path)
"""
PARTS = """
import clr_study
import torch
assert all(hasattr(clr_study, name) for name in clr_study.__all__)
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(300, 8, generator=generator)
labels = (inputs @ torch.randn(8, 3, generator=generator)).argmax(1)
batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), 30, generator=generator)
model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
loss = torch.nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
curve = clr_study.range_test(model, optimizer, loss, batches)
assert clr_study.suggest_rate(curve.lr, curve.train_loss, "linear") > 0
found = clr_study.find_rate(model, optimizer, loss, batches, list(batches), iterations=500, schedule="linear")
found.figure()
clr_study.apply_rate(optimizer, found.rate)
cycle = clr_study.CyclicLR(optimizer, 0.01, 0.1, 20)
clr_study.describe(cycle, optimizer, 100).figure()
print(sorted(name for name in sys.modules if name.startswith("modules.")))
"""


def not_brought(requirements):
    """What can be imported here, and is in no package that these requirements bring."""
    wanted, brought = [Requirement(each) for each in requirements], set()
    while wanted:
        name = canonicalize_name(wanted.pop().name)
        if name not in brought:
            brought.add(name)
            with suppress(metadata.PackageNotFoundError):  # it is for other machines
                needs = map(Requirement, metadata.requires(name) or [])
                wanted += [each for each in needs if not each.marker or each.marker.evaluate({"extra": ""})]
    packages = metadata.packages_distributions().items()
    return {
        name
        for name, owners in packages
        if not brought.intersection(map(canonicalize_name, owners)) and name not in ("modules", "clr_study")
    }


@pytest.fixture(scope="module")
def small():
    """A function that runs code where nothing but what `pip install .` brings can be imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    refuse = REFUSE.format(names=not_brought(project["dependencies"]))
    assert all(f"'{name}'" in refuse for name in ("dask", "pydantic", "seaborn", "torchvision", "IPython"))

    def run(code, folder):
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
        asked = [sys.executable, "-c", refuse + code]
        return subprocess.run(asked, cwd=folder, env=variables, capture_output=True, text=True)

    return run


@pytest.mark.ci
def test_the_parts_need_none_of_the_studys_packages_and_stand_beside_a_folder_called_modules(small, tmp_path):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "__init__.py").touch()
    ran = small(PARTS, tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


@pytest.mark.ci
def test_the_study_without_its_packages_says_in_one_line_what_brings_them(small, tmp_path):
    code = (
        "sys.argv[1:] = ['verify', '--results', 'nowhere']; import runpy; runpy.run_module('modules', {}, '__main__')"
    )
    ran = small(code, tmp_path)
    assert ran.returncode == 2
    assert re.fullmatch(r"error: the study needs \w+: pip install -e '.\[study\]'\n", ran.stderr)
