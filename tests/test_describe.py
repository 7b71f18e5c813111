"""What a schedule is said to do, against its own steps and against bug reports of schedules that did something else."""

import copy
import gc
import math
import re
import subprocess
import sys
import weakref
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import count, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler_resume import ALL, beside, fresh_optimizer, in_sequence, seen
from torch.optim import lr_scheduler as theirs
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from toys import every

from modules import schedulers as ours
from modules.describe import describe

WHOLE = {
    **{name: lambda optimizer, make=make: make(optimizer) for name, make in ALL.items()},
    "sequence": lambda optimizer: in_sequence(optimizer, [ALL["LinearLR"], ALL["triangular"]]),
    "chain": lambda optimizer: beside(optimizer, [ALL["ConstantLR"], ALL["ExponentialLR"]]),
    "chain in a sequence": lambda optimizer: in_sequence(
        optimizer, [lambda optimizer: beside(optimizer, [ALL["LinearLR"], ALL["ExponentialLR"]]), ALL["fixed"]]
    ),
    "list": lambda optimizer: [ALL["LinearLR"](optimizer), ALL["ExponentialLR"](optimizer)],
    "annealed": lambda optimizer: ours.Annealed(ALL["triangular"](optimizer), 6, 12),
    "plateau": ReduceLROnPlateau,
}


def steps(optimizer, scheduler, count):
    rates = []
    for _ in range(count):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        for each in scheduler if isinstance(scheduler, list) else [scheduler]:
            each.step(*[1.0] * isinstance(each, ReduceLROnPlateau))
    return np.array(rates)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # torch's first step of a chain
@every("name", WHOLE)
def test_the_rates_are_those_that_its_steps_give_from_the_start_and_from_the_middle(name):
    optimizer = fresh_optimizer()
    scheduler = WHOLE[name](optimizer)
    for iterations in (12, 5):
        found = describe(scheduler, optimizer, iterations)
        expected = steps(optimizer, scheduler, iterations)
        assert np.array_equal(found.rates, expected)
        assert found.resumes
        assert [*found.table["first"], *found.table["last"]] == [*expected[0], *expected[-1]]
        assert found.table["mean"].to_list() == pytest.approx(expected.mean(axis=0))
        assert [expected[at, group] for group, at in enumerate(found.table["highest_at"])] == [*found.table["highest"]]
        assert [*found.table["highest"]] == [*expected.max(axis=0)]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@every(("name", "done"), list(product(WHOLE, (0, 3))))
def test_what_is_yours_stays_as_it_was(name, done):
    optimizer = torch.optim.SGD(fresh_optimizer().param_groups, lr=0.02, momentum=0.9)
    scheduler = WHOLE[name](optimizer)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
    steps(optimizer, scheduler, done)
    schedulers = scheduler if isinstance(scheduler, list) else [scheduler]
    held = [
        vars(optimizer).get("step"),
        *optimizer.param_groups,
        *[x for group in optimizer.param_groups for x in group["params"]],
    ]

    def yours():
        states = [optimizer.state_dict(), *(each.state_dict() for each in schedulers)]
        attributes = {key: x for key, x in vars(optimizer).items() if key not in ("state", "param_groups")}
        groups = [{key: x for key, x in group.items() if key != "params"} for group in optimizer.param_groups]
        return copy.deepcopy(
            [states, groups, seen(optimizer), list(attributes), getattr(optimizer, "_opt_called", None)]
        )

    before, references = yours(), weakref.getweakrefcount(optimizer)
    text = str(describe(scheduler, optimizer, 20))
    assert yours() == before
    now = [
        vars(optimizer).get("step"),
        *optimizer.param_groups,
        *[x for group in optimizer.param_groups for x in group["params"]],
    ]
    assert [id(x) for x in now] == [id(x) for x in held]
    assert weakref.getweakrefcount(optimizer) == references
    assert text


def test_a_description_holds_on_to_nothing_of_yours():
    optimizer = fresh_optimizer()
    scheduler = ALL["triangular"](optimizer)
    found = describe(scheduler, optimizer, 20)
    gone = [weakref.ref(optimizer), weakref.ref(scheduler)]
    del optimizer, scheduler
    gc.collect()
    assert [each() for each in gone] == [None, None]
    assert len(found.rates) == 20


def test_a_scale_function_of_yours_is_not_asked():
    class Shrinking:
        calls = 0

        def __call__(self, cycle):
            self.calls += 1
            return 0.5**self.calls

    optimizer, scale = fresh_optimizer(), Shrinking()
    scheduler = ours.CyclicLR(optimizer, 0.01, 0.1, 3, scale_fn=scale)
    describe(scheduler, optimizer, 20)
    assert scale.calls == 1


def test_a_large_model_is_not_copied(monkeypatch):
    parameter = torch.nn.Parameter(torch.ones(1))
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda *_: pytest.fail("a tensor was copied"))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    describe(CosineAnnealingLR(optimizer, 10), optimizer, 10)


def alone(lr=0.1):
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr, momentum=0.9)


def cosine_of(done):
    return 0.5 * (1 + math.cos(math.pi * done))


def warm(optimizer, behind, total_iters=10, milestone=10):
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.01, total_iters=total_iters), behind(optimizer)], [milestone])


#: name: scheduler, iterations, all warnings. In brackets: who reported it.
REPORTED = {
    "OneCycleLR made for batches, stepped after epochs (pytorch 65417, espnet 3319)": (
        lambda o: OneCycleLR(o, 0.1, epochs=5, steps_per_epoch=1000),
        5,
        ["OneCycleLR: total_steps=5000, but only 5 steps come: it is not annealed", "still climbing at the end"],
    ),
    "OneCycleLR with too few steps (PiFold 6)": (
        lambda o: OneCycleLR(o, 0.1, total_steps=100),
        120,
        ["^Step 101 of 120 fails: Tried to step 101 times"],
    ),
    "a cosine without its warm-up, shorter by it (UniRL 223)": (
        lambda o: CosineAnnealingLR(o, 15 - 5),
        15,
        ["T_max=10, but 15 steps come: the rate rises again after 10", "still climbing at the end, to 0.03455, 35%"],
    ),
    "three cosines for one": (
        lambda o: CosineAnnealingLR(o, 50),
        150,
        ["T_max=50, but 150 steps come: the rate rises"],
    ),
    "a cosine for twice the epochs (CodefyUI 205)": (
        lambda o: CosineAnnealingLR(o, 200),
        100,
        ["T_max=200, but only 100 steps come: it does not get to its end", "still falling at the end, at 0.05079, 51%"],
    ),
    "a cosine whose warm-up was not taken off": (
        lambda o: warm(o, lambda o: CosineAnnealingLR(o, 100)),
        100,
        ["CosineAnnealingLR: T_max=100, but only 90 steps come: it does not get to its end"],
    ),
    "a cosine that ran on during the warm-up (fairchem 1967, timm 1242, S5 11)": (
        lambda o: LambdaLR(o, lambda t: (t + 1) / 200 if t < 200 else cosine_of(t / 1000)),
        1000,
        ["climbs until iteration 199, and then drops at once from 0.1 to 0.09045"],
    ),
    "a warm-up to another rate than the next scheduler's": (
        lambda o: warm(o, lambda o: theirs.CyclicLR(o, 0.001, 0.006, 15, cycle_momentum=False)),
        41,
        ["climbs until iteration 9, and then drops at once from 0.0901 to 0.001"],
    ),
    "a scheduler that forgot to decay (Diffusion-Planner 293)": (
        lambda o: warm(o, lambda o: MultiplicativeLR(o, lambda t: 1.0)),
        100,
        ["does not end low: it ends at 0.0901, 100% of its highest"],
    ),
    "a horizon in epochs, stepped after batches (villa 1495)": (
        lambda o: LambdaLR(o, lambda t: abs(cosine_of(t / 10))),
        105,
        ["low at iteration 10, and rises again from 0 to 0.1", "still falling at the end, at"],
    ),
    "stepped once a process, so at 0 from the middle on (transformers 24088)": (
        lambda o: LambdaLR(o, lambda t: max(0.0, 1 - t / 50)),
        100,
        ["50 of 100 iterations have a rate of 0 or nearly, from iteration 50 on"],
    ),
    "an epoch's gamma, stepped after batches": (
        lambda o: ExponentialLR(o, 0.9),
        1000,
        ["of 1,000 iterations have a rate of 0 or nearly, from iteration 132 on"],
    ),
    "accumulated batches, so a quarter of the steps (diffusers 4387)": (
        lambda o: LambdaLR(o, lambda t: max(0.0, 1 - t / 400)),
        100,
        ["still falling at the end, at 0.07525, 75%"],
    ),
    "milestones in iterations, stepped after epochs (Tacotron 3)": (
        lambda o: MultiStepLR(o, [2, 20_000, 40_000]),
        100,
        ["MultiStepLR: milestones=20000, 40000, but only 100 steps come: they are never reached"],
    ),
    "StepLR never reached": (
        lambda o: StepLR(o, 30),
        30,
        [
            "StepLR: step_size=30, but only 30 steps come",
            "is 0.1 from the first iteration to the last: nothing is annealed",
        ],
    ),
    "a warm-up longer than the run": (
        lambda o: LinearLR(o, 0.01, total_iters=500),
        100,
        ["LinearLR: total_iters=500, but only 100 steps come: the warm-up is not over then", "still climbing"],
    ),
    "a warm-up longer than its turn": (
        lambda o: warm(o, lambda o: CosineAnnealingLR(o, 90), total_iters=50),
        100,
        ["LinearLR: total_iters=50, but only 10 steps come: the warm-up is not over"],
    ),
    "a turn that never comes": (
        lambda o: warm(o, lambda o: CosineAnnealingLR(o, 90), 200, 200),
        100,
        [
            "total_iters=200, but only 100",
            "CosineAnnealingLR never has its turn: its milestone is 200",
            "still climbing",
        ],
    ),
    "a polynomial for longer": (
        lambda o: PolynomialLR(o, 300),
        100,
        ["PolynomialLR: total_iters=300, but only 100 steps come: it does not get to its end", "still falling"],
    ),
    "a constant part longer than the run": (
        lambda o: ConstantLR(o, 0.5, 200),
        100,
        ["ConstantLR: total_iters=200, but only 100 steps come", "nothing is annealed"],
    ),
    "half a cycle longer than the run, ours": (
        lambda o: ours.CyclicLR(o, 0.001, 0.1, 200),
        100,
        ["CyclicLR: step_size=200, but only 100 steps come: it never gets to max_lr", "still climbing"],
    ),
    "half a cycle longer than the run, torch's": (
        lambda o: theirs.CyclicLR(o, 0.001, 0.1, 200, cycle_momentum=False),
        100,
        ["CyclicLR: step_size_up=200, but only 100 steps come: it never gets to max_lr", "still climbing"],
    ),
    "a stop in the middle of a restart": (
        lambda o: CosineAnnealingWarmRestarts(o, 10, 2),
        100,
        ["still falling at the end, at 0.07093, 71%"],
    ),
    "a range test cut off": (
        lambda o: ours.RangeTestLR(o, 0.001, 1, 200),
        100,
        ["RangeTestLR: iterations=200, but only"],
    ),
    "a metric to follow": (ReduceLROnPlateau, 100, ["ReduceLROnPlateau follows a metric, and there is none yet"]),
    "a rate below 0": (lambda o: LambdaLR(o, lambda t: 1 - t / 50), 100, ["Iteration 51 has the rate -0.002"]),
    "no number": (lambda o: LambdaLR(o, lambda t: 1.0 if t < 7 else math.nan), 10, ["Iteration 7 has the rate nan"]),
    "an anneal that ends after the run": (
        lambda o: ours.Annealed(ours.fixed(o, 0.1, ()), 50, 200),
        100,
        ["Annealed.*end=200, but only 100 steps come: it does not get to 0", "still falling"],
    ),
}


@every("name", REPORTED)
def test_what_others_reported_is_said(name):
    make, iterations, expected = REPORTED[name]
    optimizer = alone()
    found = describe(make(optimizer), optimizer, iterations).warnings
    assert len(found) == len(expected), found
    for said, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, said)


@every(
    ("make", "iterations"),
    [
        (lambda o: OneCycleLR(o, 0.1, total_steps=100), 100),
        (lambda o: OneCycleLR(o, 0.1, total_steps=105), 100),
        (lambda o: CosineAnnealingLR(o, 100), 100),
        (lambda o: CosineAnnealingLR(o, 99), 100),
        (lambda o: warm(o, lambda o: CosineAnnealingLR(o, 90)), 100),
        (lambda o: warm(o, lambda o: MultiStepLR(o, [50, 80])), 100),
        (lambda o: MultiStepLR(o, [50, 75]), 100),
        (lambda o: StepLR(o, 1, 0.8), 30),
        (lambda o: StepLR(o, 30), 90),
        (lambda o: ExponentialLR(o, 0.9), 30),
        (lambda o: PolynomialLR(o, 5), 5),
        (lambda o: LambdaLR(o, lambda t: min(t / 10, (100 - t) / 90)), 100),  # transformers' own starts at 0
        (lambda o: CosineAnnealingWarmRestarts(o, 10), 100),
        (lambda o: ours.CyclicLR(o, 0.005, 0.1, 10), 101),
        (lambda o: ours.CyclicLR(o, 0.005, 0.1, 10, "triangular2"), 100),
        (lambda o: ours.Annealed(ours.CyclicLR(o, 0.02, 0.1, 10), 75, 100), 100),
        (lambda o: ours.decay(o, 0, 0.1, 100), 100),
        (lambda o: ours.RangeTestLR(o, 0.001, 1, 100, "exponential"), 100),
        (lambda o: [LinearLR(o, 0.01, total_iters=5), ExponentialLR(o, 0.95)], 100),
        (lambda o: ExponentialLR(o, 0.5), 1),
    ],
)
def test_of_a_schedule_that_fits_nothing_is_said(make, iterations):
    optimizer = alone()
    found = describe(make(optimizer), optimizer, iterations)
    assert found.warnings == (
        [] if iterations > 1 else ["The rate is 0.1 from the first iteration to the last: nothing is annealed."]
    )
    assert found.table["ends_low"].to_list() == [iterations > 1 and found.name != "RangeTestLR"]


class Forgetful(LRScheduler):
    """Its state lacks what its rates depend on."""

    def __init__(self, optimizer, half=0.5):
        self.factor, self.half = 1.0, half
        super().__init__(optimizer)

    def get_lr(self):
        self.factor *= self.half
        return [lr * self.factor for lr in self.base_lrs]

    def state_dict(self):
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}


class Unsaved(ExponentialLR):
    def state_dict(self):
        return {"file": sys.stdout.buffer}


class Unread(ExponentialLR):
    def load_state_dict(self, state_dict):
        raise KeyError("gamma")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Forgetful, "Stopped at 1 and resumed, it has other rates: iteration 2 has 0.025 instead of 0.0125."),
        (
            lambda o: LambdaLR(o, partial(lambda draw, t: next(draw), count(1))),
            "Stopped at 1 and resumed, it has other",
        ),
        (lambda o: Unsaved(o, 0.5), "Stopped at 1, its state cannot be saved: "),
        (lambda o: Unread(o, 0.5), "Stopped at 1, it does not resume: 'gamma'"),
        (lambda o: warm(o, Forgetful), "Stopped at 25 and resumed, it has other rates: iteration 26"),
    ],
)
def test_a_schedule_that_does_not_resume_is_told(make, message):
    optimizer = alone()
    found = describe(make(optimizer), optimizer, 100)
    assert not found.resumes
    assert found.warnings[0].startswith(message)
    assert "to OTHER rates" in str(found)


@given(rates=st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.03, 0.1, 1.0]), min_size=1, max_size=30))
@settings(max_examples=100)
def test_phases_cover_the_run_and_go_where_they_say(rates):
    optimizer = alone(1.0)
    found = describe(LambdaLR(optimizer, lambda t: rates[min(t, len(rates) - 1)]), optimizer, len(rates)).phases
    assert [*found["start"], len(rates) - 1] == [0, *found["stop"]]
    for phase in found.itertuples():
        assert (phase.before, phase.after) == (rates[phase.start], rates[phase.stop])
        between = np.sign(np.diff(rates[phase.start : phase.stop + 1]))
        way = {"climbs": 1, "jumps up": 1, "falls": -1, "drops": -1, "stays": 0}[phase.what]
        assert set(between) - {0} == {way} - {0}  # a top between two iterations may be part of a climb
        assert phase.what not in ("jumps up", "drops") or phase.stop == phase.start + 1


@every(
    ("make", "iterations", "expected"),
    [
        (lambda o: MultiStepLR(o, [4, 8]), 11, "stays, drops, stays, drops, stays"),
        (lambda o: ours.CyclicLR(o, 0.01, 0.1, 4), 11, "climbs, falls, climbs"),
        (lambda o: CosineAnnealingWarmRestarts(o, 5), 10, "falls, jumps up, falls"),
        (lambda o: LinearLR(o, 0.1, total_iters=5), 11, "climbs, stays"),
        (lambda o: ConstantLR(o, 0.1, total_iters=5), 11, "stays, jumps up, stays"),
        (lambda o: LambdaLR(o, lambda t: 1 + min(t, 10 - t)), 11, "climbs, falls"),
        (
            lambda o: LambdaLR(o, lambda t: 1 + min(t, 9 - t)),
            10,
            "climbs, falls",
        ),  # its top lies between two iterations
        (lambda o: LambdaLR(o, lambda t: 1 + t % 5), 10, "climbs, drops, climbs"),
        (lambda o: ExponentialLR(o, 0.5), 11, "falls"),
    ],
)
def test_climbs_falls_drops_and_jumps_are_told_apart(make, iterations, expected):
    optimizer = alone()
    assert ", ".join(describe(make(optimizer), optimizer, iterations).phases["what"]) == expected


def test_groups_of_one_shape_are_told_once_and_others_by_their_number():
    optimizer = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.01, 0.0, 0.2)]
    )
    found = describe(LambdaLR(optimizer, [lambda t: 0.9**t] * 3 + [lambda t: 1.0]), optimizer, 50)
    assert found.alike == [0, 0, 2, 3]
    assert found.phases["group"].to_list() == [0, 2, 3]
    assert found.warnings == ["Group 3: The rate is 0.2 from the first iteration to the last: nothing is annealed."]
    assert found.table["highest"].to_list() == [0.1, 0.01, 0, 0.2]
    assert "group 0 (the same shape: 1)" in str(found)


def test_the_text_has_it_all():
    optimizer = alone()
    text = str(describe(warm(optimizer, lambda o: MultiStepLR(o, [40, 200])), optimizer, 100))
    for part in (
        "SequentialLR(LinearLR, MultiStepLR), 100 iterations",
        "0.001      0.1          10",
        "0 to 10  climbs from 0.001 to 0.1",
        "50  drops from 0.1 to 0.01",
        "50 to 99  stays at 0.01",
        "Stopped at 1, 25, 50, 75, it resumes to the same rates.",
        "- MultiStepLR: milestones=200, but only 90 steps come: they are never reached.",
    ):
        assert part in text
    optimizer = alone()
    text = str(describe(ours.CyclicLR(optimizer, 0.005, 0.1, 1), optimizer, 51))
    assert "38 more in phases" in text
    assert text.endswith("No warnings.")


@pytest.mark.ci
def test_a_picture_is_drawn_and_matplotlib_waits_for_it():
    code = (
        "import sys, torch\n"
        "from modules.describe import describe\n"
        "optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)\n"
        "found = describe(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), optimizer, 40)\n"
        "str(found)\n"
        "assert 'matplotlib' not in sys.modules\n"
        "axes, = found.figure().axes\n"
        "line, = axes.lines\n"
        "assert (line.get_ydata() == found.rates[:, 0]).all()\n"
        "assert axes.get_title() == 'ExponentialLR'\n"
        "from matplotlib import pyplot\n"
        "assert not pyplot.get_fignums()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_groups_of_equal_rates_are_one_line_of_the_picture():
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.01, 0.1)])
    axes = describe(ExponentialLR(optimizer, 0.9), optimizer, 40).figure().axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["group 0, 2", "group 1"]


class Wrapped:
    def __init__(self, scheduler):
        self.scheduler = scheduler


def test_what_cannot_be_described_is_refused_in_a_line():
    optimizer = alone()
    scheduler = ExponentialLR(optimizer, 0.9)
    for arguments, error, message in (
        ((Wrapped(scheduler), optimizer, 10), TypeError, "not Wrapped; give the one in its attribute scheduler"),
        ((optimizer, optimizer, 10), TypeError, "scheduler must be torch's, or a list of these, not SGD"),
        (([], optimizer, 10), TypeError, "scheduler must be torch's, or a list of these, not NoneType"),
        ((scheduler, torch.nn.Linear(1, 1), 10), TypeError, "optimizer must be a torch optimizer, not Linear"),
        (
            (scheduler, alone(), 10),
            ValueError,
            "optimizer must be the one that ExponentialLR was made with, not another",
        ),
        ((scheduler, optimizer, 0), ValueError, "iterations must be a count, not 0"),
        ((scheduler, optimizer, 10.5), ValueError, "iterations must be a count, not 10.5"),
        ((scheduler, optimizer, True), ValueError, "iterations must be a count, not True"),
    ):
        with pytest.raises(error, match=f"{message}$"):
            describe(*arguments)
    assert len(describe(scheduler, optimizer, np.int64(10)).rates) == 10
    scheduler.file = sys.stdout.buffer
    with pytest.raises(ValueError, match="^scheduler cannot be copied: "):
        describe(scheduler, optimizer, 10)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """What the README's blocks on schedules leave, what they print, and every rate that they trained with."""
    text = (Path(__file__).resolve().parents[1] / "modules" / "README.md").read_text()
    section = text[text.index("## What a schedule will do") : text.index("## The cycle")]
    torch.manual_seed(0)
    loader = [(torch.randn(4, 3), torch.randint(2, (4,))) for _ in range(30)]
    names = {"torch": torch, "model": torch.nn.Linear(3, 2), "loader": loader, "loss_fn": torch.nn.CrossEntropyLoss()}
    trained = []
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(compile(code, "README.md", "exec"), names)
            if "def train(" in code:
                names["train"] = partial(noting, names["train"], trained)
        assert Path("schedule.png").stat().st_size > 1000
    return section, names, printed.getvalue(), trained


def noting(train, trained, model, optimizer, scheduler, iterations):
    trained.append([])
    for _ in range(iterations):
        trained[-1].append(optimizer.param_groups[0]["lr"])
        train(model, optimizer, scheduler, 1)


def test_what_the_readme_says_is_printed_is_printed(recipes):
    section, _, printed, _ = recipes
    shown = re.search(r"```text\n(.*?)```", section, re.DOTALL)[1]
    assert printed.startswith(shown)


def test_a_drop_branched_off_a_trunk_falls_to_0_and_leaves_the_trunk(recipes):
    _, names, _, (trunk, drop, later, *_) = recipes
    assert trunk == later == [0.05] * 60
    assert drop == pytest.approx([0.05 * (1 - t / 20) for t in range(20)])
    assert names["falling"].state_dict()["state"]  # the momentum went along


def test_a_second_cool_down_climbs_falls_and_ends_at_0(recipes):
    _, names, printed, (_, _, _, second, *_) = recipes
    climb = [0.05 * (0.1 + 0.9 * t / 10) for t in range(10)]
    assert second == pytest.approx(climb + [0.05 * (1 - t / 40) for t in range(40)])
    assert names["second"].get_last_lr() == pytest.approx([0])
    assert printed.endswith("No warnings.\n")


def test_a_scheduler_made_at_a_rate_of_0_stays_there_as_the_readme_says(recipes):
    optimizer = torch.optim.SGD(torch.nn.Linear(3, 2).parameters(), lr=0.05, momentum=0.9)
    optimizer.load_state_dict(recipes[1]["falling"].state_dict())
    found = describe(LinearLR(optimizer, 1.0, 0.0, total_iters=50), optimizer, 50)
    assert not found.rates.any()
    assert found.warnings == ["The rate is 0 all the time: nothing is trained."]


def test_warm_up_stable_decay_has_its_length_from_one_number_also_after_a_stop(recipes):
    _, names, _, (*_, first, rest) = recipes
    assert first == pytest.approx([0.05 * min(1, (t + 1) / 5) for t in range(70)])
    assert rest == pytest.approx([0.05 * min(1, (200 - t) / 40) for t in range(70, 200)])
    assert names["longer"].get_last_lr() == [0]


def test_a_schedule_whose_first_step_fails_is_described_as_far_as_it_goes():
    optimizer = fresh_optimizer()
    scheduler = LambdaLR(optimizer, [1.0].__getitem__)
    found = describe(scheduler, optimizer, 5)
    assert len(found.rates) == 1
    assert found.warnings[0].startswith("Step 1 of 5 fails: list index out of range")
    assert "stays" in str(found)
