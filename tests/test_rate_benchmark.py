"""The benchmark's runs: what is trained for a task, and how it is read again."""

import numpy as np
import pytest
from toys import every

from modules.checks import RunError
from modules.rate_finders import regret
from modules.rate_finders.benchmark import BOUNDS, DEFAULT, HALVING, RANDOM, SCHEDULES, Task, tasks
from modules.rate_finders.rules import RULES
from modules.runs.training import train

SETTINGS = dict(dataset="digits-8x8", model="dense-16", batch_size=50, weight_decay=0.0)


def task(folder, **changes):
    given = dict(
        settings=SETTINGS,
        iterations=40,
        grid=[0.01, 1.0],
        grid_factor=10.0,
        grid_seeds=2,
        ramps=2,
        ramp_lengths=[60, 0],
        halvings=1,
    )
    return Task("toy", folder, **{**given, **changes})


@pytest.fixture(scope="module", params=[True, False], ids=["one ramp", "two ramps"])
def trained(request, tmp_path_factory):
    """A small task with all its runs, made one after the other."""
    found = task(tmp_path_factory.mktemp("benchmark"), each=request.param)
    found.folder.mkdir()
    for run in found.first():
        train(run, found.folder)
    for run in filter(None, found._bounded().values()):
        train(run, found.folder)
    return found


def test_names_tell_all_runs_apart_and_ramps_have_no_seed_of_the_grid(tmp_path):
    runs = task(tmp_path, each=True).first()
    assert len({run.name for run in runs}) == len(runs)
    grid = {run.seed for run in runs if run.policy.name != "range_test" and "halving" not in run.name}
    assert not grid & {run.seed for run in runs if run.policy.name == "range_test"}


def test_rates_have_three_digits_and_span_the_grid(tmp_path):
    rates = task(tmp_path, grid=[0.002, 0.512], grid_factor=2**0.5).rates
    assert len(rates) == 17
    assert (rates[0], rates[-1]) == (0.002, 0.512)
    assert rates[1] == 0.00283


def test_every_rule_and_every_baseline_is_asked_on_every_ramp(trained):
    found = trained.suggestions()
    asked = found.groupby(["ramp", "rule"]).size()
    assert set(found.ramp) == {"60 iterations", "2 epochs"}
    for rule in (*RULES, RANDOM):
        assert asked["60 iterations", rule] == asked["2 epochs", rule] == 2
    assert asked["60 iterations", HALVING] == asked["60 iterations", DEFAULT] == 1
    assert (found.rate[found.rule == DEFAULT] == 0.01).all()


def test_the_rule_that_reads_both_is_given_the_accuracies_at_their_rates(trained):
    found = trained.suggestions().set_index(["ramp", "seed", "rule", "only"]).rate
    third = trained.suggestions().query("rule == 'accuracy peak / 3'").set_index(["ramp", "seed"]).rate
    for (label, seed), rate in third.items():
        alone, both = (found[label, seed, name, "linear"] for name in regret.CHOSEN_HERE)
        assert both == pytest.approx(min(alone, rate)) or np.isnan([both, alone]).all()


def test_tables_come_out_of_the_runs(trained):
    landscapes = trained.landscapes()
    assert set(landscapes) == {("toy", schedule) for schedule in SCHEDULES}
    assert landscapes["toy", "linear"].accuracies.shape == (3, 2)
    found = regret.regrets(trained.suggestions(), landscapes)
    both = trained.bounded_regrets(landscapes)
    assert set(both.rule) == {BOUNDS}
    assert np.isfinite(both.regret[both.rate.notna()]).all()
    assert len(both) == 4
    table = regret.regret_table(found, landscapes)
    assert (table.low <= table.high).all() or table.low.isna().any()


def test_a_ramp_s_rates_are_those_it_was_trained_with(trained):
    lr, values = trained._read_ramp(60, 1001, "loss")
    run, _ = trained._read(trained.ramp(60, 1001, "loss"))
    assert lr[: len(run)] == pytest.approx(run.lr.to_numpy())
    assert values[: len(run)] == pytest.approx(run.train_loss.to_numpy())


@every(
    ("entries", "message"),
    [
        ([], "a list of tasks is needed"),
        ([dict(name="a", settings=SETTINGS, iterations=4, grid=[0.1, 1.0], iteration=3)], "iteration: no such setting"),
        ([dict(name="a", settings=SETTINGS, grid=[0.1, 1.0])], "lacks iterations"),
        (2 * [dict(name="a", settings=SETTINGS, iterations=4, grid=[0.1, 1.0])], "two have the same name: a, a"),
        ([dict(name="a", settings=SETTINGS, iterations=4, grid=[1.0, 0.1])], "the lowest and the highest rate"),
        ([dict(name="a", settings=SETTINGS, iterations=4, grid=[0.1, 1.0], grid_seeds=1)], "two are needed"),
    ],
)
def test_bad_tasks_are_refused_in_a_line(entries, message, tmp_path):
    with pytest.raises(RunError, match=message) as refused:
        tasks(entries, tmp_path, {})
    assert "\n" not in str(refused.value)
