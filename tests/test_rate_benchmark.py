"""The benchmark's runs: what is trained and searched for a task, how it is read again, and rules of anybody's."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from toys import every

from modules.checks import RunError, short
from modules.rate_finders import benchmark, entrants, frozen, regret
from modules.rate_finders.benchmark import SCHEDULES, Task, tasks
from modules.rate_finders.rules import RULES
from modules.runs.training import train
from modules.study.cli import main

SETTINGS = dict(dataset="digits-8x8", model="dense-16", batch_size=50, weight_decay=0.0)


def task(folder, **changes):
    given = dict(
        settings=SETTINGS, iterations=60, grid=[0.01, 1.0], grid_factor=10.0, grid_seeds=2, repeats=2, share=0.8
    )
    return Task("toy", folder, **{**given, **changes})


def made(folder, each):
    """A small task with all its runs, made one after the other, and two of its searches."""
    found = task(folder, each=each)
    found.folder.mkdir()
    for run in found.first():
        train(run, found.folder)
    for run in filter(None, map(found.bounded, found.seeds)):
        train(run, found.folder)
    rows = [("find_rate", "linear", 1001, 0.1, math.nan), ("schedule-free", "constant", 1001, math.nan, 0.5)]
    rows += [
        (entrants.PEAK_OF_RANGE_TEST, "constant", 1001 + row, rate, math.nan) for row, rate in enumerate((1e-4, 0))
    ]
    pd.DataFrame(rows, columns=benchmark.FOUND).to_csv(found.folder / benchmark.SEARCHES, index=False)
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["one ramp", "two ramps"])
def trained(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("benchmark"), request.param)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The frozen file of a task of one ramp."""
    folder = tmp_path_factory.mktemp("frozen")
    frozen.frozen([made(folder, True)]).to_csv(folder / frozen.FILE, index=False)
    return folder / frozen.FILE


def test_names_tell_all_runs_apart_and_ramps_have_no_seed_of_the_grid(tmp_path):
    runs = task(tmp_path, each=True).first()
    assert len({run.name for run in runs}) == len(runs)
    ramps = {run.seed for run in runs if run.policy.name == "range_test"}
    assert not ramps & {run.seed for run in runs if run.policy.name != "range_test"}


def test_rates_have_three_digits_and_span_the_grid(tmp_path):
    rates = task(tmp_path, grid=[0.002, 0.512], grid_factor=2**0.5).rates
    assert len(rates) == 17
    assert (rates[0], rates[-1]) == (0.002, 0.512)
    assert rates[1] == 0.00283


def test_every_rule_is_asked_on_every_ramp_and_what_was_searched_is_there(trained):
    found = trained.answers()
    asked = found.groupby("rule").size()
    assert (asked[list(RULES)] == 2).all()
    assert (asked[list(regret.CHOSEN_HERE)] == 2 * len(SCHEDULES)).all()
    searched = found.set_index("rule")
    assert (searched.rate["find_rate"], searched.only["find_rate"]) == (0.1, "linear")
    assert searched.accuracy["schedule-free"] == 0.5
    assert pd.isna(searched.only["schedule-free"])


def test_the_rule_that_reads_both_is_given_the_accuracies_at_their_rates(trained):
    found = trained.answers().set_index(["seed", "rule", "only"]).rate
    third = trained.answers().query("rule == 'accuracy peak / 3'").set_index("seed").rate
    for seed, rate in third.items():
        alone, both = (found[seed, name, "linear"] for name in regret.CHOSEN_HERE)
        assert both == pytest.approx(min(alone, rate)) or np.isnan([both, alone]).all()


def test_with_range_test_s_accuracies_the_smaller_rate_counts_for_each_schedule(trained):
    found = trained.answers().set_index(["seed", "rule", "only"]).rate
    for schedule in SCHEDULES:
        assert found[1001, regret.OF_RANGE_TEST, schedule] == min(1e-4, found[1001, "suggest_rate", schedule])
        assert found[1002, regret.OF_RANGE_TEST, schedule] == found[1002, "suggest_rate", schedule]


def test_tables_come_out_of_the_runs(trained):
    landscapes = trained.landscapes()
    assert set(landscapes) == {("toy", schedule) for schedule in SCHEDULES}
    assert landscapes["toy", "linear"].accuracies.shape == (3, 2)
    found = regret.regrets(trained.answers(), landscapes)
    both = found[found.rule == regret.BOUNDS]
    assert set(both.schedule) == {"cycle"}
    assert (both.regret.notna() == both.rate.notna()).all()
    table = regret.regret_table(found, landscapes, ["toy"])
    known = table.dropna(subset=["low", "high"])
    assert len(known)
    assert (known.low <= known.high).all()


def test_a_ramp_s_rates_are_those_it_was_trained_with(trained):
    lr, values = trained.read_ramp(1001, "loss")
    run, _ = trained._read(trained.ramp(1001, "loss"))
    assert lr[: len(run)] == pytest.approx(run.lr.to_numpy())
    assert values[: len(run)] == pytest.approx(run.train_loss.to_numpy())


@pytest.mark.parametrize("name", entrants.ENTRANTS)
def test_every_entrant_answers_the_same_twice_and_spends_what_it_may(name, tmp_path, monkeypatch):
    toy, entrant = task(tmp_path), entrants.ENTRANTS[name]
    steps = []
    step, train_once = entrants.step, entrants.Trials.train
    monkeypatch.setattr(entrants, "step", lambda *given: steps.append(1) or step(*given))

    def counted(self, rate, length, done):
        return train_once(self, rate, length, lambda more: steps.append(more) or done(more))

    monkeypatch.setattr(entrants.Trials, "train", counted)
    first, second = (toy.answer(name, entrant.schedules[-1], 1001) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    spent = sum(steps) / 2
    if entrant.answers == "accuracy":
        assert 0 <= first[1] <= 1
        assert spent == toy.iterations + toy.budget or first[1] == 0.1  # a loss that was not finite ends it
    else:
        assert first[0] > 0
        assert spent <= toy.budget


def test_a_search_that_is_stopped_goes_on_with_what_is_left(tmp_path, monkeypatch):
    toy = task(tmp_path, repeats=1)
    toy.folder.mkdir()
    monkeypatch.setattr(benchmark, "ENTRANTS", {name: entrants.ENTRANTS[name] for name in ("random search", "Prodigy")})
    done = [("Prodigy", "linear", 1001, math.nan, 0.123)]
    pd.DataFrame(done, columns=benchmark.FOUND).to_csv(toy.folder / benchmark.SEARCHES, index=False)
    toy.search(workers=1)
    found = toy.searched().set_index(["entrant", "schedule"])
    assert len(found) == len(SCHEDULES) + 2
    assert found.accuracy["Prodigy", "linear"] == 0.123
    written = (toy.folder / benchmark.SEARCHES).read_bytes()
    toy.search(workers=1)
    assert (toy.folder / benchmark.SEARCHES).read_bytes() == written


def test_a_rule_scored_on_the_frozen_file_has_the_regret_it_has_on_the_runs(trained, tmp_path):
    table = tmp_path / frozen.FILE
    frozen.frozen([trained]).to_csv(table, index=False)
    landscapes = trained.landscapes()
    whole = regret.regret_table(regret.regrets(trained.answers(), landscapes), landscapes, ["toy"])
    scored = frozen.scored(pd.read_csv(table), lambda lr, loss, _: RULES["fastai minimum"](lr, loss), "mine")
    keys = ["task", "schedule", "rule"]
    both = whole.merge(scored, on=keys, suffixes=("_whole", ""))
    assert both.value.to_numpy() == pytest.approx(both.value_whole.to_numpy(), nan_ok=True)
    assert {*RULES, *regret.CHOSEN_HERE} == set(both.rule)
    twice = scored.set_index("rule")
    assert twice.value["mine"].tolist() == twice.value["fastai minimum"].tolist()


def test_a_rule_in_a_file_is_scored_by_one_command(table, capsys):
    assert main(["score", "--rule", "studies/rules/halfway.py", "--table", str(table)]) == 0
    assert "\nhalfway.py " in capsys.readouterr().out


def test_a_rule_with_a_third_argument_reads_the_accuracies_too(table, tmp_path, capsys):
    """The paper's own rule, as an entry, has the regret of ours."""
    file = tmp_path / "peak.py"
    for name in ("accuracy peak", "accuracy peak / 3"):
        file.write_text(
            "import numpy as np\nfrom modules.rate_finders.rules import RULES\n"
            "def rule(lr, loss, accuracy):\n    there = np.isfinite(accuracy)\n"
            f"    return RULES['{name}'](lr[there], accuracy[there])\n"
        )
        assert main(["score", "--rule", str(file), "--table", str(table)]) == 0
        rows = {row.split("  ")[0]: row.split()[-5:] for row in capsys.readouterr().out.splitlines()}
        assert rows["peak.py"] == rows[name]


def test_a_file_that_is_called_as_a_rule_of_ours_is_stands_beside_it(table, tmp_path, capsys):
    file = tmp_path / "best_rate.py"
    file.write_text("rule = lambda lr, loss: 1e-6")
    assert main(["score", "--rule", str(file), "--table", str(table)]) == 0
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"best_rate", "best_rate.py"} <= set(rows)


def refusal(capsys, rule, table):
    """What is said of files that cannot be scored: one line."""
    assert main(["score", "--rule", str(rule), "--table", str(table)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err.removeprefix("error: ").strip()


@every(
    ("text", "message"),
    [
        ("def role(lr, loss): return 1", "has no function rule(lr, loss)"),
        ("rule = 0.1", "has no function rule(lr, loss)"),
        ("def rule(lr, loss) return 1", "SyntaxError: "),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("def rule(lr, loss): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def rule(lr, loss): return {}['rate']", "KeyError: 'rate'"),
        ("def rule(lr, loss): return open('gone')", "FileNotFoundError: "),
        ("def rule(lr): return 1", "TypeError: rule() takes 1 positional argument but 2 were given"),
        ("def rule(lr, loss): raise ValueError('two\\nlines')", "ValueError: two"),
        ("def rule(lr, loss): return '0.1'", "rule gave '0.1': one rate is needed, or NaN for no answer"),
        ("def rule(lr, loss): pass", "rule gave None: one rate is needed"),
        ("def rule(lr, loss): return lr[:2]", "rule gave array("),
        ("def rule(lr, loss): return 1j", "rule gave 1j: one rate is needed"),
    ],
)
def test_a_rule_that_fails_or_gives_no_number_is_named_in_a_line(text, message, table, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(text)
    said = refusal(capsys, file, table)
    assert said.startswith(str(file))
    assert message in said


def test_a_rule_may_have_no_answer(table, tmp_path, capsys):
    for text in ("return float('nan')", "from modules.statistics import AnalysisError; raise AnalysisError('none')"):
        (tmp_path / "mine.py").write_text(f"def rule(lr, loss): {text}")
        assert main(["score", "--rule", str(tmp_path / "mine.py"), "--table", str(table)]) == 0
        assert re.search(r"^mine\.py .* NaN +100%$", capsys.readouterr().out, re.MULTILINE)


def test_files_that_a_rule_cannot_be_scored_with_are_named_in_a_line(table, tmp_path, capsys):
    halfway = "studies/rules/halfway.py"
    assert refusal(capsys, tmp_path / "no.py", table) == f"rule={short(str(tmp_path / 'no.py'))}: no such file"
    assert refusal(capsys, halfway, tmp_path / "no.csv") == f"table={short(str(tmp_path / 'no.csv'))}: no such file"
    for text, message in (
        ("", "is no table: "),
        ("a\n1,2\n3,4,5\n", "is no table: "),
        ("a,what\n1,2\n", "no task, chosen"),
        ("task,chosen,what,seed,rate,value\na,False,ramp,1,0.1,2\n", "no ramp's accuracy"),
    ):
        (tmp_path / "other.csv").write_text(text)
        assert message in refusal(capsys, halfway, tmp_path / "other.csv")


@every(
    ("entries", "message"),
    [
        ([], "a list of tasks is needed"),
        ([dict(name="a", settings=SETTINGS, iterations=4, grid=[0.1, 1.0], iteration=3)], "iteration: no such setting"),
        ([dict(name="a", settings=SETTINGS, grid=[0.1, 1.0])], "lacks iterations"),
        (2 * [dict(name="a", settings=SETTINGS, iterations=4, grid=[0.1, 1.0])], "two have the same name: a, a"),
        (
            [dict(name="a", settings=SETTINGS, iterations=50, grid=[0.1, 1.0])],
            "share=0.2 of iterations=50 is less than 20",
        ),
        ([dict(name="a", settings=SETTINGS, iterations=4, grid=[0.1, 0.2])], "2 rates: three are needed"),
        ([dict(name="a", settings=SETTINGS, iterations=4, grid=[1.0, 0.1])], "the lowest and the highest rate"),
        ([dict(name="a", settings=SETTINGS, iterations=4, grid=[0.1, 1.0], grid_seeds=1)], "two are needed"),
    ],
)
def test_bad_tasks_are_refused_in_a_line(entries, message, tmp_path):
    with pytest.raises(RunError, match=message) as refused:
        tasks(entries, tmp_path, {})
    assert "\n" not in str(refused.value)
