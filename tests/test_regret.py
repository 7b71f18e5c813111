"""Regret: on made-up landscapes whose best rate is known, and where a winner's curse would show."""

import numpy as np
import pandas as pd
import pytest

from modules.rate_finders import regret
from modules.rate_finders.regret import Landscape
from modules.statistics import AnalysisError

RATES = np.geomspace(0.001, 1, 21)
X = np.log10(RATES)


def landscape(seeds=4, noise=0.0, seed=0, top=-1.5, height=0.9):
    accuracies = height - 0.1 * (X[:, None] - top) ** 2
    return Landscape(RATES, accuracies + np.random.default_rng(seed).normal(0, noise, (21, seeds)))


def test_the_best_rate_has_no_regret_and_others_what_they_cost():
    found = landscape()
    assert found.best == pytest.approx(10**-1.5, rel=1e-6)
    assert not found.at_edge
    assert found.oracle == pytest.approx(0.9)
    assert found.regret(RATES[[10, 12]]) == pytest.approx([0, 0.1 * 0.3**2])


def test_between_rates_accuracy_is_a_line_over_log_rate_and_beyond_the_grid_its_end():
    found = landscape()
    between = np.sqrt(RATES[3] * RATES[4])
    expected = found.oracle - found.mean[[3, 4]].mean()
    assert found.regret(np.array([between])) == pytest.approx([expected])
    assert found.regret(np.array([1e-9, 1e9])) == pytest.approx(found.oracle - found.mean[[0, -1]])


def test_the_winner_s_curse_is_not_in_the_oracle():
    """All rates are alike: the highest of 21 noisy means is no better than the others, nor is it claimed to be."""
    flat = np.full((21, 1), 0.9)
    noisy = [Landscape(RATES, flat + np.random.default_rng(seed).normal(0, 0.02, (21, 4))) for seed in range(60)]
    excess = np.array([found.oracle - found.mean.mean() for found in noisy])
    curse = np.array([found.mean.max() - found.mean.mean() for found in noisy])
    assert abs(excess.mean()) < 2.5 * excess.std() / 60**0.5 + 1e-3
    assert curse.mean() > 10 * abs(excess.mean())


def suggested(rates, rule="a", task="t"):
    nothing = dict(accuracy=np.nan, only=None)
    return pd.DataFrame(dict(task=task, rule=rule, seed=range(len(rates)), rate=rates, **nothing))


def table_of(answers, landscapes, over=("t",)):
    return regret.regret_table(regret.regrets(answers, landscapes), landscapes, over)


def test_a_rate_that_is_for_one_schedule_is_asked_of_no_other():
    landscapes = {("t", "linear"): landscape(), ("t", "cycle"): landscape(top=-1.0)}
    found = regret.regrets(suggested([RATES[10]]).assign(only="cycle"), landscapes)
    assert found.schedule.tolist() == ["cycle"]


def test_what_trained_itself_is_valued_by_its_own_accuracy_and_not_by_the_rate_it_names():
    landscapes = {("t", "linear"): landscape()}
    own = suggested([RATES[0], np.nan]).assign(accuracy=[0.88, 0.86])
    row = table_of(own, landscapes).iloc[0]
    assert row.value == pytest.approx(3)
    assert row.worst == pytest.approx(4)
    assert row.no_answer == 0


def test_the_table_counts_what_has_no_answer_and_what_is_a_catastrophe():
    landscapes = {("t", "linear"): landscape()}
    rates = [RATES[10], RATES[10], 1.0, np.nan]
    table = table_of(suggested(rates), landscapes)
    row = table.set_index("task").loc["t"]
    assert row.repeats == 4
    assert row.no_answer == 0.25
    assert row.catastrophes == 0.25
    assert row.value == pytest.approx(100 * 0.1 * 1.5**2 / 3)
    assert row.worst == pytest.approx(100 * 0.1 * 1.5**2)
    assert row.low == pytest.approx(0)
    assert row.high == pytest.approx(row.worst)
    short = regret.summary(table)
    assert short.policy.tolist() == [f"{row.rule} linear t", f"{row.rule} linear"]
    assert (100 * short.value).tolist() == pytest.approx([row.value] * 2)


@pytest.mark.ci
def test_intervals_hold_the_true_regret_of_noisy_grids_and_few_ramps():
    """Of 40 made-up benchmarks of four seeds and ten ramps."""
    rng, held = np.random.default_rng(1), 0
    spread, top = 0.25, -1.5
    for seed in range(40):
        landscapes = {("t", "linear"): landscape(noise=0.01, seed=seed)}
        row = table_of(suggested(10 ** rng.normal(top + 0.3, spread, 10)), landscapes).iloc[0]
        held += row.low <= 100 * 0.1 * (0.3**2 + spread**2) <= row.high
    assert held >= 34


def test_the_mean_over_tasks_is_there_only_where_a_rule_answered_in_each():
    landscapes = {("t", "linear"): landscape(), ("u", "linear"): landscape(top=-1.0)}
    both = pd.concat(
        [
            suggested([RATES[10]], "a"),
            suggested([RATES[10]], "a", task="u"),
            suggested([RATES[8]], "b"),
            suggested([np.nan], "b", task="u"),
        ]
    )
    table = table_of(both, landscapes, over=["t", "u"])
    whole = table[table.task == "all"].set_index("rule")
    parts = table[(table.rule == "a") & (table.task != "all")]
    assert whole.value["a"] == pytest.approx(parts.value.mean())
    assert np.isnan(whole.value["b"])
    assert whole.no_answer["b"] == 0.5
    held_out = table_of(both, landscapes, over=["u"]).query("task == 'all'").set_index("rule")
    assert held_out.value["a"] == table[(table.rule == "a") & (table.task == "u")].value.item()
    assert regret.side_by_side(table, "linear").loc["b", "no answer"] == "50%"


def test_the_profile_weighs_tasks_alike_and_no_answer_is_never_within():
    landscapes = {("t", "linear"): landscape(), ("u", "linear"): landscape()}
    both = pd.concat([suggested([RATES[10], RATES[12], np.nan, 1.0]), suggested([RATES[10]], task="u")])
    shares = regret.profile(regret.regrets(both, landscapes)).set_index("regret").share
    assert shares.iloc[0] == pytest.approx((0.25 + 1) / 2)
    assert shares.iloc[-1] == pytest.approx((0.5 + 1) / 2)


def test_the_advice_is_the_least_regret_and_names_what_is_as_good():
    landscapes = {("t", "linear"): landscape(noise=0.003)}
    rules = {"good": [RATES[10]] * 5, "also": [RATES[10] * 1.01] * 5, "bad": [1.0] * 5, "silent": [np.nan] * 5}
    table = table_of(pd.concat([suggested(rates, rule) for rule, rates in rules.items()]), landscapes)
    text = regret.advice(table, "linear")
    assert text.startswith(("linear: good costs", "linear: also costs"))
    assert "not told apart" in text
    assert "bad" not in text
    assert "silent" not in text
    assert "nobody answered" in regret.advice(table, "cycle")


def test_the_advice_counts_those_that_it_does_not_name():
    landscapes = {("t", "linear"): landscape(noise=0.003)}
    rules = {f"rule {number}": [RATES[10] * (1 + number / 1000)] * 5 for number in range(7)}
    table = table_of(pd.concat([suggested(rates, rule) for rule, rates in rules.items()]), landscapes)
    assert regret.advice(table, "linear").endswith("; and 2 more.")


def test_grids_without_enough_of_anything_are_refused():
    for accuracies in (np.ones((21, 1)), np.ones(21), np.ones((20, 3))):
        with pytest.raises(AnalysisError, match="three rates and two seeds or more are needed"):
            Landscape(RATES, accuracies)
    with pytest.raises(AnalysisError, match="every rate and seed"):
        Landscape(RATES, np.full((21, 3), np.nan))
