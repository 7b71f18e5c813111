"""The notebooks and studies as they lie in the repository, and which values reach which notebook."""

import ast
import importlib
import inspect
from pathlib import Path

import nbformat
import papermill
import pytest

from modules.study import experiments, parameters

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_source_notebooks_have_no_outputs_and_comment_every_parameter(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    for parameter in papermill.inspect_notebook(str(path)).values():
        assert len(parameter["help"]) >= 10, parameter


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_a_notebook_imports_exists(name):
    """Long before the notebook gets there."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.ImportFrom) and node.module.startswith("modules"):
                for one in node.names:
                    if not hasattr(importlib.import_module(node.module), one.name):
                        importlib.import_module(f"{node.module}.{one.name}")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebooks_check_is_one_call_with_its_parameters_in_order(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    (cell,) = [cell.source for cell in notebook.cells if "check" in cell.metadata.get("tags", [])]
    assert len([line for line in cell.splitlines() if line]) <= 5
    (call,) = [node for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Call)]
    assert getattr(experiments, call.func.attr) is experiments.CHECKS[name]
    asked = inspect.signature(experiments.CHECKS[name]).parameters
    found = parameters.declared(name)
    assert [argument.id for argument in call.args] == list(asked) == list(found)
    for key, parameter in found.items():
        assert " | ".join(parameter.kinds) == inspect.formatannotation(asked[key].annotation), key
        assert parameters._typed(key, parameter, parameter.default) == parameter.default


def test_every_study_is_whole_and_known_to_its_notebooks():
    studies = [path.stem for path in (ROOT / "studies").glob("*.yaml")]
    assert {"digits", "smoke", "cifar10"} <= set(studies)
    for study in studies:
        parameters.parameters(study, Path("results") / study, {})
    # Between them the two that need no data run every notebook.
    both = {notebook for name in ("digits", "smoke") for notebook in parameters.read_study(name)["notebooks"]}
    assert {notebook.partition("-")[0] for notebook in both} == set(NOTEBOOKS)


@pytest.mark.parametrize(
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
        {"data_dir": "2024", "03.base_lr": "1e-3", "03.max_lr": "1", "momentum": "1e-1"},
    )
    assert plan["02_range_test"]["data_dir"] == "2024"
    asked = plan["03_headline_experiment"]
    assert (asked["base_lr"], asked["max_lr"]) == (0.001, 1.0)
    assert asked["settings"]["momentum"] == "1e-1"  # which the run's own specification reads
    for name, text, needed in (
        ("runs", "two", "runs='two': a whole number is needed, such as 5"),
        ("02.evaluate_every", "1.5", "evaluate_every=1.5: a whole number"),
        ("06.cycle", "1", "cycle=1: True or False"),
        ("03.base_lr", "low", "base_lr='low': a number or None"),
        ("03.settings", "[1]", r"settings=\[1\]: settings such as"),
    ):
        with pytest.raises(parameters.StudyError, match=needed):
            parameters.parameters("smoke", Path("results/smoke"), {name: text})


def test_settings_on_the_command_line_join_those_of_the_studys_file():
    plan = parameters.parameters("smoke", Path("results/smoke"), {"momentum": "0.5", "optimizer": "sgd"})
    for name in ("02_range_test", "03_headline_experiment"):
        assert plan[name]["settings"] == {"optimizer": "sgd", "weight_decay": 0.0, "momentum": 0.5}
    assert "settings" not in plan["05_policies"]
    assert parameters.parameters("smoke", Path("r"), {"05.ema": "0.9"})["05_policies"]["settings"] == {"ema": 0.9}


def test_values_go_to_the_headline_unless_a_notebook_is_named():
    def plan(overrides):
        return parameters.parameters("smoke", Path("results/smoke"), overrides)

    def changed(overrides):
        plain = plan({})
        return sorted(name[:2] for name, values in plan(overrides).items() if values != plain[name])

    assert changed({"step_size": 80}) == ["03"]
    assert changed({"batch_size": 20}) == ["02", "03"]
    assert changed({"06.batch_size": 20}) == ["06"]
    assert changed({"07_mlp_mnist.step_size": 80}) == ["07"]
    assert changed({"small_batch": 20}) == ["07"]
    assert changed({"momentum": 0.5}) == ["02", "03"]
    assert changed({"05.momentum": 0.5}) == ["05"]
    assert changed({"kernel_initializer": "torch"}) == ["06"]
    assert changed({"workers": 1}) == ["02", "03", "05", "06", "07", "09", "10"]
    for wrong in ("08.batch_size", "04.batch_size", "06.batchsize", "02.seed", "policy"):
        with pytest.raises(parameters.StudyError, match=f"no notebook has a parameter '{wrong}'"):
            plan({wrong: 1})


def test_a_refusal_names_its_notebook():
    with pytest.raises(parameters.StudyError, match="06_best_lr: weight_decay=0.001: for the wide residual network"):
        parameters.check(parameters.parameters("smoke", Path("results/smoke"), {"06.weight_decay": 0.001}))
