"""The executed notebooks as web pages that need nothing from elsewhere, and the page the site opens on."""

import base64
import datetime
import html
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import TagRemovePreprocessor

from modules.report.formatting import readable

SITE = Path("site")
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}"
    "table{border-collapse:collapse}td,th{text-align:left;padding:.2rem .8rem;border-bottom:1px solid #ddd}"
)


class PageError(ValueError):
    """Nothing to convert, or what cannot be; the message is one line for the user."""


class _Renderer(IPythonRenderer):
    """Markdown with formulas as MathML, which browsers typeset by themselves, and links between pages."""

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return convert(body, display="block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, re.sub(r"^([\w./-]+)\.ipynb\b", r"\1.html", url), title)


class _Exporter(HTMLExporter):
    """nbconvert's exporter with our renderer."""

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(
            escape=False,
            attachments=attachments,
            embed_images=self.embed_images,
            anchor_link_text=self.anchor_link_text,
            **self.lexer_options,
        )
        return MarkdownWithMath(renderer=renderer).render(source)


class Page(NamedTuple):
    """An executed notebook as a page of the site."""

    path: Path  # in the site
    study: str  # as the index names it
    title: str
    question: str  # the sentence it answers
    body: str


def _page(path: Path, exporter: HTMLExporter) -> Page:
    try:
        notebook = nbformat.read(path, 4)
        first = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        title = first.splitlines()[0].lstrip("# ")
    except (
        OSError,
        ValueError,
        IndexError,
        StopIteration,
        nbformat.reader.NotJSONError,
        nbformat.ValidationError,
    ) as error:
        raise PageError(f"{path} is no notebook that starts with a title ({type(error).__name__})") from error
    asked = re.search(r"\*\*Question\.\*\*(.*?)(?:\n\n|$)", first, re.DOTALL)
    results = path.parent.parent
    try:
        body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": f"{title} - {results.name}"}})
    except Exception as error:  # whatever latex2mathml says of a formula
        raise PageError(f"{path} cannot be made a page ({type(error).__name__}: {error})") from error
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)  # none of them has anything to do here
    study = results.name if results.parent.name == "published" else f"yours: {results.name}"
    return Page(results / f"{path.stem}.html", study, title, asked[1].strip() if asked else "", body)


def _index(pages: list[Page], results: list[Path]) -> str:
    """The page the site opens on: the headline's figure and table, each notebook with its question, and the date."""
    parts = [
        "<h1>Cyclical learning rates: a reproduction study</h1>",
        '<p>Leslie N. Smith, <a href="https://arxiv.org/abs/1506.01186">Cyclical Learning Rates for Training Neural '
        "Networks</a>, run again: several runs a policy, with intervals. Every number is in a CSV; every CSV was "
        "written by the notebooks below.</p>",
    ]
    for folder in results:
        figure, table = folder / "figures" / "run.png", folder / "tables" / "headline.csv"
        if figure.exists() and table.exists():
            picture = base64.b64encode(figure.read_bytes()).decode()
            numbers = readable(pd.read_csv(table)).to_html(index=False, border=0)
            parts.append(f"<h2>The headline: {html.escape(folder.name)}</h2>")
            parts.append(
                f'<p><img alt="Accuracy against iteration" src="data:image/png;base64,{picture}"></p>{numbers}'
            )
            break
    parts.append("<h2>The notebooks</h2>")
    for name in sorted({page.path.stem for page in pages}):
        same = [page for page in pages if page.path.stem == name]
        links = ", ".join(f'<a href="{page.path}">{html.escape(page.study)}</a>' for page in same)
        renderer = MarkdownWithMath(renderer=_Renderer(escape=False))
        parts.append(renderer.render(f"**{same[0].title}** {same[0].question}") + f"<p>Executed: {links}</p>")
    parts.append(f"<p>Made on {datetime.date.today():%d %B %Y}.</p>")
    head = f'<meta charset="utf-8"><title>Cyclical learning rates</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def html_pages() -> Path:
    """Convert every executed notebook under `results/` to a self-contained page in `site/`, with an index.

    Returns:
        The index.

    Raises:
        PageError: there is no executed notebook, or one cannot be read; the pages stay as they were.
    """
    place = Path("results")
    results = sorted(place.glob("published/*")) + sorted(path for path in place.glob("*") if path.name != "published")
    found = [path for folder in results for path in sorted(folder.glob("notebooks/[!.]*.ipynb"))]
    if not found:
        raise PageError("no executed notebook in results/: run make reproduce first")
    exporter = _Exporter(template_name="lab", embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True)
    # A page for who wants the answer alone: notebook 10's. What was asked for stays, in the cell papermill adds.
    exporter.register_preprocessor(TagRemovePreprocessor(remove_input_tags={"hide-input"}), enabled=True)
    pages = [_page(path, exporter) for path in found]
    index = _index(pages, results)
    shutil.rmtree(SITE, ignore_errors=True)
    for page in pages:
        (SITE / page.path).parent.mkdir(parents=True, exist_ok=True)
        (SITE / page.path).write_text(page.body, encoding="utf-8")
    (SITE / "index.html").write_text(index, encoding="utf-8")
    return SITE / "index.html"
