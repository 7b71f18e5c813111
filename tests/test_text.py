"""Text is UTF-8 whatever the locale says."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("modules/**/*.py"), *ROOT.glob("benchmarks/*.py")]
#: Calls that read or write text, and how many positional arguments name the encoding, too.
READERS = {"read_text": 1, "write_text": 2, "open": 3}


def without_encoding(source):
    """The lines of a Python text on which text is read or written in the locale's encoding."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in given:
            continue
        if name in READERS and ast.unparse(call.func) not in ("Image.open", "os.open"):
            modes = [*call.args, *given.values()]
            binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value)[:3] for mode in modes)
            if not (name == "open" and binary) and len(call.args) < READERS[name]:
                yield call.lineno
        elif ast.unparse(given.get("text", call)) == "True":
            yield call.lineno


def test_no_text_is_read_or_written_in_the_locales_encoding():
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in without_encoding(path.read_bytes())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    ["path.read_text()", "path.write_text(x)", "open(path)", "path.open('w')", "subprocess.run(command, text=True)"],
)
def test_what_would_be_found(source):
    assert list(without_encoding(source)) == [1]


@pytest.mark.ci
def test_a_run_and_its_report_work_in_a_locale_of_another_alphabet(tmp_path):
    """Files first, then what is printed; the folder's name is none of the locale's."""
    code = """
import sys
sys.path.insert(0, "tests")
from toys import small
from modules.runs.parallel import run_all
from modules.runs.files import RunFiles
run_all([small()], sys.argv[1], workers=1)
print(RunFiles(sys.argv[1], small().name).read()[1]["data"]["label"], ascii(sys.stdout.encoding))
"""
    place = tmp_path / "größer"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, place]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ascii_only}, capture_output=True, check=True)
    assert b"ascii" in done.stdout.lower() or b"ansi" in done.stdout.lower()


@pytest.mark.ci
def test_what_a_terminal_cannot_show_is_escaped(tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "modules", "reproduce", "--study", "größer"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ascii_only}, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: unknown study 'gr")
    assert done.stderr.isascii()
