"""The site: one build of this project's own documents, with results folders of all kinds beside the published ones."""

import base64
import json
import os
import re
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
from nbformat import v4
from toys import ROOT

from modules.study import cli, reproduction, site

# Of Sphinx, about what its extensions use.
pytestmark = [
    pytest.mark.ci,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"),
]

PICTURE = base64.b64encode((ROOT / "images" / "cifar10" / "run.png").read_bytes()).decode()
EVIL = "<script>alert(1)</script>"
FORMULAS = r"""# 1. Formulas

**Question.** Does *this* look right, as [the next](02_next.ipynb) does?

With $x = 1 / \text{step_size}$, see [the next](02_next.ipynb), [its part](02_next.ipynb#a-part),
[a lost one](03_no.ipynb), [a secret](../../../../../../../../etc/passwd) or `$CLR_DATA_DIR` of
[`the source`](../../../notebooks/01_schedulers.ipynb):

$$\left\lfloor 1 + \frac{t}{2} \right\rfloor$$"""
HOSTILE = f"""# 9. {EVIL}

**Question.** {EVIL} <img src=x onerror=alert(1)>

```{{raw}} html
{EVIL}
```

```{{include}} ../../../../../../../../etc/passwd
```

{EVIL} {{raw}}`x` $\\nosuchcommand{{1}}$ $\\frac{{1}}{{$ $\\left( 1$
"""


def notebook(text, outputs=(), **metadata):
    code = v4.new_code_cell("answer = 1 < 2", outputs=list(outputs), metadata=metadata)
    return v4.new_notebook(cells=[v4.new_markdown_cell(text), v4.new_markdown_cell("## A part"), code])


def shown(kind, data, **metadata):
    return v4.new_output("display_data", {kind: data}, metadata=metadata)


NOTEBOOKS = {
    "mine/01_formulas": notebook(
        FORMULAS,
        [
            shown("image/png", PICTURE),
            shown("text/html", "<style>td {color: red}</style><table class='dataframe'><tr><td>7</td></tr></table>"),
            v4.new_output("stream", text="two\n"),
        ],
        tags=["hide-input"],
    ),
    "mine/02_next": notebook(
        "# 2. Next", [shown("image/png", PICTURE, **{"image/png": {"alt": "A saw-tooth & more"}})]
    ),
    f"{EVIL.replace('/', '~')} & co/09_hostile": notebook(
        HOSTILE,
        [
            shown(
                "text/html", f"{EVIL}<a href='javascript:alert(1)'>go</a><img src=x onerror=alert(1)><table></table>"
            ),
            shown("text/markdown", f"{EVIL} **bold**"),
            shown("application/javascript", "alert(1)"),
        ],
    ),
    "mine_/a b": notebook("# Same name, but for a space"),
    "mine_/a_b": notebook("# Same name"),
}
DAMAGED = {
    "01_empty": "",
    "02_no_json": "{",
    "03_list": "[]",
    "04_other_schema": json.dumps(
        {"cells": [{"cell_type": "markdown"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    ),
    "05_no_title": nbformat.writes(notebook("no title")),
    "06_no_picture": nbformat.writes(notebook("# 6", [shown("image/png", "AAAA")])),
    "07_no_base64": nbformat.writes(notebook("# 7", [shown("image/png", "A")])),
    "08_no_cells": nbformat.writes(v4.new_notebook()),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The built site, and what was said of it."""
    folder = tmp_path_factory.mktemp("project")
    for path in ROOT.iterdir():
        if path.name not in ("results", "site", "data") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    (folder / "results").mkdir()
    (folder / "results" / "published").symlink_to(ROOT / "results" / "published")
    for name, content in NOTEBOOKS.items():
        path = folder / "results" / f"{name}.ipynb"
        path = path.parent / "notebooks" / path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(content, path)
    for name, text in DAMAGED.items():
        (folder / "results" / "mine" / "notebooks" / f"{name}.ipynb").write_text(text)
    os.mkfifo(folder / "results" / "mine" / "notebooks" / "10_pipe.ipynb")
    (folder / "site").mkdir()
    (folder / "site" / "old.html").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GITHUB_REPOSITORY", "somebody/clr")
        index, told = site.build()
    pages = {str(path.relative_to(folder / "site")): path.read_text() for path in (folder / "site").rglob("*.html")}
    return SimpleNamespace(folder=folder / "site", index=index, told=told, pages=pages)


class Tags(HTMLParser):
    """All tags of a page with their attributes, and its ids."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
        self.ids = {attributes.get("id") for _, attributes in self.found}

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def own(pages):
    return {name: page for name, page in pages.items() if not name.startswith("_static")}


def test_of_this_projects_own_pages_nothing_is_said_and_each_damaged_notebook_has_a_line(made):
    assert made.index == Path("site/index.html")
    assert not [line for line in made.told if "published" in line or "README" in line or "api/" in line], made.told
    for name in (*DAMAGED, "10_pipe"):
        start = f"results/mine/notebooks/{name}.ipynb is left out: "
        assert len([line for line in made.told if line.startswith(start)]) == 1, start
    others = [line for line in made.told if "is left out" not in line]
    assert others
    assert all("09_hostile" in line for line in others), others
    assert any("a formula cannot be typeset: MathError" in line for line in others)
    assert "old.html" not in made.pages


def test_every_page_can_be_reached_in_reading_order(made):
    links = [attributes for tag, attributes in Tags(made.pages["index.html"]).found if tag == "a"]
    links = [urlsplit(each.get("href", "")).path for each in links if "reference" in each.get("class", "")]
    order = list(dict.fromkeys(links))
    expected = (
        "results/published/README.html",
        "results/published/digits.html",
        "results/published/tournament.html",
        "results/published/claims.html",
        "notebooks.html",
        "results/published/digits/index.html",
        "results/published/cifar10/index.html",
        "results/published/fashion-mnist/index.html",
        "results/mine/index.html",
        "modules/README.html",
        "api/schedulers.html",
        "api/describe.html",
        "api/range_test.html",
        "api/find_rate.html",
        "api/rules.html",
        "studies/README.html",
        "CONTRIBUTING.html",
    )
    sidebar = order[order.index("results/published/README.html") :]
    assert [name for name in sidebar if name in expected][: len(expected)] == list(expected)
    study = made.pages["results/published/digits/index.html"]
    assert study.index("0. What a learning rate does") < study.index("1. Learning rate policies")
    assert "8. What does a cyclical rate buy: accuracy, forgiveness, a model at any time?" in study


def test_links_lead_to_pages_and_places_that_are_there(made):
    ids = {name: Tags(page).ids for name, page in own(made.pages).items()}
    lost = []
    for name, page in own(made.pages).items():
        for _, attributes in Tags(page).found:
            for link in (attributes.get("href"), attributes.get("src")):
                parts = urlsplit(link or "")
                if not link or parts.scheme or parts.path.endswith((".js", ".css")):
                    continue
                target = os.path.normpath(Path(name).parent / unquote(parts.path)) if parts.path else name
                known = ids.get(target, {unquote(parts.fragment)})
                if not (made.folder / target).is_file() or (parts.fragment and unquote(parts.fragment) not in known):
                    lost.append((name, link))
    assert [each for each in lost if each[1] != "#"] == []


def test_no_page_loads_anything_from_elsewhere(made):
    for name, page in own(made.pages).items():
        for tag, attributes in Tags(page).found:
            if tag in ("script", "img", "link", "iframe", "source"):
                link = attributes.get("src") or attributes.get("href") or ""
                assert not urlsplit(link).netloc, (name, link)
    for style in made.folder.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?https?:", style.read_text()), style


def test_formulas_are_typeset_and_code_is_left_alone(made):
    page = made.pages["results/mine/01_formulas.html"]
    assert page.count("<math ") == 2
    assert "<mfrac>" in page
    assert "$$" not in page
    assert "$CLR_DATA_DIR" in page
    assert made.pages["results/published/digits/01_schedulers.html"].count("<math ") >= 7
    assert not any("$$" in page for page in own(made.pages).values())


def test_a_notebook_s_links_lead_to_pages_its_source_is_there_and_what_is_lost_is_text(made):
    page = made.pages["results/mine/01_formulas.html"]
    assert 'href="02_next.html"' in page
    assert 'href="02_next.html#a-part"' in page
    assert re.search(r"_downloads/\w+/01_schedulers.ipynb", page)
    assert "a lost one, a secret or" in " ".join(page.split())
    assert "etc/passwd" not in page


def test_pictures_have_a_text_and_tables_of_pandas_stay(made):
    assert 'alt="Figure: A part"' in made.pages["results/mine/01_formulas.html"]
    assert 'alt="A saw-tooth &amp; more"' in made.pages["results/mine/02_next.html"]
    for name, page in own(made.pages).items():
        pictures = [attributes for tag, attributes in Tags(page).found if tag == "img"]
        assert all(each.get("alt") and not each["alt"].endswith(".png") for each in pictures), name
    page = made.pages["results/mine/01_formulas.html"]
    assert re.search(r'<table class="dataframe.*?<td>7</td>', page, re.DOTALL)
    assert "color: red" not in page
    assert "hide-input" in page


def test_nothing_in_a_stranger_s_notebook_acts_or_reads_a_file(made):
    place = next(name for name in made.pages if name.endswith("09_hostile.html"))
    assert re.fullmatch(r"[\w/-]+\.html", place)
    for name in (place, "notebooks.html", "index.html", str(Path(place).with_name("index.html"))):
        page = made.pages[name]
        assert not re.search(r"<script>\s*alert|onerror=alert\(1\)>|href=.javascript", page), name
        assert "root:" not in page
        assert "&lt;script&gt;alert(1)&lt;" in page or name == "index.html"
    assert "<strong>bold</strong>" in made.pages[place]
    assert "<img src=x" not in made.pages[place]


def test_the_api_is_read_from_the_docstrings(made):
    for name, part in (
        ("schedulers", "modules.schedulers.CyclicLR"),
        ("describe", "modules.describe.describe"),
        ("range_test", "modules.range_test.range_test"),
        ("find_rate", "modules.rate_finders.find_rate"),
        ("find_rate", "modules.rate_finders.FoundRate"),
        ("rules", "modules.rate_finders.rules.suggest_rate"),
    ):
        assert f'id="{part}"' in made.pages[f"api/{name}.html"]
    assert "upper bound of the cycle" in made.pages["api/schedulers.html"]


def test_pages_are_searched_copied_from_and_read_in_the_dark_on_a_phone(made):
    page = made.pages["index.html"]
    assert 'name="viewport"' in page
    assert "theme-switch" in page
    assert "copybutton.js" in page
    assert "https://github.com/somebody/clr" in page
    index = (made.folder / "searchindex.js").read_text()
    assert "CyclicLR" in index or "cycliclr" in index
    assert "results/mine/01_formulas" in index


def test_a_file_that_a_document_names_comes_along(made):
    assert re.search(r'href="\.\./_downloads/\w+/policies\.py"', made.pages["modules/README.html"])


def test_without_its_packages_the_site_is_refused_in_a_line_and_the_old_one_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "at_root", lambda: monkeypatch.chdir(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "sphinx_book_theme", None)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("old")
    assert cli.main(["html"]) == 2
    assert capsys.readouterr().err.startswith("error: make html needs sphinx_book_theme: pip install -e '.[docs]'")
    assert (tmp_path / "site" / "index.html").read_text() == "old"


@pytest.mark.parametrize(("told", "status"), [([], 0), (["x is left out"], 1)])
def test_strict_fails_where_something_cannot_be_shown(monkeypatch, capsys, told, status):
    monkeypatch.setattr(site, "build", lambda: (Path("site/index.html"), told))
    assert cli.main(["html"]) == 0
    assert cli.main(["html", "--strict"]) == status
    assert capsys.readouterr().out.splitlines()[-1] == "site/index.html"


def test_one_notebook_is_a_page_in_one_file(tmp_path):
    place = tmp_path / "my rate" / "notebooks" / "10_mine.ipynb"
    place.parent.mkdir(parents=True)
    nbformat.write(notebook(f"# 10. {EVIL}", [shown("image/png", PICTURE)], tags=["hide-input"]), place)
    path = site.page(place)
    assert path == tmp_path / "my rate" / "10_mine.html"
    text = path.read_text()
    assert f"data:image/png;base64,{PICTURE[:40]}" in text
    assert 'alt="Figure: A part"' in text
    assert "answer" not in text
    assert "<script" not in text
    assert "<link" not in text
    place.write_text("{")
    with pytest.raises(site.SiteError, match="10_mine.ipynb: NotJSONError"):
        site.page(place)


@pytest.mark.parametrize(
    ("names", "folder", "said"),
    [
        (["10_mine"], "results/my-rate", "As a web page: results/my-rate/10_mine.html"),
        (["10_mine"], "elsewhere", "As a web page: elsewhere/10_mine.html"),
        (["01_a", "02_b"], "results/mine", "As web pages: make html"),
        (["01_a", "02_b"], "elsewhere", "No web pages: they are made of what lies in results/"),
    ],
)
def test_after_a_study_it_is_said_where_its_pages_are(tmp_path, monkeypatch, capsys, names, folder, said):
    def execute(name, plan, results, *_):
        (results / "notebooks").mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(f"# {name}"), results / "notebooks" / f"{name}.ipynb")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduction, "parameters", lambda *_: dict.fromkeys(names))
    monkeypatch.setattr(reproduction, "check", lambda *_: None)
    monkeypatch.setattr(reproduction, "execute", execute)
    monkeypatch.setattr(reproduction, "shared_cluster", lambda *_: nullcontext())
    monkeypatch.setattr(reproduction, "one_kernel", nullcontext)
    monkeypatch.setattr(reproduction, "counterpart", lambda *_: tmp_path / "none")
    monkeypatch.setattr(reproduction, "compare", lambda *_: pd.DataFrame())
    monkeypatch.setattr(reproduction, "report", lambda *_: "")
    reproduction.reproduce("mine", Path(folder), {})
    assert said in capsys.readouterr().out.splitlines()
    pages = [path.name for path in Path(folder).glob("*.html")]
    assert pages == [f"{name}.html" for name in names if len(names) == 1]
