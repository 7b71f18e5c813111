"""The notebooks and studies as they lie in the repository, and which values reach which notebook."""

from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from modules.study import parameters

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


def test_every_study_is_whole_and_known_to_its_notebooks():
    for folder in (ROOT / "studies").iterdir():
        assert {file.stem for file in folder.glob("*.yaml")} <= {*NOTEBOOKS, "notes"}
        parameters.study_notes(folder.name)
        parameters.parameters(folder.name, Path("results") / folder.name, {})
    for name in ("digits", "smoke"):
        assert sorted(file.stem for file in (ROOT / "studies" / name).glob("0*.yaml")) == NOTEBOOKS


def test_digits_is_the_headline_at_a_fiftieth():
    values = {
        name: yaml.safe_load((ROOT / "studies" / name / "03_headline_experiment.yaml").read_text())
        for name in ("digits", "cifar10")
    }
    notebook = nbformat.read(ROOT / "notebooks" / "03_headline_experiment.ipynb", 4)
    defaults = parameters.assigned(parameters.cells(notebook, "parameters"))
    full = {**defaults, **values["cifar10"]}
    for key in ("fixed_iterations", "clr_iterations", "step_size"):
        assert values["digits"][key] * 50 == full[key]
    assert [cut * 50 for cut in values["digits"]["fixed_milestones"]] == full["fixed_milestones"]


@pytest.mark.parametrize(
    ("text", "result"),
    [("None", None), ("True", True), ("3", 3), ("1e-3", 0.001), ("[1, 2]", [1, 2]), ("digits", "digits")],
)
def test_values_on_the_command_line(text, result):
    assert parameters.value(text) == result


def test_values_go_to_the_headline_unless_a_notebook_is_named():
    def plan(overrides):
        return parameters.parameters("digits", Path("results/digits"), overrides)

    def changed(overrides):
        plain = plan({})
        return sorted(name[:2] for name, values in plan(overrides).items() if values != plain[name])

    assert changed({"step_size": 80}) == ["03"]
    assert changed({"batch_size": 20}) == ["02", "03"]
    assert changed({"06.batch_size": 20}) == ["06"]
    assert changed({"07_mlp_mnist.step_size": 80}) == ["07"]
    assert changed({"small_batch": 20}) == ["07"]
    assert changed({"workers": 1}) == ["02", "03", "05", "06", "07"]
    for wrong in ("08.batch_size", "04.batch_size", "06.batchsize"):
        with pytest.raises(parameters.StudyError, match=f"no notebook has a parameter '{wrong}'"):
            plan({wrong: 1})


def test_a_refusal_names_its_notebook():
    with pytest.raises(parameters.StudyError, match="06_best_lr: weight_decay=0.001: for the wide residual network"):
        parameters.check(parameters.parameters("digits", Path("results/digits"), {"06.weight_decay": 0.001}))
