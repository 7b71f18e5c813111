"""A campaign of nonsense: whatever comes in, it works or is refused in one clear line, before anything is written."""

import os
import shutil
import sys

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_pictures import huge_png
from toys import TRIANGULAR, every, make_images, small

from modules.checks import RunError
from modules.data.datasets import load
from modules.data.sources import DataError
from modules.runs.spec import Spec, spec
from modules.study import design, parameters

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 10**30, 2**63, -(10**30)]),
    st.floats(),
    st.sampled_from([1e308, 5e-324, -0.0, float("nan"), float("inf"), float("-inf")]),
    st.text(max_size=20),
    st.sampled_from(["", "24", "1e-3", "None", "fixed", "../../etc", "ünïcödé\n\x00", "x" * 500]),
    st.lists(st.integers(-5, 100), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
FIELDS = sorted(Spec.model_fields)
often = settings(
    max_examples=3 * settings.default.max_examples // 2, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_one_line(message, *names):
    assert len(message.splitlines()) == 1, message
    assert 10 < len(message) < 600, message
    assert any(name in message for name in names), (message, names)


@often
@given(st.sampled_from(FIELDS), JUNK)
def test_specs_are_whole_or_refused_by_name(field, value):
    try:
        made = small(**{field: value}) if field != "policy" else spec(**{**small().model_dump(), "policy": value})
    except RunError as error:
        assert_one_line(str(error), field)
    else:
        assert Spec(**made.model_dump()) == made


@often
@given(st.sampled_from([*TRIANGULAR, "gamma"]), JUNK)
def test_policies_are_whole_or_refused_by_name(field, value):
    try:
        small({**TRIANGULAR, field: value})
    except RunError as error:
        assert_one_line(str(error), field, "unknown policy")


@given(st.sampled_from([name for name in FIELDS if len(name) > 4]), st.integers(0, 3))
def test_misspelt_settings_are_recognised(field, position):
    wrong = field[:position] + field[position + 1 :]
    with pytest.raises(RunError, match=f"{wrong}=1: no such setting, did you mean '{field}'"):
        spec(**small().model_dump(exclude={field} if field != "policy" else set()), **{wrong: 1})


PARAMETERS = [
    (notebook, name)
    for notebook in parameters.read_study("smoke")["notebooks"]
    for name in design.declared(notebook)
    if name not in ("results_dir", "published_dir", "data_dir")  # any text is a folder, which is made when missing
]


@pytest.fixture
def small_plan(tmp_path):
    """A function from one notebook parameter and its value to the refusal, None when it is accepted."""

    def refusal(notebook, name, value):
        results = tmp_path / "results"
        try:
            plan = parameters.parameters("smoke", results, {f"{notebook}.{name}": value})
            design.check({notebook: plan[notebook]})
        except ValueError as error:
            return str(error)
        finally:
            assert not results.exists()
        return None

    return refusal


@often
@given(st.sampled_from(PARAMETERS), JUNK)
@example(("02_range_test", "evaluate_every"), "often")
@example(("02_range_test", "runs"), 10**30)
@example(("03_headline_experiment", "workers"), "3")
@example(("03_headline_experiment", "data_dir"), 5)
@example(("06_best_lr", "data_dir"), 5)
@example(("05_policies", "runs"), 30_000_000)  # whose descriptions alone would fill the memory
@example(("07_mlp_mnist", "epochs"), 30_000_000)
@example(("03_headline_experiment", "base_lr"), None)
@example(("06_best_lr", "skip_test"), 5e-324)
@example(("07_mlp_mnist", "max_lr"), 1.5e306)
@example(("05_policies", "range_test"), {})
@example(("02_range_test", "dataset"), ["digits"])
@example(("02_range_test", "model"), "wide_resnet-100000-1")
def test_notebook_parameters_are_taken_or_refused_by_name(small_plan, parameter, value):
    notebook, name = parameter
    refusal = small_plan(notebook, name, value)
    if refusal is not None:
        policy = {
            "fixed_lr": "lr",
            "fixed_milestones": "milestones",
            "fixed_gamma": "gamma",
            "clr_policy": "policy",
            "clr_settings": "policy",
        }
        length = {"fixed_iterations": "iterations", "clr_iterations": "iterations"}
        also = (policy | length).get(name, name)
        assert_one_line(refusal, name, also, "no folder", "batch_size", "network", "size", "rates must grow")


@often
@given(
    st.one_of(st.text(max_size=60), st.binary(max_size=60), st.dictionaries(st.text(max_size=10), JUNK).map(yaml.dump))
)
@example("- a\n- b\n")
@example("!!python/object/apply:os.system ['touch owned']")
@example("iterations: 5\niterations: [\n")
@example("&a [*a]")
@example("iterations:")
def test_yaml_files_are_read_or_refused(tmp_path, content):
    file = tmp_path / "mine.yaml"
    content = content if isinstance(content, bytes) else content.encode()
    file.write_bytes(b"notebooks:\n 02_range_test:\n" + b"".join(b"  " + line for line in content.splitlines(True)))
    try:
        plan = parameters.parameters(str(file), tmp_path / "results", {})
    except ValueError as error:
        assert_one_line(str(error), "mine.yaml", "02_range_test")  # its YAML, or one of its parameters
    else:
        assert set(plan) == {"02_range_test"}
    assert not os.path.exists("owned")


@given(st.text(max_size=15))
@example("[" * 100_000)
def test_command_line_values_never_fail_to_be_read(text):
    for kinds in ((), ("str",), ("float", "None")):
        parameters.parsed(text, kinds)


def first(folder):
    return folder / "train" / "cat" / "0.png"


def animate(path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def replaced(make):
    """Damage that removes the first image and makes something else of that name."""

    def damage(folder):
        first(folder).unlink()
        make(first(folder))

    return damage


def rename_class(folder):
    (folder / "test" / "dog").rename(folder / "test" / "bird")


def drop_class(folder):
    for path in (folder / "test" / "dog").iterdir():
        path.unlink()
    (folder / "test" / "dog").rmdir()


@every(
    ("damage", "message"),
    [
        (lambda folder: first(folder).write_bytes(b""), "0.png cannot be read as an image"),
        (lambda folder: first(folder).write_text("no picture"), "0.png cannot be read as an image"),
        (lambda folder: first(folder).write_bytes(first(folder).read_bytes()[:60]), "0.png is damaged: its end"),
        (lambda folder: huge_png(first(folder), 1, 1), r"has shape|0.png is 1 x 1"),
        (lambda folder: huge_png(first(folder), 10_000, 10_000), "0.png is 10000 x 10000 pixels, more than 1024"),
        (
            lambda folder: huge_png(first(folder), 20_000, 20_000),
            "0.png cannot be read as an image|20000 x 20000 pixels",
        ),
        (lambda folder: animate(first(folder)), "0.png is animated"),
        (replaced(os.mkdir), "0.png is not a file"),
        (replaced(os.mkfifo), "0.png is not a file"),
        (replaced(lambda path: path.symlink_to(path)), "0.png cannot be read"),
        (replaced(lambda path: path.symlink_to("/nowhere/at/all.png")), "0.png cannot be read"),
        (replaced(lambda path: path.symlink_to("/etc/passwd")), "0.png cannot be read as an image"),
        (rename_class, "'dog' is only in train, 'bird' is only in test"),
        (drop_class, "'dog' is only in train"),
        (lambda folder: shutil.rmtree(folder / "test"), "cat has 4 images: 5 are needed, as there is no test/"),
        (lambda folder: shutil.rmtree(folder / "train"), "no folder .*train: .* needs train/<class>/. beside test/"),
        (lambda folder: Image.new("RGB", (20, 20)).save(first(folder)), r"has shape|0.png is 20 x 20"),
        (
            lambda folder: [path.unlink() for path in (folder / "train" / "cat").iterdir()],
            "no image in .*cat: files that end in",
        ),
    ],
)
def test_bad_image_folders_are_named_and_nothing_is_cached(tmp_path, damage, message):
    folder = make_images(tmp_path / "images")
    damage(folder)
    with pytest.raises(DataError, match=message) as error:
        load("images", folder)
    assert_one_line(str(error.value), "images")
    assert not (folder / ".cache").exists()


def test_unusual_image_folders_work(tmp_path):
    folder = make_images(tmp_path / "images")
    plain = load("images", folder).train_images.copy()
    for path in folder.rglob("0.png"):
        with Image.open(path) as image:
            image.convert("RGBA").save(path)
    outside = tmp_path / "elsewhere.png"
    (folder / "train" / "cat" / "1.png").rename(outside)
    (folder / "train" / "cat" / "1.png").symlink_to(outside)
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "cat" / ".hidden.png").write_text("")
    (folder / "train" / "cat" / "readme.txt").write_text("")
    np.testing.assert_array_equal(load("images", folder).train_images, plain)
    with Image.open(first(folder)) as image:
        image.convert("CMYK").save(first(folder).with_suffix(".jpg"))
    assert load("images", folder).train_images.shape == (9, 3, 16, 16)


@pytest.mark.skipif(sys.platform == "darwin", reason="this file system has no names that are no text")
def test_names_that_are_no_text_work(tmp_path):
    folder = make_images(tmp_path / "images")
    os.rename(first(folder), os.fsencode(first(folder).parent) + b"/\xff\xfe.png")
    assert load("images", folder).train_images.shape == (8, 3, 16, 16)
