"""The notebooks and studies as they lie in the repository, and which values reach which notebook."""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from toys import ROOT, every

from modules.study import design, parameters

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@every("name", NOTEBOOKS)
def test_source_notebooks_have_no_outputs_and_papermill_reads_every_parameter_and_its_comment(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    read = papermill.inspect_notebook(str(path))
    assert set(read) == set(design.declared(name))  # else papermill would warn, and list them
    for parameter in read.values():
        assert len(parameter["help"]) >= 10, parameter


@every("name", NOTEBOOKS)
def test_what_a_notebook_imports_exists(name):
    """Long before the notebook gets there."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.ImportFrom) and node.module.startswith("modules"):
                for one in node.names:
                    if not hasattr(importlib.import_module(node.module), one.name):
                        importlib.import_module(f"{node.module}.{one.name}")


@every("name", NOTEBOOKS)
def test_a_notebook_has_a_design_that_holds_its_parameters_to_their_types(name):
    assert len([cell for cell in design.code_cells(name) if "design" in cell.tags]) == 1
    for key, parameter in design.declared(name).items():
        assert design.typed(key, parameter, parameter.default) == parameter.default
    (key, parameter) = next(iter(design.declared(name).items()))
    with pytest.raises(design.StudyError, match=f"^{key}="):
        design.build(name, {key: object()})


@every("name", NOTEBOOKS)
def test_no_line_of_code_is_longer_than_a_readers_screen(name):
    lines = [line for cell in design.code_cells(name) for line in cell.code.splitlines()]
    assert [line for line in lines if len(line) > 100] == []


@every("name", NOTEBOOKS)
def test_a_source_notebook_leads_to_an_executed_copy(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    (copy,) = [cell.source for cell in notebook.cells if "copy" in cell.metadata.get("tags", [])]
    if copy.startswith("No executed copy is published yet"):
        assert not list(ROOT.glob(f"results/published/*/notebooks/{name}.ipynb"))
        return
    (path,) = re.findall(r"\]\((\.\./[^)]+\.ipynb)\)", copy)
    assert Path(path).stem == name
    assert (ROOT / "notebooks" / path).exists()


def test_every_study_is_whole_and_known_to_its_notebooks():
    studies = [path.stem for path in (ROOT / "studies").glob("*.yaml")]
    assert {"digits", "smoke", "cifar10"} <= set(studies)
    for study in studies:
        parameters.parameters(study, Path("results") / study, {})
    # Between them the two that need no data run every notebook.
    both = {notebook for name in ("digits", "smoke") for notebook in parameters.read_study(name)["notebooks"]}
    assert both == set(NOTEBOOKS)


@every(
    ("text", "kinds", "result"),
    [
        ("None", ("str", "None"), None),
        ("None", ("float", "None"), None),
        ("None", ("str",), "None"),
        ("2024", ("str", "None"), "2024"),
        ("True", ("str",), "True"),
        ("True", ("bool",), True),
        ("3", ("int",), 3),
        ("3", ("float",), 3),
        ("1e-3", ("float",), "1e-3"),  # as YAML has it; the parameter's own kind makes it a number
        ("[1, 2]", ("list",), [1, 2]),
        ("{name: fixed, lr: 0.1}", ("dict",), {"name": "fixed", "lr": 0.1}),
        ("digits", ("str",), "digits"),
        ("caffe", (), "caffe"),
        ("[1,", ("list",), "[1,"),
    ],
)
def test_values_on_the_command_line(text, kinds, result):
    found = parameters.parsed(text, kinds)
    assert (found, type(found)) == (result, type(result))


def test_the_declared_type_decides_what_a_value_is():
    plan = parameters.parameters(
        "smoke",
        Path("results/smoke"),
        {"data_dir": "2024", "03.base_lr": "1e-3", "03.max_lr": "1", "03.momentum": "1e-1"},
    )
    assert plan["02_range_test"]["data_dir"] == "2024"
    asked = plan["03_headline_experiment"]
    assert (asked["base_lr"], asked["max_lr"], asked["momentum"]) == (0.001, 1.0, 0.1)
    for name, text, needed in (
        ("03.runs", "two", "runs='two': a whole number is needed, such as 40"),
        ("02.evaluate_every", "1.5", "evaluate_every=1.5: a whole number"),
        ("06.cycle", "1", "cycle=1: True or False"),
        ("03.base_lr", "low", "base_lr='low': a number or None"),
        ("03.settings", "[1]", r"settings=\[1\]: settings such as"),
    ):
        with pytest.raises(parameters.StudyError, match=needed):
            parameters.parameters("smoke", Path("results/smoke"), {name: text})


def test_settings_on_the_command_line_join_those_of_the_studys_file_and_the_notebooks_own():
    plan = parameters.parameters("smoke", Path("results/smoke"), {"03.pooling": "caffe", "05.ema": "0.9"})
    assert plan["03_headline_experiment"]["settings"] == {"pooling": "caffe"}
    assert plan["05_policies"]["settings"] == {"ema": 0.9}
    # Else `-p 03.pooling caffe` would test on other images.
    plan = parameters.parameters("digits", Path("results/digits"), {"03.pooling": "caffe"})
    assert plan["03_headline_experiment"]["settings"] == {"split": "folds", "pooling": "caffe"}


def test_a_value_goes_to_the_notebook_that_is_named_or_has_it_alone():
    def plan(overrides):
        return parameters.parameters("smoke", Path("results/smoke"), overrides)

    def changed(overrides):
        plain = plan({})
        return sorted(name[:2] for name, values in plan(overrides).items() if values != plain[name])

    assert changed({"06.batch_size": 20}) == ["06"]
    assert changed({"07_mlp_mnist.step_size": 80}) == ["07"]
    assert changed({"small_batch": 20}) == ["07"]
    assert changed({"05.momentum": 0.5}) == ["05"]
    assert changed({"kernel_initializer": "torch"}) == ["06"]
    having = [name[:2] for name in plan({}) if "workers" in design.declared(name)]
    assert len(having) > 1
    assert changed({"workers": 1}) == having


def test_no_plain_name_reaches_some_of_the_notebooks_that_have_it():
    """Of every parameter there is: it has one owner, goes to all, or is refused with their names."""
    plan = parameters.read_study("smoke")["notebooks"]
    owners = {}
    for name in plan:
        for key in parameters.declared(name):
            owners.setdefault(key, []).append(name)
    several = {key: having for key, having in owners.items() if len(having) > 1}
    assert {"runs", "batch_size", "step_size"} <= several.keys()
    for key, having in several.items():
        if key in parameters.EVERYWHERE:
            continue
        with pytest.raises(parameters.StudyError, match=f"^-p {key} 1: several notebooks have it, ") as error:
            parameters.parameters("smoke", Path("results/smoke"), {key: "1"})
        assert all(name in str(error.value) for name in having)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("11.batch_size", "smoke has no notebook '11'"),
        ("04.batch_size", "notebook 04 has no parameter '04.batch_size' .value 1, 02_range_test, 03_"),
        ("06.batchsize", "no notebook has a parameter '06.batchsize' .value 1, did you mean 'batch_size'"),
        ("02.seed", "no notebook has a parameter '02.seed'"),
        ("policy", "no notebook has a parameter 'policy'"),
    ],
)
def test_a_parameter_that_is_not_there_is_named(wrong, message):
    with pytest.raises(parameters.StudyError, match=message):
        parameters.parameters("smoke", Path("results/smoke"), {wrong: "1"})


def test_a_refusal_names_its_notebook():
    with pytest.raises(parameters.StudyError, match="06_best_lr: weight_decay=0.001: for the wide residual network"):
        design.check(parameters.parameters("smoke", Path("results/smoke"), {"06.weight_decay": 0.001}))
