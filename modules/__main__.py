"""`python -m modules`: the study's command line, with Ctrl-C in one line from the first import on."""

import logging
import sys

# Ctrl-C may end any of asyncio's tasks, at the very end too; it would log their tracebacks around the one line.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
for stream in (sys.stdout, sys.stderr):  # what a terminal's own alphabet lacks is escaped
    stream.reconfigure(errors="backslashreplace")
try:
    from modules.study.cli import main

    status = main()
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] in ("", "modules"):
        raise
    print(f"error: the study needs {error.name}: pip install -e '.[study]'", file=sys.stderr)
    status = 2
except KeyboardInterrupt:
    print("interrupted: finished runs are kept, the same command goes on with the rest", file=sys.stderr)
    status = 130
sys.exit(status)
