"""The executed notebooks as web pages."""

import re
import shutil
from pathlib import Path

import nbformat

SITE = Path("site")


class PageError(ValueError):
    """Nothing to convert, or what cannot be; the message is one line for the user."""


def _self_contained(body: str) -> str:
    """Point links between notebooks at their pages, and drop the scripts that the exporter was told not to load."""
    body = re.sub(r'href="([\w./-]+)\.ipynb"', r'href="\1.html"', body)
    return re.sub(r'<script src="">\s*</script>', "", body)


def html() -> Path:
    """Convert every executed notebook under `results/` to a self-contained page in `site/`, with an index.

    Returns:
        The index.

    Raises:
        PageError: there is no executed notebook, or one cannot be read; the pages stay as they were.
    """
    from nbconvert import HTMLExporter

    found = sorted(Path("results").glob("published/*/notebooks/*.ipynb")) + sorted(
        path for path in Path("results").glob("*/notebooks/*.ipynb")
    )
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise PageError("no executed notebook in results/: run make reproduce first")
    exporter = HTMLExporter(
        template_name="lab",
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        mathjax_url="",
        require_js_url="",
        jquery_url="",
        mermaid_js_url="",
    )
    written: dict[Path, str] = {}
    groups: dict[str, list[str]] = {}
    for path in found:
        try:
            notebook = nbformat.read(path, 4)
            texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
            title = texts[0].splitlines()[0].lstrip("# ")
        except (OSError, ValueError, IndexError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
            raise PageError(f"{path} is no notebook that starts with a title ({type(error).__name__})") from error
        group = str(path.parent.parent)
        page = Path(group) / f"{path.stem}.html"
        body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": f"{title} - {path.parent.parent.name}"}})
        written[page] = _self_contained(body)
        groups.setdefault(group, []).append(f'<li><a href="{page}">{title}</a></li>')
    sections = "".join(f"<h2>{group}</h2><ul>{''.join(items)}</ul>" for group, items in groups.items())
    shutil.rmtree(SITE, ignore_errors=True)
    for page, body in written.items():
        (SITE / page).parent.mkdir(parents=True, exist_ok=True)
        (SITE / page).write_text(body)
    (SITE / "index.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Cyclical learning rates</title>'
        "<style>body{font:16px/1.5 sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}</style>"
        f"<h1>Cyclical learning rates: executed notebooks</h1>{sections}</html>\n"
    )
    return SITE / "index.html"
