"""The site: pages that need nothing from elsewhere, and the page it opens on."""

import datetime
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from modules.study import pages

ROOT = Path(__file__).resolve().parents[1]
FORMULAS = r"""# 1. Formulas

**Question.** Does *this* look right?

With $x = 1 / \text{step_size}$, see [the next](02_next.ipynb), [a part](02_next.ipynb#part) or `$CLR_DATA_DIR`:

$$\left\lfloor 1 + \frac{t}{2} \right\rfloor$$"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A function that makes the site of notebooks, given by their path in results/ and their first cell."""
    monkeypatch.chdir(tmp_path)

    def make(**notebooks):
        for place, text in notebooks.items():
            study, name = place.split("__")
            folder = tmp_path / "results" / study.replace("published_", "published/") / "notebooks"
            folder.mkdir(parents=True, exist_ok=True)
            picture = v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
            cells = [v4.new_markdown_cell(text), v4.new_code_cell("1 < 2", outputs=[picture])]
            nbformat.write(v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
        return pages.html_pages()

    return make


def test_formulas_are_typeset_links_lead_to_pages_and_nothing_is_loaded(site):
    site(mine__01_formulas=FORMULAS, mine__02_next="# 2. Next")
    page = Path("site/results/mine/01_formulas.html").read_text()
    assert page.count("<math ") == 2
    assert "<mfrac>" in page
    assert "$$" not in page
    assert "<code>$CLR_DATA_DIR</code>" in page
    assert 'href="02_next.html"' in page
    assert 'href="02_next.html#part"' in page
    assert 'src="data:image/png;base64' in page
    assert "<script" not in page
    assert "<link" not in page


def test_every_formula_of_the_notebooks_can_be_typeset(tmp_path, monkeypatch):
    folder = tmp_path / "results" / "mine" / "notebooks"
    folder.mkdir(parents=True)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(path, folder)
    monkeypatch.chdir(tmp_path)
    pages.html_pages()
    text = {path.stem: path.read_text() for path in Path("site/results/mine").glob("*.html")}
    assert len(text) == len(list(folder.glob("*.ipynb")))
    assert text["01_schedulers"].count("<math ") >= 7
    assert not any("$$" in page for page in text.values())


def test_the_site_opens_on_the_headline_and_a_sentence_a_notebook(site):
    published = Path("results/published/toy")
    for part, name in (("figures", "run.png"), ("tables", "headline.csv")):
        (published / part).mkdir(parents=True)
        shutil.copy(ROOT / "results" / "published" / "digits" / part / name, published / part)
    index = site(published_toy__01_formulas=FORMULAS, mine__01_formulas=FORMULAS, mine__02_next="# 2. Next").read_text()
    assert index.index("data:image/png;base64") < index.index("crossing_ratio") < index.index("1. Formulas")
    assert "Does <em>this</em> look right?" in index
    assert index.count("1. Formulas") == 1
    assert '<a href="results/published/toy/01_formulas.html">toy</a>' in index
    assert '<a href="results/mine/01_formulas.html">yours: mine</a>' in index
    assert f"Made on {datetime.date.today():%d %B %Y}" in index
    assert "<script" not in index


def test_without_executed_notebooks_there_is_no_site(site):
    with pytest.raises(pages.PageError, match="no executed notebook"):
        site()


@pytest.mark.parametrize("text", ["", "# 1. Title\n\n$\\left( 1$"])
def test_a_notebook_that_cannot_be_a_page_is_named_and_the_site_stays(site, text):
    index = site(mine__01_formulas=FORMULAS)
    before = index.read_text()
    with pytest.raises(pages.PageError, match=r"results/mine/notebooks/02_bad.ipynb"):
        site(mine__02_bad=text)
    assert index.read_text() == before
