"""The site: documents, executed notebooks and the API as pages with navigation and search, by Sphinx.

What is to be shown is written into a folder of its own, laid out as the project is: a link that leads somewhere on
GitHub leads there on the site, too. Sphinx then makes `site/` from it. Nothing is executed, and no page loads anything
from elsewhere.
"""

import base64
import html
import io
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import bleach
import nbformat
from nbformat import NotebookNode, v4

SITE = Path("site")
PUBLISHED = PurePosixPath("results/published")

#: Published studies that come first; the others follow by name.
FIRST = ("digits", "cifar10")

#: The API's pages: name, title, module.
API = (
    ("schedulers", "Schedulers", "modules.schedulers"),
    ("describe", "What a schedule will do", "modules.describe"),
    ("range_test", "The range test", "modules.range_test"),
    ("find_rate", "A rate by a race, or by a rule", "modules.rate_finders"),
    ("rules", "Each library's rule", "modules.rate_finders.rules"),
)

SETTINGS = {
    "project": "Cyclical learning rates",
    "author": "The clr-study maintainers",
    "html_title": "Cyclical learning rates",
    "language": "en",
    "extensions": ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "modules.study.site"],
    "exclude_patterns": ["notebooks/*.ipynb"],  # sources, to be downloaded; their executed copies are pages
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_render_markdown_format": "myst",
    "myst_enable_extensions": ["dollarmath"],
    "myst_disable_syntax": ["html_block", "html_inline", "myst_role"],  # ours have none, a stranger's notebook might
    "myst_heading_anchors": 4,  # as on GitHub
    "html_math_renderer": "mathml",
    "default_role": "literal",  # a word between backticks in a docstring
    "autodoc_default_options": {"members": True, "no-value": True},
    "autodoc_member_order": "bysource",
    "autodoc_typehints": "description",
    "autodoc_typehints_description_target": "documented",
    "add_module_names": False,
    "toc_object_entries_show_parents": "hide",
    "html_theme": "sphinx_book_theme",
    "html_static_path": ["_static"],
    "html_css_files": ["site.css"],
    "html_copy_source": False,
    "html_domain_indices": False,
    "html_use_index": False,  # the search finds more
    "html_show_sphinx": False,
    "html_show_copyright": False,
}
THEME = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field is in the sidebar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
}
STYLE = """
.bd-header { display: none; }
math { font-size: 1.15em; }
math[display="block"] { margin: 1rem 0; overflow-x: auto; }
.bd-article dl { overflow-wrap: anywhere; }
.cell_output .output { overflow-x: auto; }
.cell_output table { border-collapse: collapse; margin: 0.5rem 0; }
.cell_output table { font-size: 0.85em; }
.cell_output table :is(td, th) {
    padding: 0.2rem 0.5rem; text-align: left; border-bottom: 1px solid var(--pst-color-border);
}
"""

#: nbconvert has no style for code in an output's Markdown.
CODE = ".jp-RenderedMarkdown pre { font-family: monospace; background: #f5f5f5; padding: 0.7em; margin-bottom: 1em; }"

# A Markdown link or picture, or code, which is left alone.
_LINK = re.compile(
    r"^```.*?^```|`[^`\n]+`|(?P<picture>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)", re.DOTALL | re.MULTILINE
)
# The start of a MyST directive. One in a stranger's notebook could include any file, or a script.
_DIRECTIVE = re.compile(r"^(\W*(?:`{3,}|~{3,}|:{3,}))\s*\{.*", re.MULTILINE)
_DROPPED = re.compile(r"<\s*(script|style)\b.*?(<\s*/\s*\1\s*>|$)", re.DOTALL | re.IGNORECASE)
# What a table of pandas is made of; all other HTML of a notebook's outputs is dropped, its text stays.
_TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "div", "p", "br", "b", "i", "strong", "em", "code"}


class SiteError(ValueError):
    """A page or the site cannot be made; the message is one line for the user."""


@dataclass(frozen=True)
class Notebook:
    """An executed notebook that is to be a page.

    Attributes:
        source: its file.
        page: its file in the site's sources.
        title, question: of its first cell; the question is the sentence that it answers, or empty.
        content: what the page shows.
    """

    source: PurePosixPath
    page: PurePosixPath
    title: str
    question: str
    content: NotebookNode

    @property
    def results(self) -> str:
        """The folder of results that it is in; a published one without `results/published/`."""
        return str(self.source.parent.parent).removeprefix(f"{PUBLISHED}/")


def build() -> tuple[Path, list[str]]:
    """Make the site in `site/`; what was there is replaced once the new one is made.

    Returns:
        The page that it opens on, and what could not be shown as it should, a line each.

    Raises:
        SiteError: a package that it needs is missing, or Sphinx failed.
    """
    try:
        import myst_nb  # noqa: F401
        import sphinx_book_theme  # noqa: F401
        import sphinx_copybutton  # noqa: F401
        from sphinx.application import Sphinx
        from sphinx.util.console import nocolor
    except ModuleNotFoundError as error:
        raise SiteError(f"make html needs {error.name}: pip install -e '.[docs]'") from error
    theme = dict(THEME)
    if repository := os.environ.get("GITHUB_REPOSITORY"):  # where the site is published from
        theme |= {"repository_url": f"https://github.com/{repository}", "use_repository_button": True}
    nocolor()
    with tempfile.TemporaryDirectory(prefix="clr-site-") as folder:
        sources, pages, warnings = Path(folder, "sources"), Path(folder, "pages"), io.StringIO()
        told = stage(sources)
        settings = SETTINGS | {"html_theme_options": theme}
        places = dict(srcdir=sources, confdir=None, outdir=pages, doctreedir=Path(folder, "read"))
        try:
            Sphinx(**places, buildername="html", confoverrides=settings, status=None, warning=warnings).build()
        except Exception as error:
            raise SiteError(f"Sphinx failed: {_line(error)}") from error
        told += [line.replace(f"{sources}{os.sep}", "") for line in warnings.getvalue().splitlines() if line.strip()]
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.copytree(pages, SITE)
    return SITE / "index.html", told


def page(notebook: Path) -> Path:
    """An executed notebook as one file that can be passed on, beside its `notebooks/`; the site is not made for it.

    Raises:
        SiteError: it is no notebook that begins with a title.
    """
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import TagRemovePreprocessor

    try:
        content, title, _ = _cleaned(notebook)
    except Exception as error:
        raise SiteError(f"{notebook}: {_line(error)}") from error
    exporter = HTMLExporter(template_name="lab", embed_images=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    # Who wants the answer alone is shown no code; what was asked for stays, in the cell that papermill adds.
    exporter.register_preprocessor(TagRemovePreprocessor(remove_input_tags={"hide-input"}), enabled=True)
    body, _ = exporter.from_notebook_node(content, {"metadata": {"name": title}})
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)  # none of them has anything to do here
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    names = iter([output.metadata["image/png"]["alt"] for output in outputs if "image/png" in output.get("data", {})])
    # nbconvert has no other way to name a picture.
    body = re.sub(r'(?<=alt=")No description[^"]*', lambda found: html.escape(next(names, found[0])), body)
    body = body.replace("</head>", f"<style>{CODE}</style></head>", 1)
    path = notebook.parent.parent / f"{notebook.stem}.html"
    path.write_text(body, encoding="utf-8")
    return path


def stage(folder: Path) -> list[str]:
    """Write the site's sources into a folder; returns what is left out, a line each."""
    texts = [PurePosixPath(text) for text in ("modules/README.md", "studies/README.md", "benchmarks/README.md")]
    texts += [PurePosixPath("CONTRIBUTING.md"), *map(PurePosixPath, sorted(Path(PUBLISHED).glob("*.md")))]
    documents = {text: text for text in texts} | {PurePosixPath("README.md"): PurePosixPath("index.md")}
    notebooks, told = _notebooks()
    places = {PurePosixPath("notebooks"): PurePosixPath("notebooks.md")}
    # Where a document names a notebook, its first executed copy is shown.
    places |= {PurePosixPath("notebooks", each.source.name): each.page for each in reversed(notebooks)}
    places |= documents | {each.source: each.page for each in notebooks}
    for source, there in documents.items():
        text = re.sub(r"<!--.*?-->", "", Path(source).read_text(encoding="utf-8"), flags=re.DOTALL)
        _write(folder / there, _relinked(text, source, there, places, folder))
    originals = {PurePosixPath(path): PurePosixPath(path) for path in Path("notebooks").glob("*.ipynb")}
    for path in originals:
        _write(folder / path, Path(path).read_text(encoding="utf-8"))
    for each in notebooks:
        for cell in each.content.cells:
            if cell.cell_type == "markdown":
                cell.source = _relinked(cell.source, each.source, each.page, places | originals)
        _write(folder / each.page, nbformat.writes(each.content))
    studies: dict[PurePosixPath, list[Notebook]] = {}
    for each in notebooks:
        studies.setdefault(each.page.parent, []).append(each)
    for place, its in studies.items():
        _write(folder / place / "index.md", _study(its))
    _write(folder / "notebooks.md", _overview(notebooks))
    for name, title, module in API:
        _write(folder / "api" / f"{name}.rst", f"{title}\n{'=' * len(title)}\n\n.. automodule:: {module}\n")
    _write(folder / "_static" / "site.css", STYLE)
    with open(folder / "index.md", "a", encoding="utf-8") as index:
        index.write(_navigation([path for path in documents if path.parent == PUBLISHED], list(studies)))
    return told


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _plain(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def _notebooks() -> tuple[list[Notebook], list[str]]:
    """Executed notebooks in reading order, and those that cannot be shown, a line each."""
    published = sorted(Path(PUBLISHED).glob("[!.]*"))
    published.sort(key=lambda path: FIRST.index(path.name) if path.name in FIRST else len(FIRST))
    own = sorted(path for path in Path("results").glob("[!.]*") if path.name != PUBLISHED.name)
    found, told, taken = [], [], set()
    for results in (*published, *own):
        place = _free(PurePosixPath(results), taken)
        for source in sorted(results.glob("notebooks/[!.]*.ipynb"), key=lambda path: path.stem):
            try:
                content, title, question = _cleaned(source)
            except Exception as error:  # whatever is wrong with a file, it costs its own page alone
                told.append(f"{source} is left out: {_line(error)}")
            else:
                there = _free(place / source.stem, taken).with_suffix(".ipynb")
                found.append(Notebook(PurePosixPath(source), there, title, question, content))
    return found, told


def _free(place: PurePosixPath, taken: set[PurePosixPath]) -> PurePosixPath:
    """A place with nothing in its name that means something to Sphinx or a browser; no place is given twice."""
    place = place.with_name(re.sub(r"[^\w-]", "_", place.name))
    while place in taken:
        place = place.with_name(f"{place.name}_")
    taken.add(place)
    return place


def _cleaned(source: Path) -> tuple[NotebookNode, str, str]:
    """What a page shows of a notebook, its title, and the question that it answers; any error says that it is none."""
    if not source.is_file():
        raise SiteError("it is no file")
    notebook = nbformat.reads(source.read_text(encoding="utf-8"), 4)
    nbformat.validate(notebook)
    cells, heading = [], ""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            text = _DIRECTIVE.sub(r"\1", cell.source)
            heading = (re.findall(r"^#+ +(.+)", text, re.MULTILINE) or [heading])[-1]
            cells.append(v4.new_markdown_cell(text, id=f"cell-{index}"))
        elif cell.cell_type == "code":
            pictures = [output.get("metadata", {}).get("image/png", {}) for output in cell.outputs]
            alternative = next((str(each["alt"]) for each in pictures if each.get("alt")), f"Figure: {heading}")
            outputs = [shown for output in cell.outputs if (shown := _output(output, alternative))]
            metadata = {"mystnb": {"image": {"alt": alternative}}}
            metadata["tags"] = [tag for tag in cell.metadata.get("tags", []) if tag == "hide-input"]
            cells.append(v4.new_code_cell(cell.source, id=f"cell-{index}", outputs=outputs, metadata=metadata))
    first = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    title = re.match(r"# +(.+)", first)
    if not title:
        raise SiteError("it does not begin with a title")
    asked = re.search(r"\*\*Question\.\*\*(.*?)(?:\n\n|$)", first, re.DOTALL)
    question = re.sub(r"\[([^\[\]]*)\]\([^()]*\)", r"\1", asked[1]) if asked else ""
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    content = v4.new_notebook(cells=cells, metadata=python)
    return content, title[1].strip(), " ".join(question.split())


def _output(output: NotebookNode, alternative: str) -> NotebookNode | None:
    """An output in the form that says most, with nothing that acts."""
    if output.output_type in ("stream", "error"):
        return output
    data = output.data
    if "image/png" in data:
        if not base64.b64decode(data["image/png"]).startswith(b"\x89PNG"):
            raise SiteError("a picture in it is none")
        metadata = {"image/png": {"alt": alternative}}
        return v4.new_output("display_data", {"image/png": data["image/png"]}, metadata=metadata)
    if "text/html" in data:
        table = bleach.clean(_DROPPED.sub("", data["text/html"]), _TAGS, ["class", "colspan", "rowspan"], strip=True)
        return v4.new_output("display_data", {"text/html": table})
    if "text/markdown" in data:
        return v4.new_output("display_data", {"text/markdown": _DIRECTIVE.sub(r"\1", data["text/markdown"])})
    return v4.new_output("display_data", {"text/plain": data["text/plain"]}) if "text/plain" in data else None


def _relinked(
    text: str,
    source: PurePosixPath,
    there: PurePosixPath,
    places: dict[PurePosixPath, PurePosixPath],
    folder: Path | None = None,
) -> str:
    """Markdown of `source` with links to the site's pages, seen from its page `there`; `places` has pages by file.

    A file that is no page is copied into `folder`, the site's sources. Without it a link to one becomes text.
    """

    def link(found: re.Match) -> str:
        asked = found["target"]
        if asked is None or asked.startswith("#") or re.match(r"\w+:", asked):
            return found[0]
        path, hash_, anchor = asked.partition("#")
        place = PurePosixPath(os.path.normpath(source.parent / path))
        target = places.get(place)
        if target is None and folder is not None and place.parts[0] != ".." and Path(place).is_file():
            target = place
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, folder / place)
        if target is None:
            return found["text"]
        leads = f"{os.path.relpath(target, there.parent)}{hash_}{anchor}"
        if target.parent == PurePosixPath("notebooks"):
            leads = f"path:{leads}"  # for MyST: a file to download, not a page
        return f"{found['picture']}[{found['text']}]({leads})"

    return _LINK.sub(link, text)


def _navigation(findings: list[PurePosixPath], studies: list[PurePosixPath]) -> str:
    """What the sidebar shows, in reading order."""
    text = Path(PUBLISHED, "README.md").read_text(encoding="utf-8")
    order = ["README", *dict.fromkeys(re.findall(r"\]\(([\w-]+)\.md", text))]  # as the findings' own table has them
    findings = sorted(findings, key=lambda path: (order.index(path.stem) if path.stem in order else len(order), path))
    parts = {
        "Findings": [path.with_suffix("") for path in findings],
        "Notebooks, executed": ["notebooks", *(place / "index" for place in studies if place.parent == PUBLISHED)],
        "Yours": [place / "index" for place in studies if place.parent != PUBLISHED],
        "In your own code": ["modules/README", *(f"api/{name}" for name, *_ in API)],
        "To run it": ["studies/README", "benchmarks/README", "CONTRIBUTING"],
    }
    return "".join(_contents(names, f":caption: {caption}\n") for caption, names in parts.items() if names)


def _contents(names: list, caption: str = "") -> str:
    return f"\n\n```{{toctree}}\n:hidden:\n{caption}\n" + "\n".join(map(str, names)) + "\n```\n"


def _study(notebooks: list[Notebook]) -> str:
    """A folder of results: its notebooks, each with its question."""
    entries = [f"**[{_plain(each.title)}]({each.page.name})** {each.question}" for each in notebooks]
    names = [f"{' '.join(each.title.split())} <{each.page.stem}>" for each in notebooks]
    return "\n\n".join([f"# {_plain(notebooks[0].results)}", *entries]) + _contents(names)


def _overview(notebooks: list[Notebook]) -> str:
    """Each notebook with its question, and where it was executed."""
    parts = ["# The notebooks", "A notebook answers one question. Each was executed for one study or more."]
    copies: dict[str, list[Notebook]] = {}
    for each in notebooks:
        copies.setdefault(each.source.stem, []).append(each)
    for _, its in sorted(copies.items()):
        links = ", ".join(f"[{_plain(each.results)}]({each.page})" for each in its)
        parts.append(f"**{_plain(its[0].title)}** {its[0].question}\n\nExecuted: {links}")
    return "\n\n".join(parts)


def setup(app) -> dict:
    """For Sphinx, whose extension this is: formulas as MathML, which browsers typeset by themselves."""
    from docutils import nodes
    from docutils.utils.math.latex2mathml import tex2mathml
    from sphinx.util import logging

    def written(translator, node, block: bool) -> None:
        try:
            translator.body.append(tex2mathml(node.astext(), as_block=block))
        except Exception as error:  # of whatever kind: any text may stand between dollars
            logging.getLogger(__name__).warning("a formula cannot be typeset: %s", _line(error), location=node)
            translator.body.append(f"<code>{translator.encode(node.astext())}</code>")
        raise nodes.SkipNode

    def escaped(app, name, template, context, doctree) -> None:
        if "pagetitle" in context:  # the theme's own, which it writes as it is
            context["pagetitle"] = html.escape(context["pagetitle"])

    app.connect("html-page-context", escaped, priority=900)  # after the theme
    app.add_html_math_renderer("mathml", (partial(written, block=False), None), (partial(written, block=True), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
