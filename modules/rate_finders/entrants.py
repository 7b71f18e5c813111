"""Who takes part in the benchmark beside the rules that read a ramp.

A *search* spends a budget of iterations on short trainings with the schedule that will be used, and answers with a
rate. An optimizer that says it needs no rate, and the rate that people take without a test, search nothing: they train
for as many iterations longer, and answer with the accuracy that this leads to.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from modules.data.batches import Data, batches
from modules.data.datasets import load
from modules.data.splits import split
from modules.range_test import range_test
from modules.range_test.loop import validate
from modules.rate_finders.race import find_rate
from modules.rate_finders.rules import RULES
from modules.rate_finders.trials import SCHEDULES, Trials, schedule_of
from modules.runs.spec import Spec
from modules.runs.training import (
    EVALUATION_BATCH,
    accuracy_of,
    build,
    draw_from,
    evaluate,
    make_optimizer,
    one_thread,
    step,
)
from modules.statistics import AnalysisError

LOW, HIGH = 1e-5, 1.0  # what people give a search of rates
SHARE = 4  # a search's longest training is the budget divided by this
REPORTS = 9  # validations of such a training, after which it may be stopped
WARM_UP = 20  # the iterations of a schedule-free training divided by this: its authors' advice is 5 %


class Batches:
    """A task's training batches, from the first one on each time they are gone through; they do not end."""

    def __init__(self, data: Data, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for which in batches(len(self.data.split.train), self.batch_size, self.seed):
            images, labels = self.data.batch(which)
            yield self.data.pixels(images), labels


class Problem:
    """What an engineer has before a training: a network, an optimizer, a loss, batches.

    Args:
        spec: of a training; its policy is not used, its seed draws the weights and orders the images.
        data_dir: as for `datasets.load`.

    Attributes:
        model, optimizer, batches, validation: as `find_rate` takes them.
        iterations: of the training to come.
    """

    loss_fn = staticmethod(F.cross_entropy)

    def __init__(self, spec: Spec, data_dir: str | Path | None = None) -> None:
        dataset = load(spec.dataset, data_dir)
        self.spec, self.iterations = spec, spec.iterations
        self.data = Data(split(dataset, spec.split, spec.seed), torch.device("cpu"), spec.pixels)
        torch.manual_seed(spec.seed)
        self.model: nn.Module = build(spec, dataset).to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(spec, self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01  # any above 0: of one group, it says nothing
        self.batches = Batches(self.data, spec.batch_size, spec.seed)
        images, labels = self.data.part("validation")
        pieces = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
        self.validation = [(self.data.pixels(some), their) for some, their in pieces]
        self.autocast = torch.bfloat16 if spec.precision == "bfloat16" else None

    def trials(self, schedule: str) -> Trials:
        """Short trainings of it that leave no trace."""
        make_scheduler, _ = schedule_of(schedule)
        shared = dict(forward=None, accumulate=1, autocast=self.autocast, scaler=None, keep_ratios=True)
        return Trials(self.model, self.optimizer, self.loss_fn, self.batches, self.validation, make_scheduler, **shared)

    def trained(self, optimizer: Optimizer, schedule: str | None, iterations: int) -> float:
        """Train to the end, and read the test accuracy; chance, where the loss is not finite.

        Args:
            optimizer: over the model's parameters, with the rate that the schedule is made at.
            schedule: None leaves the rate to the optimizer.
            iterations: of the training.
        """
        make_scheduler, _ = schedule_of(schedule or "constant")
        scheduler = make_scheduler(optimizer, iterations)
        for number, (inputs, labels) in enumerate(islice(self.batches, iterations)):
            draw_from(self.spec.seed, number, torch.device("cpu"))
            if not step(self.model, optimizer, inputs, labels, self.spec.precision).isfinite():
                return 1 / int(self.data.labels.max() + 1)
            scheduler.step()
        if schedule is None and hasattr(optimizer, "eval"):  # schedule-free evaluates other weights than it trains
            optimizer.eval()
        return accuracy_of(evaluate(self.model, self.data)[1])


@dataclass(frozen=True)
class Entrant:
    """One that takes part.

    Attributes:
        run: called with a problem, a schedule and the iterations to spend on a search; a rate, or an accuracy.
        answers: `rate` or `accuracy`.
        source: who has it.
        schedules: that it is tried with; of one that has none of its own the answer counts for all.
        repeats: at most so many.
    """

    run: Callable[[Problem, str, int], float]
    answers: str
    source: str
    schedules: tuple[str, ...] = tuple(SCHEDULES)
    repeats: int = 1000


def race(problem: Problem, schedule: str, budget: int) -> float:
    """A ramp, then two rounds of short trainings at rates below those at which it diverged: `find_rate`."""
    return find_rate(
        problem.model,
        problem.optimizer,
        problem.loss_fn,
        problem.batches,
        problem.validation,
        iterations=problem.iterations,
        schedule=schedule,
        budget=budget,
        autocast=problem.autocast,
    ).rate


def peak_of_range_test(problem: Problem, schedule: str, budget: int) -> float:
    """A third of the rate where the accuracy peaks on a ramp of `range_test`, which lets no batch normalisation lag."""
    shared = dict(validation=problem.validation, iterations=budget, autocast=problem.autocast)
    curve = range_test(problem.model, problem.optimizer, problem.loss_fn, problem.batches, **shared)
    return RULES["accuracy peak / 3"](curve.lr.to_numpy(), curve.accuracy.to_numpy())


def random_search(problem: Problem, schedule: str, budget: int) -> float:
    """Four rates of a wide range, drawn evenly over its logarithm, a quarter of the budget each."""
    trials, length = problem.trials(schedule), max(1, budget // SHARE)
    draw = np.random.default_rng(problem.spec.seed)
    rates = np.exp(draw.uniform(math.log(LOW), math.log(HIGH), budget // length))
    losses = np.array([trials.train(rate, length, lambda more: None)[0] for rate in rates])
    return float(rates[np.nanargmin(losses)]) if np.isfinite(losses).any() else math.nan


def _optuna(problem: Problem, schedule: str, budget: int, make_pruner: Callable[[int, int], Any]) -> float:
    """Optuna's own sampler proposes rates, its pruner stops trainings; until the budget is spent."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials, longest = problem.trials(schedule), max(1, budget // SHARE)
    every, left = max(1, longest // REPORTS), budget

    def objective(trial: optuna.Trial) -> float:
        trained, rate = 0, trial.suggest_float("rate", LOW, HIGH, log=True)

        def done(more: int) -> None:
            nonlocal trained, left
            trained, left = trained + more, left - more
            if trained % every == 0:
                trial.report(validate(problem.model, problem.validation, trials.measure)[0], trained)
                if trial.should_prune():
                    raise optuna.TrialPruned
            if left == 0 and trained < longest:
                raise optuna.TrialPruned

        return trials.train(rate, longest, done)[0]

    sampler = optuna.samplers.TPESampler(seed=problem.spec.seed % 2**32)
    study = optuna.create_study(sampler=sampler, pruner=make_pruner(every, longest))
    while left > 0:
        study.optimize(objective, n_trials=1)
    ended = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    return study.best_params["rate"] if ended else math.nan


def optuna_halving(problem: Problem, schedule: str, budget: int) -> float:
    """Optuna's `SuccessiveHalvingPruner`: a third of the trainings goes on at each rung."""
    import optuna

    return _optuna(
        problem,
        schedule,
        budget,
        lambda every, longest: optuna.pruners.SuccessiveHalvingPruner(min_resource=every, reduction_factor=3),
    )


def optuna_hyperband(problem: Problem, schedule: str, budget: int) -> float:
    """Optuna's `HyperbandPruner`: successive halvings, of which some stop trainings later than others."""
    import optuna

    return _optuna(
        problem,
        schedule,
        budget,
        lambda every, longest: optuna.pruners.HyperbandPruner(every, max_resource=longest, reduction_factor=3),
    )


def _groups(problem: Problem) -> list[dict]:
    """The parameters and decays of the task's own optimizer, without its rates."""
    return [
        {"params": group["params"], "weight_decay": group["weight_decay"]} for group in problem.optimizer.param_groups
    ]


def _scaled(problem: Problem) -> bool:
    """Whether the task's own optimizer divides steps by the gradient's size, as Adam does."""
    return "betas" in problem.optimizer.param_groups[0]


def default(problem: Problem, schedule: str, budget: int) -> float:
    """The rate that people take without a test: 0.01, and 0.001 for Adam and its like."""
    for group in problem.optimizer.param_groups:
        group["lr"] = (0.001 if _scaled(problem) else 0.01) * group.get("lr_mult", 1.0)
    return problem.trained(problem.optimizer, schedule, problem.iterations + budget)


def prodigy(problem: Problem, schedule: str, budget: int) -> float:
    """Prodigy with its defaults. Source: Mishchenko and Defazio, arXiv:2306.06101; pytorch_optimizer's."""
    from pytorch_optimizer import Prodigy

    return problem.trained(Prodigy(_groups(problem), lr=1.0), schedule, problem.iterations + budget)


def d_adaptation(problem: Problem, schedule: str, budget: int) -> float:
    """D-adaptation, of SGD or Adam, with its defaults.

    Source: Defazio and Mishchenko, arXiv:2301.07733; pytorch_optimizer's.
    """
    from pytorch_optimizer import DAdaptAdam, DAdaptSGD

    kind = DAdaptAdam if _scaled(problem) else DAdaptSGD
    return problem.trained(kind(_groups(problem), lr=1.0), schedule, problem.iterations + budget)


def schedule_free(problem: Problem, schedule: str, budget: int) -> float:
    """Schedule-free SGD or AdamW with the rates that its package has as defaults, 1.0 and 0.0025, and a warm-up.

    Source: Defazio et al., arXiv:2405.15682; their package.
    """
    from schedulefree import AdamWScheduleFree, SGDScheduleFree

    iterations = problem.iterations + budget
    kind = AdamWScheduleFree if _scaled(problem) else SGDScheduleFree
    optimizer = kind(_groups(problem), warmup_steps=iterations // WARM_UP)
    optimizer.train()
    return problem.trained(optimizer, None, iterations)


PEAK_OF_RANGE_TEST = "range_test, accuracy peak / 3"
FALLING = ("constant", "linear")

ENTRANTS: Mapping[str, Entrant] = {
    "find_rate": Entrant(race, "rate", "this project"),
    PEAK_OF_RANGE_TEST: Entrant(peak_of_range_test, "rate", "this project", FALLING[:1]),
    "random search": Entrant(random_search, "rate", "Bergstra and Bengio, JMLR 2012"),
    "Optuna, successive halving": Entrant(optuna_halving, "rate", "Optuna"),
    "Optuna, Hyperband": Entrant(optuna_hyperband, "rate", "Optuna"),
    "default (0.01, Adam 0.001)": Entrant(default, "accuracy", "habit", repeats=4),
    "Prodigy": Entrant(prodigy, "accuracy", "arXiv:2306.06101", FALLING, repeats=4),
    "D-adaptation": Entrant(d_adaptation, "accuracy", "arXiv:2301.07733", FALLING, repeats=4),
    "schedule-free": Entrant(schedule_free, "accuracy", "arXiv:2405.15682", FALLING[:1], repeats=4),
}


def entered(name: str, spec: Spec, schedule: str, budget: int, data_dir: str | Path | None) -> float:
    """What an entrant answers; NaN where it gives no answer.

    Args:
        name: of `ENTRANTS`.
        spec: of the training to come.
        schedule: of `trials.SCHEDULES`.
        budget: iterations of a search.
        data_dir: as for `datasets.load`.
    """
    with one_thread():
        try:
            return float(ENTRANTS[name].run(Problem(spec, data_dir), schedule, budget))
        except AnalysisError:
            return math.nan
