"""Notebooks run through papermill, and made fit to be read elsewhere."""

import os
import re
import tempfile
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import zmq
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_core.utils import run_sync

from modules.checks import first_line
from modules.runs.files import atomic_write
from modules.study.documents import filled, without_markers
from modules.study.parameters import StudyError, read_study, source
from modules.study.terminal import Screen

TABLE = re.compile(r"\bT_[0-9a-f]{5}(?=[_\" ])")  # how pandas names a styled table, in its page's style sheet


class _ThisPython(KernelSpecManager):
    """Kernels of the interpreter that runs this, whatever `python3` names among those that are installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(argv=make_ipkernel_cmd(), display_name="Python 3", language="python")


@contextmanager
def one_kernel() -> Iterator[AsyncKernelManager]:
    """A kernel that runs a study's notebooks one after another: what takes seconds to import is imported once.

    Raises:
        StudyError: it cannot be started.
    """
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=_ThisPython())
    # This checkout goes before any that PYTHONPATH names: a kernel does not look into its folder first, as -m does.
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as profile:  # in place of the user's; no start-up file of theirs is run
        try:
            # Kernels announce themselves on the terminal at the level of a warning, and complain at that of an error
            # when Ctrl-C ends them.
            run_sync(manager.start_kernel)(
                extra_arguments=["--IPKernelApp.log_level=50"],
                env={**os.environ, "IPYTHONDIR": profile, "PYTHONSTARTUP": "", "PYTHONPATH": path},
            )
        except (OSError, RuntimeError) as error:
            raise StudyError(f"no kernel can be started: {first_line(error)}") from error
        try:
            yield manager
        finally:
            run_sync(manager.shutdown_kernel)(now=True)


def execute(
    name: str, plan: dict[str, dict], results: Path, kernel: AsyncKernelManager, screen: Screen | None = None
) -> None:
    """Run one notebook of a plan through papermill into `<results>/notebooks/`, where it appears when it succeeded.

    Args:
        name: the notebook's.
        plan: the parameters of all notebooks of the study, by name.
        results: the results folder.
        kernel: of `one_kernel`; nothing is left in it of the notebook before.
        screen: where it shows what it prints.

    Raises:
        StudyError: a cell failed; the message is the error's first line.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    target = results / "notebooks" / f"{name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}")
    screen = screen or Screen()
    screen.begin(name)
    try:
        _forget(kernel)
    except (RuntimeError, TimeoutError, zmq.ZMQError) as error:
        raise StudyError(f"{name}: its kernel does not answer: {first_line(error)}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            papermill.execute_notebook(
                str(source(name)),
                str(unfinished),
                plan[name],
                kernel_name="python3",
                progress_bar=False,
                stdout_file=screen.out,
                stderr_file=screen.err,
                autosave_cell_every=0,
                km=kernel,
            )
        except papermill.PapermillExecutionError as error:
            why = first_line(error.evalue) if error.evalue.strip() else "without a word (files, processes, memory?)"
            raise StudyError(f"{name}: {error.ename}: {why}") from None
        except DeadKernelError:
            raise StudyError(
                f"{name}: its kernel died (out of memory?): the same command goes on with the rest"
            ) from None
        else:
            executed = tidy(nbformat.read(unfinished, 4), plan)
            link_to_source(executed, name, target.parent)
            atomic_write(target, nbformat.writes(executed) + "\n")
        finally:
            screen.end()
            unfinished.unlink(missing_ok=True)


def _forget(kernel: AsyncKernelManager) -> None:
    """Empty a kernel's namespace and begin its count of cells anew; what is imported stays imported."""

    async def reset() -> None:
        client = kernel.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            await client.execute_interactive("get_ipython().reset()", silent=True, timeout=60)
        finally:
            client.stop_channels()

    run_sync(reset)()


def tidy(notebook: nbformat.NotebookNode, notebooks: Container[str]) -> nbformat.NotebookNode:
    """Leave out of an executed notebook what tells of the machine, and what differs from one execution to the next.

    That is papermill's paths, the progress bar's frames, and the names and addresses drawn anew for cells and tables.

    Args:
        notebook: it is changed.
        notebooks: the names of those that lie beside it; links to others would lead nowhere, and become plain text.
    """

    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    def kept(link: re.Match) -> str:
        return link[0] if link["notebook"] in notebooks else link["text"]

    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[(?P<text>[^]]+)\]\((?P<notebook>\w+)\.ipynb\)", kept, cell.source)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_frame(output)]
            CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)  # in one piece, however it arrived
            for place, output in enumerate(cell.outputs):
                data = output.get("data", {})
                name = f"T_{cell.id}-{place}"
                data.update({kind: _settled(text, name) for kind, text in data.items() if kind.startswith("text/")})
    return notebook


def link_to_source(notebook: nbformat.NotebookNode, name: str, folder: Path) -> None:
    """Where a source notebook leads to its executed copy, let the copy lead to its source.

    Args:
        notebook: an executed one; it is changed.
        name: its name.
        folder: where it lies; from outside the project's folder no link leads here.
    """
    here = Path.cwd().resolve()
    link = f"`{source(name)}`"
    if here in folder.resolve().parents:
        link = f"[{link}]({os.path.relpath(here / source(name), folder.resolve())})"
    for cell in notebook.cells:
        if "copy" in cell.metadata.get("tags", []):
            cell.source = f"This is an executed copy of {link}. To change it and run it, open that."


def _settled(text: str, name: str) -> str:
    """An output's text with a table's own name in place of the one that was drawn, and without an object's address."""
    return re.sub(r" at 0x[0-9a-f]+(?=>)", "", TABLE.sub(name, text))


def _is_frame(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a progress bar's, or nothing."""
    return output.get("name") == "stderr" and ("\r" in output.text or not output.text.strip())


def conclude(study: str, results: Path, source: Path, name: str) -> None:
    """Put what a study concludes at the end of its executed notebooks, in place of what stood there.

    Args:
        study: as for `read_study`; the markers of its conclusions are those of all texts, `this` is the study itself.
        results: the results folder whose notebooks these are.
        source: the results folder it is concluded from, whose tables are read.
        name: what that folder is called when it is published.

    Raises:
        DocumentError: a table has no such row.
    """
    made = read_study(study)
    for notebook in made["notebooks"]:
        path = results / "notebooks" / f"{notebook}.ipynb"
        if not path.exists():  # one notebook alone was asked for
            continue
        content = nbformat.read(path, 4)
        content.cells = [cell for cell in content.cells if "conclusion" not in cell.metadata.get("tags", [])]
        link_to_source(content, notebook, path.parent)
        if conclusion := made["conclusions"].get(notebook):
            text = without_markers(filled(conclusion, {"this": source}))
            text = f"## What was concluded\n\nOf the published runs, `results/published/{name}`:\n\n{text}"
            cell = nbformat.v4.new_markdown_cell(text, id="conclusion", metadata={"tags": ["conclusion"]})
            content.cells.append(cell)
        atomic_write(path, nbformat.writes(content) + "\n")
