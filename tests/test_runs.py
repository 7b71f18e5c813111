"""Specs that are refused with one clear line."""

import json

import pytest
from toys import FIXED, PHASES, TRIANGULAR, every, small

from modules.checks import RunError, did_you_mean, positive, seeds
from modules.runs.spec import Spec, differences


@every(
    ("changes", "message"),
    [
        (dict(dataset="cifar100"), "unknown dataset 'cifar100'"),
        (dict(model="alexnet"), "unknown model 'alexnet'"),
        (dict(policy=dict(name="square")), "unknown policy 'square'"),
        (dict(policy={**TRIANGULAR, "base_lr": 0.2}), "base_lr=0.2, max_lr=0.1"),
        (dict(policy={**TRIANGULAR, "step_size": 0}), "step_size=0"),
        (dict(policy={**TRIANGULAR, "step_size": -3}), "step_size=-3"),
        (dict(policy={**TRIANGULAR, "gamma": 0.5}), "gamma=0.5: triangular has no gamma"),
        (dict(policy={**TRIANGULAR, "name": "exp_range_both"}), "gamma=1.0: exp_range_both needs a gamma"),
        (dict(policy={**TRIANGULAR, "stepsize": 3}), "stepsize=3"),
        (dict(policy={**FIXED, "milestones": (20, 10)}), r"milestones=\[20, 10\]"),
        (dict(policy=dict(name="range_test", min_lr=1.0, max_lr=0.5)), "min_lr=1.0, max_lr=0.5"),
        (dict(policy=dict(name="range_test", min_lr=0.5, max_lr=0.5)), "min_lr must be below max_lr: min_lr=0.5"),
        (dict(iterations=0), "iterations=0"),
        (dict(batch_size=-1), "batch_size=-1"),
        (dict(evaluate_every=0), "evaluate_every=0"),
        (dict(momentum=1.0), "momentum=1.0"),
        (dict(precision="float16"), "precision='float16'"),
        (dict(seed=-1), "seed=-1"),
        (dict(evaluation="validation"), "needs a split with validation images"),
        (dict(ema=1.0), "ema=1.0"),
        (dict(policy={**FIXED, "anneal": 1.5}), "anneal=1.5"),
        (dict(registration="the text"), "registration='the text'"),
    ],
)
def test_bad_settings_are_named_with_their_value_in_one_line(changes, message):
    with pytest.raises(RunError, match=message) as error:
        small(**changes)
    assert "\n" not in str(error.value)


def test_every_wrong_setting_is_named():
    with pytest.raises(RunError, match=r"batch_size=0.*; iterations=-2|iterations=-2.*; batch_size=0"):
        small(batch_size=0, iterations=-2)


@every("policy", [FIXED, PHASES])
def test_spec_survives_json(policy):
    spec = small(policy)
    assert Spec(**json.loads(spec.model_dump_json())) == spec
    assert spec.name == f"{policy['name']}-seed1"


def test_adam_has_no_momentum_to_tell_runs_apart_by():
    assert small(optimizer="adam", momentum=0.5) == small(optimizer="adam", momentum=0.9)
    assert small(optimizer="sgd", momentum=0.5) != small(optimizer="sgd", momentum=0.9)


def test_differences_name_the_setting():
    assert differences(small(), small()) == []
    assert differences(small(), small(batch_size=32)) == ["batch_size: 64, not 32"]
    assert differences(small(), small({**TRIANGULAR, "max_lr": 0.2})) == ["policy.max_lr: 0.1, not 0.2"]


@every("runs", [0, -1, 2.5, True, "3"])
def test_runs_must_be_a_positive_whole_number(runs):
    with pytest.raises(RunError, match="runs="):
        seeds(runs)


def test_near_names_are_suggested():
    assert did_you_mean("step_sise", ["step_size", "gamma"]) == ", did you mean 'step_size'?"
    assert did_you_mean("zzz", ["step_size", "gamma"]) == ""


@every("value", [0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_a_number_above_zero_is_needed(value):
    with pytest.raises(RunError, match="rate=.*: a number above 0 is needed"):
        positive("rate", value)
    assert positive("rate", 0.1) == 0.1
