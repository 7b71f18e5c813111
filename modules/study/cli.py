"""The command line: checks what it is asked, then loads what that command needs; `--help` loads nothing.

python -m modules reproduce --study digits [--results FOLDER] [--only NOTEBOOK] [--strict] [-p NAME VALUE ...]
python -m modules publish --study digits [--results FOLDER] [--model FILE.py:FUNCTION]
python -m modules verify --results FOLDER [--rows 1] [--data-dir FOLDER] [--model FILE.py:FUNCTION]
python -m modules score --rule FILE.py [--table FILE.csv]
python -m modules html [--strict]
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from modules.checks import at_root, enough_files, printable_lines


def _pairs(given: list[list[str]]) -> dict[str, str]:
    """The `-p` values by name."""
    for pair in given:
        if len(pair) != 2:
            hint = " (with a space, not =)" if "=" in pair[0] else ""
            raise ValueError(f"-p {' '.join(pair)}: a name and a value are needed, as -p 03.runs 2{hint}")
    return dict(given)


def _end_with_the_terminal() -> None:
    """A terminal that is closed ends the study as Ctrl-C does; `nohup` keeps it going."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return

    def end(*arguments: object) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # the terminal takes nothing any more
            os.dup2(nowhere, stream)
        signal.raise_signal(signal.SIGINT)

    signal.signal(hangup, end)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m modules", description="Run a study, check published results, publish, make pages."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("reproduce", help="run a study's notebooks and compare with what is published")
    run.add_argument("--study", required=True, help="a file of studies/, without .yaml; or the path of one")
    run.add_argument("--results", type=Path, help="results folder; by default results/<study>")
    run.add_argument("--strict", action="store_true", help="exit with 1 unless all is the same bytes or equivalent")
    run.add_argument("--only", metavar="NOTEBOOK", help="run this notebook alone, such as 03")
    run.add_argument("-p", nargs="+", action="append", default=[], metavar="NAME VALUE", help="a notebook parameter")
    promote = commands.add_parser("publish", help="promote a results folder to results/published/")
    promote.add_argument("--study", required=True, help="the study it is of")
    promote.add_argument("--results", type=Path, help="a complete results folder; by default results/<study>")
    promote.add_argument("--model", help="the network in a Python file that its notebooks were given, FILE.py:FUNCTION")
    again = commands.add_parser("verify", help="train the first rows of complete runs again: the same bytes?")
    again.add_argument("--results", type=Path, required=True, help="a run, as FOLDER/NAME, or a folder of runs")
    again.add_argument("--rows", type=int, default=1, help="how many rows of each run")
    again.add_argument("--data-dir", help="where the data lie, if not in data/")
    again.add_argument("--model", help="the network in a Python file that they were trained with, FILE.py:FUNCTION")
    entry = commands.add_parser("score", help="score a rule that reads a rate off a ramp, on the benchmark's ramps")
    entry.add_argument("--rule", type=Path, required=True, help="a Python file with a function rule(lr, loss)")
    entry.add_argument("--table", type=Path, help="the benchmark; by default the published one")
    pages = commands.add_parser("html", help="make the site of documents and executed notebooks in site/")
    pages.add_argument("--strict", action="store_true", help="exit with 1 unless all can be shown as it should")
    options = parser.parse_args(arguments)
    at_root()
    try:
        # Each command's own part: torch alone takes seconds to load.
        if options.command == "reproduce":
            from modules.study.reproduction import reproduce

            enough_files()
            _end_with_the_terminal()
            good = reproduce(options.study, options.results, _pairs(options.p), options.only)
            return int(options.strict and not good)
        elif options.command == "publish":
            from modules.study.publishing import publish

            publish(options.study, options.results or Path("results") / Path(options.study).stem, options.model)
        elif options.command == "verify":
            from modules.study.reproduction import verify_all

            return verify_all(options.results, options.rows, options.data_dir, options.model)
        elif options.command == "score":
            from modules.rate_finders.frozen import PUBLISHED, score

            print(score(options.rule, options.table or PUBLISHED))
        else:
            from modules.study.site import build

            index, told = build()
            print("\n".join([*told, str(index)]))
            return int(options.strict and bool(told))
    except OSError as error:
        print(printable_lines(f"error: {error.filename or 'a file'}: {error.strerror or error}"), file=sys.stderr)
        return 2
    except ValueError as error:
        print(printable_lines(f"error: {error}"), file=sys.stderr)
        return 2
    return 0
