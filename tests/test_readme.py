"""The texts: the code of the READMEs runs, links lead somewhere, numbers are those of the CSVs."""

import math
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch
from toys import ROOT, every, make_images

from modules.report import formatting
from modules.study import design, documents, parameters
from modules.study.parameters import PUBLISHED

README = (ROOT / "README.md").read_text()
TEXTS = sorted(
    path.relative_to(ROOT)
    for folder in (".", ".github", "benchmarks", "binder", "modules", "notebooks", "studies", PUBLISHED, "tests")
    for path in (ROOT / folder).glob("*.md")
)


def test_every_file_that_a_text_or_a_docstring_names_is_there():
    named = r"(?<![\w/.-])(?:benchmarks|modules|notebooks|studies|tests)/[\w/.-]+\.(?:py|yaml|ipynb)\b"
    texts = [
        *TEXTS,
        *(path.relative_to(ROOT) for folder in ("benchmarks", "modules") for path in (ROOT / folder).rglob("*.py")),
    ]
    found = {
        (str(path), name) for path in texts for name in re.findall(named, (ROOT / path).read_text(encoding="utf-8"))
    }
    assert len(found) > 10
    assert {each for each in found if not (ROOT / each[1]).exists()} == set()


def test_readme_has_its_commands_and_a_picture():
    for begin in ("    make reproduce", "    make test", "!["):
        assert any(line.startswith(begin) for line in README.splitlines()), begin


@pytest.mark.filterwarnings("ignore:a scheduler that was made before")  # by the snippet before: one optimizer for all
def test_snippets_run_and_learn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results").symlink_to(ROOT / "results")
    names: dict = {"__name__": "snippets"}
    for path in (Path("modules/README.md"), Path("README.md")):
        for code in re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL):
            if "model" in names:  # each snippet's reader has one that is not trained yet
                names["model"].apply(
                    lambda module: module.reset_parameters() if list(module.parameters(False)) else None
                )
            exec(compile(code, str(path), "exec"), names)
    assert len(names["lr"]) == len(names["acc"]) == len(names["loader"])
    pattern = r"lowest training loss at (\S+)\nbase_lr (\S+), max_lr (\S+)\naccuracy (\S+)"
    least, base_lr, max_lr, accuracy = map(float, re.search(pattern, capsys.readouterr().out).groups())
    assert 1e-5 < base_lr < max_lr < 1
    assert max_lr < least < 10
    assert accuracy > 0.75
    assert 0 < names["rate"] < 10
    assert Path("logs/digits.pdf").read_bytes().startswith(b"%PDF")
    assert names["stairs"].get_last_lr() == [0.1]
    images, labels = names["read_noise"](tmp_path)[0][0]
    assert names["perceptron"](1, 32, 10)(torch.from_numpy(images).float()).shape == (len(labels), 10)


def test_the_command_for_your_images_is_accepted(tmp_path):
    """And asks for the bounds of their own range test, and for nobody's numbers beside theirs."""
    images = make_images(tmp_path / "images", count=60, size=32)
    text = (ROOT / "studies" / "README.md").read_text()
    command = re.search(r'STUDY=cifar10 RESULTS=results/mine \\\n\s+PARAMS="(.*)"', text)[1]
    overrides = dict(re.findall(r"-p (\S+) (\S+)", command))
    plan = parameters.parameters("cifar10", tmp_path / "results", {**overrides, "data_dir": str(images)})
    design.check(plan)
    asked = plan["03_headline_experiment"]
    assert (asked["dataset"], asked["base_lr"], asked["max_lr"]) == ("images", None, None)
    assert plan["04_headline_figures"]["reference"] is None


def test_the_tests_that_texts_name_exist():
    made = set(
        re.findall(r"^def (test_\w+)", "".join(p.read_text() for p in (ROOT / "tests").rglob("*.py")), re.MULTILINE)
    )
    named = {name for path in TEXTS for name in re.findall(r"`[^`]*\b(test_\w+_\w+)`", (ROOT / path).read_text())}
    assert len(named) > 30
    assert named <= made, named - made


COMMAND = re.compile(r"\bmake (reproduce|best-lr)((?: +[A-Z]+=(?:\"[^\"]*\"|[^\s`\"]+))+)")


def test_the_commands_of_the_texts_are_accepted(tmp_path):
    """A study or a parameter that has another name now is noticed."""
    asked = 0
    for path in TEXTS:
        for command, settings in COMMAND.findall((ROOT / path).read_text().replace("\\\n", " ")):
            given = dict(pair.split("=", 1) for pair in shlex.split(settings))
            words = shlex.split(given.get("PARAMS", ""))
            study = given.get("STUDY", "digits" if command == "reproduce" else "best-lr")
            if study not in ("mine.yaml", "..."):
                overrides = dict(zip(words[1::3], words[2::3], strict=True))
                assert parameters.parameters(study, tmp_path, overrides)
                asked += 1
    assert asked > 10


def test_numbers_are_those_of_the_published_results():
    texts = {path: (ROOT / path).read_text() for path in documents.documents()}
    assert len(texts) > 10
    assert documents.updated() == texts


def test_every_text_with_a_number_between_markers_is_found():
    assert {path for path in TEXTS if "<!-- end -->" in (ROOT / path).read_text()} <= set(documents.documents())


def test_no_line_of_prose_begins_with_a_marker():
    """Markdown would end the paragraph there, and show the rest of the line as it is written."""
    texts = {path: documents.WHOLE.sub("", (ROOT / path).read_text()) for path in documents.documents()}
    assert {
        path: found for path, text in texts.items() if (found := re.findall(r"^ *<!--.*", text, re.MULTILINE))
    } == {}


START = "<!-- fashion-mnist/headline crossing_iteration triangular -->"
MARKER = f"about {START}9<!-- end --> iterations"


def test_a_wrong_number_is_noticed_and_put_right():
    assert documents.filled(MARKER) == MARKER.replace(">9<", ">1,800 [1,600, 2,400]<")


def test_a_marker_may_ask_for_a_part_of_a_number():
    parts = {"value": "1,800", "interval": "[1,600, 2,400]", "low": "1,600", "high": "2,400", "runs": "5"}
    asked = {form: MARKER.replace("triangular -->", f"triangular : {form} -->") for form in parts}
    filled = {form: documents.filled(text) for form, text in asked.items()}
    assert filled == {form: asked[form].replace(">9<", f">{text}<") for form, text in parts.items()}


def test_a_marker_may_ask_for_a_note_and_for_a_gap():
    notes = "<!-- cifar10-jpeg/policies_notes accuracy_difference triangular2 - fixed pooled --><!-- end -->"
    assert "-0.95 points [-1.47, -0.42]" in documents.filled(notes)
    gap = "<!-- cifar10-jpeg/policies_reference final_accuracy exp_range : gap --><!-- end -->"
    assert "+3.08 points" in documents.filled(gap)


def test_a_table_of_regrets_has_a_way_a_row_and_its_worst_task():
    regrets = dict.fromkeys(("valley constant", "valley linear", "steep linear", "valley linear digits"), 0.02)
    regrets |= {"valley constant mnist": 0.03, "steep linear mnist": 0.01}
    regrets |= {"race linear": 0.001, "race constant": 0.003, "race cycle": -0.001}
    table = pd.DataFrame({"quantity": "regret", "policy": list(regrets), "value": list(regrets.values())})
    made = formatting.by_schedule(table.assign(low=math.nan, high=math.nan))
    assert made.to_numpy().tolist() == [
        ["race", "0.30", "0.10", "-0.10", ""],
        ["steep", "", "2.00", "", "1.00 (mnist, linear)"],
        ["valley", "2.00", "2.00", "", "3.00 (mnist, constant)"],
    ]


@every(
    ("old", "new", "message"),
    [
        ("fashion-mnist/", "nosuch/", "results/published/nosuch/tables/headline.csv, which does not exist"),
        ("/headline", "/headlines", "headlines.csv, which does not exist"),
        ("crossing_iteration", "crossing", "headline.csv has no row crossing triangular"),
        ("triangular", "square", "headline.csv has no row crossing_iteration square"),
        ("triangular -->", "triangular : width -->", "crossing_iteration triangular has no width"),
        ("crossing_iteration triangular", "iterations fixed : low", "iterations fixed has no low"),
        (
            "<!-- fashion-mnist/headline crossing_iteration triangular -->",
            "<!-- cifar10-jpeg:x:y -->",
            "no marker that can",
        ),
        (START + "9", "<!-- headline:digts -->\n9\n", "digts/tables/"),
        (START + "9", "<!-- speed:alex -->\n9\n", "no network alex"),
    ],
)
def test_a_marker_that_names_nothing_is_an_error(old, new, message):
    with pytest.raises(documents.DocumentError, match=message):
        documents.filled(MARKER.replace(old, new))


def test_every_published_note_can_be_quoted():
    for path in (ROOT / PUBLISHED).glob("*/tables/*_notes.csv"):
        for row in pd.read_csv(path).itertuples():
            if str(row.note).startswith("not in these runs"):  # a neighbouring study is not published yet
                continue
            asked = f"<!-- {path.parts[-3]}/{path.stem} {row.quantity} {row.policy} --><!-- end -->"
            assert documents.filled(asked) != asked


def test_an_error_names_its_document(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(MARKER.replace("triangular", "square"))
    monkeypatch.setattr(documents, "FOLDERS", (tmp_path,))
    with pytest.raises(documents.DocumentError, match="README.md: .*no row crossing_iteration square"):
        documents.updated()


def test_a_note_without_a_number_cannot_be_quoted(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "notes.csv").write_text("quantity,policy,value,low,high\naccuracy,lost,,,\n")
    with pytest.raises(documents.DocumentError, match="accuracy lost has no value here"):
        documents.filled("<!-- mine/notes accuracy lost --><!-- end -->", {"mine": tmp_path})


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    lost = []
    for path in TEXTS:
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / path).read_text()):
            file, _, heading = target.partition("#")
            found = (ROOT / path.parent / file) if file else ROOT / path
            if not found.exists() or (heading and heading not in anchors(found.read_text())):
                lost.append(f"{path}: {target}")
    assert lost == []


def test_links_between_published_notebooks_lead_somewhere():
    links = [
        (path, target)
        for path in (ROOT / PUBLISHED).glob("*/notebooks/*.ipynb")
        for target in re.findall(r"\]\(([\w./-]+\.ipynb)\)", path.read_text())
    ]
    assert links
    assert [(path.parts[-3], path.stem, target) for path, target in links if not (path.parent / target).exists()] == []
