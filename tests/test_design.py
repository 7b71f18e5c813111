"""A notebook's design: which runs its first cells make of its parameters, and what they refuse before any work."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from test_policies import Staircase
from toys import every, make_images, small

from modules import models, policies
from modules.checks import RunError
from modules.data import sources
from modules.report import tables
from modules.runs.training import train
from modules.statistics import AnalysisError
from modules.study import design

#: What each policy needs beside bounds and step size, for a run of 40 iterations.
NEEDS = {
    "exp_range": dict(gamma=0.99),
    "exp_range_both": dict(gamma=0.99),
    "custom": dict(clr_settings=dict(scale_fn="sinusoidal")),
    "exp": dict(gamma=0.99, clr_settings=dict(lr=0.01)),
    "linear": dict(clr_settings=dict(lr=0.01)),
    "cosine_restarts": dict(clr_settings=dict(lr=0.01, period=10)),
    "range_test": dict(clr_settings=dict(min_lr=0.001), max_lr=0.01),
    "phases": dict(
        clr_settings=dict(
            phases=[
                dict(iterations=30, policy=dict(name="linear", lr=0.01)),
                dict(iterations=10, policy=dict(name="fixed", lr=0.001, milestones=[])),
            ]
        )
    ),
}


@pytest.fixture
def asked(tmp_path):
    """A function from a notebook and changes of its parameters to the variables of its design; no result is there."""

    def ask(name, **changes):
        return design.build(name, {"results_dir": str(tmp_path), "settings": {}, **changes})

    return ask


def headline(asked, **changes):
    small = dict(dataset="digits", clr_iterations=40, step_size=10, runs=2, base_lr=None, max_lr=None)
    return asked("03_headline_experiment", **{**small, **changes})["specs"]


def bounds(folder, base_lr=0.002, max_lr=0.008):
    (folder / "tables").mkdir()
    table = pd.DataFrame({"bound": ["base_lr", "max_lr"], "value": [base_lr, max_lr]})
    table.to_csv(folder / "tables" / "range_test_bounds.csv")


def test_the_headline_is_both_policies_seed_by_seed(asked):
    runs = headline(asked, base_lr=0.001, max_lr=0.01)
    assert [run.name for run in runs] == ["fixed-seed1", "triangular-seed1", "fixed-seed2", "triangular-seed2"]
    assert [run.iterations for run in runs[:2]] == [1200, 40]
    assert (runs[1].policy.base_lr, runs[1].policy.max_lr, runs[1].policy.step_size) == (0.001, 0.01, 10)


@pytest.mark.parametrize("name", sorted(set(policies.kinds()) - {"fixed"}))
def test_the_challenger_can_be_any_policy(asked, tmp_path, name):
    bounds(tmp_path)
    run = headline(asked, clr_policy=name, **NEEDS.get(name, {}))[1]
    assert run.policy.name == name
    for bound, value in (("base_lr", 0.002), ("max_lr", 0.008)):
        if bound in policies.kinds()[name].model_fields and name != "range_test":
            assert getattr(run.policy, bound) == value  # the range test's, where none is given
    assert headline(asked, clr_policy=name, **NEEDS.get(name, {}), settings=dict(ema=0.9))[1].ema == 0.9


def test_a_policy_a_network_and_a_data_set_of_ones_own_run_in_notebook_3(asked, tmp_path, monkeypatch):
    images, labels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8), np.arange(20) % 2
    squares = sources.Source("squares", lambda data_dir: ([(images, labels), (images, labels)], ("a", "b")))

    def bare(channels, size, classes):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size**2, classes))

    monkeypatch.setattr(policies, "POLICIES", (*policies.POLICIES, Staircase))
    monkeypatch.setitem(models.NETWORKS, "bare", models.Network(bare, "bare"))
    monkeypatch.setitem(sources.SOURCES, "squares", squares)
    lengths = dict(fixed_milestones=[], fixed_iterations=12, clr_iterations=12, evaluate_every=4)
    mine = dict(dataset="squares", model="bare", batch_size=5, clr_policy="staircase")
    runs = headline(asked, **mine, **lengths, clr_settings=dict(lr=0.1, every=6))
    for run in runs:
        train(run, tmp_path / "headline")
    table = tables.read_runs(tmp_path / "headline", runs)
    assert tables.other_policy(table, "fixed") == "staircase"
    assert set(table.label) == {"squares"}
    design.build("04_headline_figures", dict(challenger="staircase", results_dir=str(tmp_path)))


def test_an_anneal_is_one_of_the_challengers_settings(asked):
    run = headline(asked, base_lr=0.001, max_lr=0.01, clr_settings=dict(anneal=0.2))[1]
    assert run.policy.anneal == 0.2


def test_the_headline_waits_for_the_range_test_and_checks_the_rest_before(asked, tmp_path):
    with pytest.raises(design.Pending, match="no bounds in .*: run the range test there first"):
        headline(asked)
    plan = {"02_range_test": {"results_dir": str(tmp_path)}}
    pending = {"base_lr": None, "max_lr": None, "results_dir": str(tmp_path)}
    design.check({**plan, "03_headline_experiment": pending})
    with pytest.raises(design.StudyError, match="03_headline_experiment: batch_size=5000 exceeds"):
        design.check({**plan, "03_headline_experiment": {**pending, "batch_size": 5000}})
    with pytest.raises(design.StudyError, match="03_headline_experiment: no bounds in"):
        design.check({"03_headline_experiment": pending})
    assert list(tmp_path.iterdir()) == []
    bounds(tmp_path)
    assert headline(asked)[1].policy.max_lr == 0.008


@every(
    ("changes", "message"),
    [
        (dict(base_lr=0.1), "give both bounds or neither: base_lr=0.1, max_lr=None"),
        (dict(clr_policy="fixed"), "clr_policy='fixed': the baseline is fixed already"),
        (dict(clr_policy="triangula"), "unknown policy 'triangula' .*did you mean 'triangular'"),
        (dict(clr_policy="linear", base_lr=0.1), "base_lr=0.1: no such setting of policy name='linear'"),
        (dict(clr_policy="linear"), "lr"),
        (dict(clr_settings=dict(step_size=5)), r"clr_settings: step_size \(value 5\) is decided"),
        (dict(runs=True), "runs=True: a whole number is needed"),
        (dict(fixed_milestones=(1, 2)), r"fixed_milestones=\(1, 2\): a list is needed"),
        (dict(settings=dict(seed=3)), r"settings: seed \(value 3\) is decided"),
        (dict(settings=dict(model="mlp")), r"settings: model \(value 'mlp'\) is decided"),
        (dict(settings=dict(poling="caffe")), r"settings: 'poling' \(value 'caffe'\): .* did you mean 'pooling'"),
        (dict(settings=dict(pooling="max")), "pooling='max'"),
    ],
)
def test_what_is_wrong_with_the_headline_is_named(tmp_path, changes, message):
    places = {"results_dir": str(tmp_path)}
    asked = {"base_lr": None, "max_lr": None, "runs": 2, **changes}
    with pytest.raises(design.StudyError, match=message):
        design.check({"02_range_test": places, "03_headline_experiment": asked | places})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pets(tmp_path):
    """A folder of images, and the parameters with which notebooks take it."""
    images = make_images(tmp_path / "pets", size=8)
    where = dict(dataset="images", data_dir=str(images), model="mlp", batch_size=2, runs=1)

    def exchange():
        shutil.copy(images / "train" / "cat" / "0.png", images / "train" / "dog" / "0.png")

    return images, where, exchange


def test_bounds_that_were_found_on_other_data_are_refused(asked, tmp_path, pets):
    images, where, exchange = pets
    bounds(tmp_path)
    train(small(dataset="images", model="mlp", batch_size=2), tmp_path / "range_test", images)
    assert headline(asked, **where)
    exchange()
    with pytest.raises(RunError, match="range_test was trained on pets .*: they have changed since"):
        headline(asked, **where)


def test_a_best_rate_that_was_found_on_other_data_is_refused(asked, tmp_path, pets):
    images, where, exchange = pets
    names = asked("06_best_lr", **where)
    train(names["sweeps"][0], tmp_path / "best_lr_sweep", images)
    assert names["trainings"](0.1)
    exchange()
    with pytest.raises(RunError, match="best_lr_sweep was trained on pets .*: they have changed since"):
        names["trainings"](0.1)


def test_a_range_test_needs_twelve_evaluations(asked):
    assert len(asked("02_range_test")["specs"]) == 40
    with pytest.raises(RunError, match="evaluate_every=40: a range test of 400 iterations needs at least 12"):
        asked("02_range_test", evaluate_every=40)


def entry(variant, **settings):
    return dict(variant=variant, iterations=40, policy=dict(name="fixed", milestones=[]), **settings)


def test_policies_side_by_side(asked):
    parts = asked(
        "05_policies",
        dataset="digits",
        model="cifar10_quick",
        policies=[entry("a"), entry("b", momentum=0.5)],
        ablation=[entry("c", pooling="floor")],
        compare=[["a", "b"]],
        range_test=dict(min_lr=0.001, max_lr=0.1, iterations=60, evaluate_every=5),
        settings=dict(pooling="caffe"),
        runs=2,
    )["parts"]
    assert {part: [run.name for run in runs] for part, runs in parts.items()} == {
        "policies": ["a-seed1", "b-seed1", "a-seed2", "b-seed2"],
        "ablation": ["c-seed1", "c-seed2"],
        "policies_range_test": ["range_test-seed1", "range_test-seed2"],
    }
    assert [run.momentum for run in parts["policies"][:2]] == [0.9, 0.5]
    assert {run.pooling for run in parts["policies"]} == {"caffe"}
    assert {run.pooling for run in parts["ablation"]} == {"floor"}
    assert (parts["policies_range_test"][0].iterations, parts["policies_range_test"][0].pooling) == (60, "caffe")


@every(
    ("changes", "message"),
    [
        (dict(policies=[]), r"policies=\[\]: at least one"),
        (dict(policies=[dict(variant="a")]), "policies: an entry with variant, iterations and policy is needed"),
        (dict(policies=[entry("a"), entry("a")]), "two runs have the same name: a-seed1"),
        (dict(policies=[entry("a", seed=1)]), "policies: seed cannot differ between the entries"),
        (dict(ablation=[entry("a", data="digits")]), "data='digits': no such setting"),
        (dict(compare=[["a", "c"]]), r"compare: two variants of a, b are needed, not \['a', 'c'\]"),
        (dict(range_test=dict(min_lr=0.1)), "max_lr"),
        (dict(reference="Makefile"), "reference=Makefile: a CSV"),
    ],
)
def test_what_is_wrong_with_policies_is_named(asked, tmp_path, changes, message):
    with pytest.raises((RunError, AnalysisError), match=message):
        asked("05_policies", **{"policies": [entry("a"), entry("b")], "compare": [], **changes})
    assert list(tmp_path.iterdir()) == []


def test_the_seven_arms(asked):
    changes = dict(dataset="digits", small_batch=10, large_batch=200, epochs=2, step_size=90, runs=1)
    runs = {run.variant: run for run in asked("07_mlp_mnist", **changes)["specs"]}
    assert len(runs) == 7
    assert {run.batch_size: run.iterations for run in runs.values()} == {10: 258, 200: 12}
    rates = runs["clr_small_batch"].policy.rates(258)
    assert runs["mean_small_batch"].policy.lr == pytest.approx(sum(rates) / len(rates))
    assert runs["mean_small_batch"].policy == runs["small_mean_large_batch"].policy
    assert runs["mean_large_batch"].policy.lr < 0.0015  # the first twelve rates of a cycle
    assert {run.optimizer for run in runs.values()} == {"adam"}
    with pytest.raises(RunError, match="small_batch=200, large_batch=100: the first must be smaller"):
        asked("07_mlp_mnist", small_batch=200, large_batch=100)


def test_a_time_is_stated_before_hours_of_runs_and_not_before_seconds(tmp_path, monkeypatch, capsys):
    runs = [small(seed=seed, iterations=10**8, evaluate_every=10**7) for seed in (1, 2)]
    design.say_how_long(runs, tmp_path, workers=1)
    assert re.fullmatch(r"2 runs to train: about [\d.]+ hours on 1 cores, or less. .*\n", capsys.readouterr().out)
    design.say_how_long([small()], tmp_path, workers=1)
    assert capsys.readouterr().out == ""
