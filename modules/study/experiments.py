"""The experiments: from a notebook's parameters to its runs, with everything looked for that can be wrong with them.

Each function is the `check` cell of one notebook: it takes the notebook's parameters, in their order, and returns the
runs by the folder of the results folder that they go to. It trains nothing and changes no file. Whatever a run's `Spec`
has beyond the parameters goes through `settings`.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, ValidationError, validate_call

from modules import policies as registry
from modules.checks import (
    RunError,
    at_root,
    check_file,
    check_folder,
    complaints,
    did_you_mean,
    positive,
    seeds,
    short,
    whole,
)
from modules.data import datasets
from modules.data.splits import Split, split
from modules.range_test import best_rate
from modules.rate_finders.benchmark import SCHEDULES, Task
from modules.rate_finders.benchmark import tasks as tasks_of
from modules.report import advice, tables
from modules.report.comparison import TABLES
from modules.report.formatting import read_reference
from modules.runs import parallel
from modules.runs.files import RunFiles, complete_runs
from modules.runs.spec import Spec, spec
from modules.schedulers import CyclicLR
from modules.statistics import AnalysisError
from modules.study.tournament import Registration, Tournament

Runs = dict[str, list[Spec]]

#: What `settings` cannot say: the experiment itself does.
DECIDED = ("dataset", "policy", "variant", "iterations", "evaluate_every", "seed", "keep_weights", "registration")

LEAST_RAMP = 100  # iterations: with fewer every rule is worse
LEAST_TRAINING = 400  # iterations

#: best_lr's own defaults for its wide residual network. LeNet takes no others.
WIDE = dict(
    depth=28,
    width=10,
    kernel_initializer="he_normal",
    activation="relu",
    weight_decay=0.0005,
    augment="flip_crop",
)


class Pending(AnalysisError):
    """All that can be checked is well, and the runs are not known before the range test has run."""


def _checked(function: Callable) -> Callable:
    """The function with its arguments held to its annotations, in the project's folder.

    Raises:
        RunError: an argument is of another type; the message is one line that names it.
    """
    strict = validate_call(config=ConfigDict(strict=True))(function)
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args, **kwargs):
        at_root()
        try:
            return strict(**signature.bind(*args, **kwargs).arguments)
        except ValidationError as error:
            raise RunError(complaints(error, signature.parameters)) from None

    return call


def _free(settings: dict, *own: str, name: str = "settings") -> dict:
    """`settings`, when all of them are free: settings of a run that neither the experiment nor a parameter decides.

    Raises:
        RunError: they are not.
    """
    for key, value in settings.items():
        if name == "settings" and key not in Spec.model_fields:
            hint = did_you_mean(str(key), set(Spec.model_fields).difference(DECIDED, own))
            raise RunError(f"{name}: {short(key)} (value {short(value)}): no such setting of a run{hint}")
        if key in own or (name == "settings" and key in DECIDED):
            raise RunError(f"{name}: {key} (value {short(value)}) is decided by the notebook, or has its own parameter")
    return settings


def _check_reference(reference: str | None) -> None:
    if reference is not None:
        check_file("reference", reference)
        read_reference(reference)


@_checked
def learning_rates(
    small_rate: float, good_rate: float, large_rate: float, noise: float, steps: int, results_dir: str
) -> Runs:
    """Notebook 0 trains no network; it only has parameters.

    Raises:
        RunError: they make no sense.
    """
    if whole("steps", steps) < 80:
        raise RunError(f"steps={steps}: at least 80 are needed for the cycles of the last picture")
    rates = dict(small_rate=small_rate, good_rate=good_rate, large_rate=large_rate)
    for name, value in (rates | {"noise": noise}).items():
        positive(name, value)
    if not small_rate < good_rate < large_rate < 2:
        said = ", ".join(f"{name}={value!r}" for name, value in rates.items())
        raise RunError(f"rates must grow and stay below 2: {said}")
    return {}


@_checked
def schedulers(base_lr: float, max_lr: float, step_size: int, gamma: float, iterations: int, results_dir: str) -> Runs:
    """Notebook 1 trains nothing; it only has parameters.

    Raises:
        ValueError: they make no sense.
    """
    whole("iterations", iterations)
    whole("step_size", step_size)
    if not 0 < gamma <= 1:
        raise RunError(f"gamma={short(gamma)}: a decay above 0 and not above 1 is needed")
    CyclicLR(torch.optim.SGD([torch.zeros(1)], lr=1), base_lr, max_lr, step_size, gamma=gamma)
    return {}


@_checked
def range_test(
    dataset: str,
    data_dir: str | None,
    model: str,
    batch_size: int,
    min_lr: float,
    max_lr: float,
    ramp: str,
    iterations: int,
    evaluate_every: int,
    runs: int,
    settings: dict,
    workers: int | None,
    results_dir: str,
) -> Runs:
    """Notebook 2: one ramp of the learning rate for each seed, in `range_test`.

    Raises:
        RunError, DataError: a parameter is wrong, or the folder holds other runs.
    """
    own = dict(dataset=dataset, model=model, batch_size=batch_size)
    own |= dict(policy=dict(name="range_test", min_lr=min_lr, max_lr=max_lr, ramp=ramp))
    own |= dict(iterations=iterations, evaluate_every=evaluate_every)
    specs = [spec(**_free(settings, *own), **own, seed=seed) for seed in seeds(runs)]
    if iterations < 12 * evaluate_every:
        raise RunError(
            f"evaluate_every={evaluate_every}: a range test of {iterations} iterations needs at least 12 evaluations"
        )
    parallel.check_all(specs, f"{results_dir}/range_test", data_dir, workers)
    return {"range_test": specs}


@_checked
def headline(
    dataset: str,
    data_dir: str | None,
    model: str,
    batch_size: int,
    fixed_lr: float,
    fixed_milestones: list,
    fixed_gamma: float,
    fixed_iterations: int,
    clr_policy: str,
    base_lr: float | None,
    max_lr: float | None,
    step_size: int,
    gamma: float | None,
    clr_settings: dict,
    clr_iterations: int,
    evaluate_every: int,
    runs: int,
    settings: dict,
    workers: int | None,
    results_dir: str,
) -> Runs:
    """Notebook 3: the fixed policy and its challenger, seed by seed, in `headline`.

    The challenger is any policy of `policies.POLICIES`. Where it has a `base_lr` and a `max_lr` and none are given,
    they are those of the range test in the results folder.

    Raises:
        Pending: they are, and the range test has not run yet.
        RunError, DataError: a parameter is wrong, or the folder holds other runs.
    """
    folder = Path(results_dir) / "headline"
    kind = registry.kinds().get(clr_policy)
    fields = kind.model_fields if kind else {}
    if clr_policy == "fixed":
        raise RunError("clr_policy='fixed': the baseline is fixed already, choose another policy")
    asked = dict(base_lr=base_lr, max_lr=max_lr, gamma=gamma)
    clr = {"name": clr_policy, **{name: value for name, value in asked.items() if value is not None}}
    if "step_size" in fields:
        clr["step_size"] = step_size
    clr |= _free(clr_settings, "name", "base_lr", "max_lr", "step_size", "gamma", name="clr_settings")
    missing = [name for name in ("base_lr", "max_lr") if name in fields and name not in clr]
    if missing and ("base_lr" in clr or "max_lr" in clr):
        raise RunError(f"give both bounds or neither: {base_lr=}, {max_lr=}")

    def all_specs(policy: dict) -> list[Spec]:
        fixed = dict(name="fixed", lr=fixed_lr, milestones=fixed_milestones, gamma=fixed_gamma)
        own = dict(dataset=dataset, model=model, batch_size=batch_size, evaluate_every=evaluate_every)
        lengths = ((fixed, fixed_iterations), (policy, clr_iterations))
        return [
            spec(**_free(settings, *own), **own, policy=policy, iterations=iterations, seed=seed)
            for seed in seeds(runs)
            for policy, iterations in lengths
        ]

    there = {run.name.rpartition("-seed")[0] for run in complete_runs(folder)}
    if others := sorted(there - {"fixed", clr_policy}):
        raise RunError(f"clr_policy={clr_policy!r}: {folder} holds runs of {', '.join(others)}, use another RESULTS")
    if missing and clr_policy in there:
        tested = len(complete_runs(Path(results_dir) / "range_test", "range_test"))
        if tested not in (0, len(seeds(runs))):
            raise RunError(
                f"runs={runs}: {folder} holds runs between the bounds of {tested} range tests, and another number "
                "would move them: give base_lr and max_lr, or use another RESULTS"
            )
    if missing:
        try:
            bounds = dict(zip(("base_lr", "max_lr"), tables.read_bounds(results_dir), strict=True))
        except AnalysisError as error:
            guess = {name: value for name, value in (("base_lr", 1e-3), ("max_lr", 1e-2)) if name in missing}
            parallel.check_all(all_specs(clr | guess), folder / "bounds-pending", data_dir, workers)
            raise Pending(str(error)) from None
        clr |= {name: bounds[name] for name in missing}
    specs = all_specs(clr)
    parallel.check_all(specs, folder, data_dir, workers)
    return {"headline": specs}


@_checked
def headline_figures(
    baseline: str, challenger: str | None, reference: str | None, results_dir: str, published_dir: str
) -> Runs:
    """Notebook 4 reads what notebook 3 wrote, and trains nothing.

    Raises:
        RunError, AnalysisError: a policy that there is not, or a reference that cannot be read.
    """
    known = registry.kinds()
    for name, policy in (("baseline", baseline), ("challenger", challenger)):
        if policy not in known and (name, policy) != ("challenger", None):
            raise RunError(f"{name}={short(policy)}: one of {', '.join(known)} is needed")
    if baseline == challenger:
        raise RunError(f"baseline and challenger are the same policy: {baseline!r}")
    _check_reference(reference)
    return {}


@_checked
def policies(
    dataset: str,
    data_dir: str | None,
    model: str,
    batch_size: int,
    policies: list,
    compare: list,
    ablation: list,
    range_test: dict | None,
    evaluate_every: int,
    runs: int,
    reference: str | None,
    settings: dict,
    workers: int | None,
    results_dir: str,
) -> Runs:
    """Notebook 5: any policies in one setting, in `policies`; one setting at a time, in `ablation`; and a range test.

    Raises:
        RunError, DataError, AnalysisError: a parameter is wrong, or a folder holds other runs.
    """
    own = dict(dataset=dataset, model=model, batch_size=batch_size, evaluate_every=evaluate_every)
    base = _free(settings, *own) | own

    def all_specs(name: str, entries: list) -> list[Spec]:
        """The runs of a list of entries, seed by seed."""
        for entry in entries:
            if not isinstance(entry, dict) or not {"variant", "policy", "iterations"} <= entry.keys():
                raise RunError(f"{name}: an entry with variant, iterations and policy is needed, not {short(entry)}")
            if same := entry.keys() & {"seed", "dataset", "keep_weights", "evaluation"}:
                raise RunError(f"{name}: {', '.join(sorted(same))} cannot differ between the entries: {short(entry)}")
        return [spec(**{**base, **entry, "seed": seed}) for seed in seeds(runs) for entry in entries]

    if not policies:
        raise RunError("policies=[]: at least one is needed")
    _check_reference(reference)
    variants = [entry["variant"] for entry in policies if isinstance(entry, dict) and "variant" in entry]
    tables.check_compare(compare, variants)
    parts = {"policies": all_specs("policies", policies), "ablation": all_specs("ablation", ablation)}
    if range_test is not None:
        lengths = {key: value for key, value in range_test.items() if key in ("iterations", "evaluate_every")}
        ramp = {"name": "range_test", **{key: value for key, value in range_test.items() if key not in lengths}}
        parts["policies_range_test"] = [spec(**{**base, **lengths, "policy": ramp, "seed": k}) for k in seeds(runs)]
    for part, specs in parts.items():
        parallel.check_all(specs, f"{results_dir}/{part}", data_dir, workers)
    return parts


def _train_count(data: datasets.Dataset, settings: dict) -> int:
    """How many images a run trains on: of its split, if it has one of its own."""
    return split(data, settings.get("split", "standard"), seed=1).sizes["train"]


@_checked
def best_lr(
    dataset: str,
    data_dir: str | None,
    model: str | None,
    depth: int,
    width: int,
    kernel_initializer: str,
    activation: str,
    weight_decay: float,
    augment: str,
    optimizer: str,
    momentum: float,
    batch_size: int,
    num_epochs: int,
    num_learning_batches: int,
    lr_min: float,
    lr_max: float,
    lr_max_multiplier: float,
    lr_min_multiplier: float,
    cycle: bool,
    step_size_epochs: float,
    skip_test: float | None,
    no_plots: bool,
    save_model: bool,
    log_dir: str,
    runs: int,
    settings: dict,
    workers: int | None,
    results_dir: str,
) -> tuple[list[Spec], Callable[[float], list[Spec]]]:
    """Notebook 6: a sweep of the learning rate for each seed, in `best_lr_sweep`, and training, in `best_lr`.

    Returns:
        The runs of the sweep, none where `skip_test` gives the rate; and a function from the best rate to the runs that
        train at it, or below it.

    Raises:
        RunError, DataError: a parameter is wrong, or a folder holds other runs.
    """
    for name, count in dict(
        num_learning_batches=num_learning_batches, batch_size=batch_size, depth=depth, width=width
    ).items():
        whole(name, count)
    if num_epochs != 0:
        whole("num_epochs", num_epochs)
    elif skip_test is not None:
        raise RunError(f"num_epochs=0 and {skip_test=}: neither a sweep nor training is asked for")
    above = dict(lr_min=lr_min, lr_max=lr_max, lr_max_multiplier=lr_max_multiplier)
    above |= dict(lr_min_multiplier=lr_min_multiplier, step_size_epochs=step_size_epochs)
    for name, number in above.items():
        positive(name, number)
    if skip_test is not None:
        positive("skip_test", skip_test)
    if lr_min > lr_max or (cycle and lr_min_multiplier > lr_max_multiplier):
        raise RunError(
            f"the lower must not exceed the upper: {lr_min=}, {lr_max=}, {lr_min_multiplier=}, {lr_max_multiplier=}"
        )
    check_folder("log_dir", log_dir)
    data = datasets.load(dataset, data_dir)
    count = _train_count(data, settings)
    batches = count // batch_size  # in an epoch
    if batches < 1:
        raise RunError(f"batch_size={batch_size} exceeds the {count} training images")
    wide = dict(depth=depth, width=width, kernel_initializer=kernel_initializer, activation=activation)
    wide |= dict(weight_decay=weight_decay, augment=augment)
    if model is None and data.channels > 1:
        network = dict(model=f"wide_resnet-{depth}-{width}", init=kernel_initializer, activation=activation)
        network |= dict(weight_decay=weight_decay, augment=augment)
    elif changed := [f"{name}={value!r}" for name, value in wide.items() if value != WIDE[name]]:
        taken = model or "LeNet"
        raise RunError(f"{', '.join(changed)}: for the wide residual network only, and {dataset} gets {taken}")
    else:
        network = dict(model=model or "lenet", weight_decay=0.0)
    network |= dict(dataset=dataset, optimizer=optimizer, batch_size=batch_size)
    network |= dict(momentum=momentum if optimizer == "sgd" else 0.0)
    network |= _free(settings, "evaluation", *network)

    def sweeps() -> list[Spec]:
        """The sweep's runs: an exponential ramp, a row of training loss a hundredth of it."""
        ramp = dict(name="range_test", min_lr=lr_min, max_lr=lr_max, ramp="exponential", stop_factor=4)
        length = dict(iterations=num_learning_batches, evaluate_every=max(1, num_learning_batches // 100))
        how = dict(policy=ramp, variant="sweep", evaluation="none", **length)
        return [spec(**network, **how, seed=seed) for seed in seeds(runs)]

    def trainings(best: float) -> list[Spec]:
        """The training runs at, or below, the best rate."""
        if num_epochs == 0:
            return []
        top = lr_max_multiplier * best
        if cycle:
            half = whole("step_size_epochs in iterations", round(min(step_size_epochs * batches, 1e10)))
            policy = dict(name="triangular", base_lr=lr_min_multiplier * best, max_lr=top, step_size=half)
        else:
            policy = dict(name="fixed", lr=top, milestones=[])
        length = dict(iterations=num_epochs * batches, evaluate_every=batches, keep_weights=save_model)
        how = dict(policy=policy, variant="cycle" if cycle else "constant", **length)
        return [spec(**network, **how, seed=seed) for seed in seeds(runs)]

    folder, sweep_folder = f"{results_dir}/best_lr", f"{results_dir}/best_lr_sweep"
    if skip_test is not None:
        parallel.check_all(trainings(skip_test), folder, data_dir, workers)
        return [], trainings
    swept = sweeps()
    parallel.check_all(swept, sweep_folder, data_dir, workers)
    if all(RunFiles(sweep_folder, run.name).complete for run in swept):
        losses = sweep_losses(tables.read_runs(sweep_folder, swept))
        rate = best_rate(losses.index, losses).lr
    elif complete_runs(folder):
        raise RunError(f"{folder} holds runs at the rate of another sweep: move it, or use another RESULTS")
    else:
        rate = (lr_min * lr_max) ** 0.5  # not known yet; everything else can be checked without it
    parallel.check_all(trainings(rate), folder, data_dir, workers)
    return swept, trainings


def sweep_losses(runs: Any) -> Any:
    """The training losses of a sweep's runs, as `tables.read_runs` gives them: learning rates down, seeds across."""
    return runs.pivot(index="lr", columns="seed", values="train_loss").sort_index()


@_checked
def mlp(
    dataset: str,
    data_dir: str | None,
    model: str,
    optimizer: str,
    constant_lr: float,
    base_lr: float,
    max_lr: float,
    step_size: int,
    small_batch: int,
    large_batch: int,
    epochs: int,
    runs: int,
    reference: str | None,
    settings: dict,
    workers: int | None,
    results_dir: str,
) -> Runs:
    """Notebook 7: three rates with two batches each, and the small batches' mean rate with large ones, in `mlp`.

    Raises:
        RunError, DataError, AnalysisError: a parameter is wrong, or the folder holds other runs.
    """
    whole("epochs", epochs, most=1000)
    for name, count in dict(small_batch=small_batch, large_batch=large_batch, step_size=step_size).items():
        whole(name, count)
    for name, number in dict(constant_lr=constant_lr, base_lr=base_lr, max_lr=max_lr).items():
        positive(name, number)
    count = _train_count(datasets.load(dataset, data_dir), settings)
    if not small_batch < large_batch <= count:
        raise RunError(
            f"small_batch={small_batch}, large_batch={large_batch}: the first must be smaller, and neither may exceed "
            f"the {count} training images"
        )
    _check_reference(reference)
    network = dict(init="glorot_uniform", momentum=0.0, weight_decay=0.0) | _free(settings, "optimizer", "batch_size")
    network |= dict(model=model, dataset=dataset, optimizer=optimizer)
    clr = dict(name="triangular", base_lr=base_lr, max_lr=max_lr, step_size=step_size)
    sizes = {"small": small_batch, "large": large_batch}
    lengths = {size: epochs * (count // batch) for size, batch in sizes.items()}
    means = {size: float(np.mean(cyclical_rates(base_lr, max_lr, step_size, lengths[size]))) for size in sizes}

    def constant(lr: float) -> dict:
        return dict(name="fixed", lr=lr, milestones=[])

    arms = [
        *(("constant", size, constant(constant_lr)) for size in sizes),
        *(("mean", size, constant(means[size])) for size in sizes),
        *(("clr", size, clr) for size in sizes),
        ("small_mean", "large", constant(means["small"])),
    ]
    specs = [
        spec(
            **network,
            policy=policy,
            variant=f"{rate}_{size}_batch",
            batch_size=sizes[size],
            iterations=lengths[size],
            evaluate_every=count // sizes[size],
            seed=seed,
        )
        for seed in seeds(runs)
        for rate, size, policy in arms
    ]
    parallel.check_all(specs, f"{results_dir}/mlp", data_dir, workers)
    return {"mlp": specs}


@_checked
def tournament(
    registration: str,
    dataset: str,
    data_dir: str | None,
    arms: list | None,
    train: bool,
    name: str,
    workers: int | None,
    results_dir: str,
) -> Tournament:
    """Notebook 8: the runs of a registration, in `<name>_tuning` and `<name>`, as it goes on.

    Raises:
        RunError, DataError: a parameter is wrong, or a folder holds other runs.
    """
    if name not in (known := [key for key, table in TABLES.items() if table.notebook.startswith("08")]):
        raise RunError(f"name={short(name)}: choose from {', '.join(known)}")
    design = Registration.read(registration)
    found = Tournament(design, dataset, f"{results_dir}/{name}_tuning", f"{results_dir}/{name}", arms)
    found.check(data_dir, workers)
    return found


@_checked
def rate_finders(
    tasks: list,
    grid_factor: float,
    grid_seeds: int,
    ramps: int,
    ramp_lengths: list,
    min_lr: float,
    max_lr: float,
    halvings: int,
    data_dir: str | None,
    workers: int | None,
    results_dir: str,
) -> list[Task]:
    """Notebook 9: the tasks of the benchmark of rate finders, each with its grid, its ramps and its halvings.

    Raises:
        RunError, DataError: a parameter is wrong, or a folder holds other runs.
    """
    for name, value in (("min_lr", min_lr), ("max_lr", max_lr)):
        positive(name, value)
    for name, value in (("grid_seeds", grid_seeds), ("ramps", ramps), ("halvings", halvings)):
        whole(name, value, most=1000)
    if min_lr >= max_lr:
        raise RunError(f"min_lr must be below max_lr: min_lr={min_lr!r}, max_lr={max_lr!r}")
    if not 1.01 <= grid_factor <= 1000:
        raise RunError(f"grid_factor={grid_factor!r}: a factor from 1.01 to 1000 is needed")
    if not (ramp_lengths and all(type(length) is int and 0 <= length <= 10**6 for length in ramp_lengths)):
        raise RunError(f"ramp_lengths={short(ramp_lengths)}: whole numbers are needed, 0 for two epochs")
    common = dict(
        grid_factor=grid_factor,
        grid_seeds=grid_seeds,
        ramps=ramps,
        ramp_lengths=ramp_lengths,
        low=min_lr,
        high=max_lr,
        halvings=halvings,
        data_dir=data_dir,
    )
    found = tasks_of(tasks, results_dir, common)
    for task in found:
        task.check(workers)
    return found


class About(NamedTuple):
    """What a notebook says of a user's data: a few sentences, how many images decide, the largest class's share."""

    said: str
    deciding: int
    majority: float


@_checked
def your_data(
    dataset: str,
    data_dir: str | None,
    image_size: int | None,
    model: str,
    optimizer: str,
    momentum: float,
    weight_decay: float,
    augment: str,
    batch_size: int,
    epochs: int | None,
    ramp: int,
    runs: int,
    settings: dict,
    workers: int | None,
    results_dir: str,
) -> tuple[list[Spec], Callable[[dict[str, float]], list[Spec]], About]:
    """Notebook 10: range tests, in `your_data_ramps`, and a training of each schedule, in `your_data`.

    No test image is read where there are images to choose by: a tenth of the training images decides. In a folder
    without test images those held out decide.

    Returns:
        The range tests, a seed each; a function from `suggest_rate`'s rate for each schedule to the trainings; and what
        there is to say of the data.

    Raises:
        RunError, DataError: a parameter is wrong, or a folder holds other runs.
    """
    if image_size is not None:
        if dataset != "images":
            raise RunError(f"image_size={image_size}: of the data set images only, not of {short(dataset)}")
        dataset = f"images-{whole('image_size', image_size)}"
    for name, count in dict(batch_size=batch_size, ramp=ramp).items():
        whole(name, count)
    if ramp < LEAST_RAMP:
        raise RunError(f"ramp={ramp}: {LEAST_RAMP} iterations or more are needed")
    if epochs is not None:
        whole("epochs", epochs)
    data = datasets.load(dataset, data_dir)
    part, decides = ("standard", "test") if data.held_out else ("validation", "validation")
    divided = split(data, part, seed=1)
    batches = divided.sizes["train"] // batch_size
    if batches < 1:
        raise RunError(f"batch_size={batch_size} exceeds the {divided.sizes['train']} training images")
    iterations = max(20 * batches, LEAST_TRAINING) if epochs is None else epochs * batches
    setting = dict(dataset=dataset, model=model, optimizer=optimizer, momentum=momentum if optimizer == "sgd" else 0.0)
    setting |= dict(weight_decay=weight_decay, augment=augment, batch_size=batch_size, split=part)
    setting |= _free(settings, "evaluation", "test_at_end", *setting)

    def trainings(rates: dict[str, float]) -> list[Spec]:
        return [
            spec(
                **setting,
                variant=schedule,
                policy=SCHEDULES[schedule](rate, iterations),
                evaluation=decides,
                iterations=iterations,
                evaluate_every=max(1, iterations // 20),
                seed=seed,
            )
            for schedule, rate in rates.items()
            for seed in seeds(runs)
        ]

    climb = dict(name="range_test", min_lr=1e-6, max_lr=10.0, ramp="exponential")
    how = dict(variant="ramp", policy=climb, evaluation="none", iterations=ramp, evaluate_every=1)
    ramps = [spec(**setting, **how, seed=seed) for seed in seeds(runs)]
    folder, ramp_folder = f"{results_dir}/your_data", f"{results_dir}/your_data_ramps"
    parallel.check_all(ramps, ramp_folder, data_dir, workers)
    if all(RunFiles(ramp_folder, run.name).complete for run in ramps):
        rates = advice.suggested(tables.read_runs(ramp_folder, ramps)).set_index("policy").value.to_dict()
    elif complete_runs(folder):
        raise RunError(f"{folder} holds runs at the rates of other range tests: move it, or use another RESULTS")
    else:
        rates = dict.fromkeys(SCHEDULES, 0.01)  # not known yet; everything else can be checked without them
    parallel.check_all(trainings(rates), folder, data_dir, workers)
    return ramps, trainings, about(data, divided, ramps[0], iterations)


def about(data: datasets.Dataset, divided: Split, ramp: Spec, iterations: int) -> About:
    """What a data set's images are, how they are divided, whether the classes are unequal, and what will train on them.

    Args:
        data, divided: the images.
        ramp: one of the runs.
        iterations: of a training.
    """
    deciding = divided.validation_labels if len(divided.validation) else divided.test_labels
    counts = np.bincount(divided.labels[divided.train], minlength=len(data.classes))
    largest = counts.argmax()
    majority = float(np.mean(deciding == largest))
    size = f"{data.size} x {data.size} pixels, {'grey' if data.channels == 1 else 'in colour'}"
    shown = ", ".join(f"{name}: {count:,}" for name, count in zip(data.classes, counts, strict=True))
    said = f"{data.label}: {counts.sum():,} images train, {len(deciding):,} others decide; {size}. To train: {shown}."
    if counts.max() > 2 * counts.min():
        said += f" The classes are unequal: always naming {data.classes[largest]!r} is right in {majority:.0%}."
    if data.passed_over:
        said += f" {data.passed_over:,} files with other endings were passed over."
    momentum = f", momentum {ramp.momentum:g}" if ramp.momentum else ""
    epochs = iterations / (counts.sum() // ramp.batch_size)
    said += (
        f" Every rate here is for {ramp.optimizer}{momentum}, weight decay {ramp.weight_decay:g}, batches of "
        f"{ramp.batch_size}, augmentation {ramp.augment}. A training lasts {iterations:,} iterations, "
        f"{epochs:.3g} epochs."
    )
    return About(said, len(deciding), majority)


def cyclical_rates(base_lr: float, max_lr: float, step_size: int, iterations: int) -> list[float]:
    """The learning rates of a run that cycles, one an iteration."""
    clr = CyclicLR(torch.optim.SGD([torch.zeros(1)], lr=1), base_lr, max_lr, step_size)
    return [clr.lr_at(iteration) for iteration in range(iterations)]


#: Each notebook's check, by the notebook's name.
CHECKS: dict[str, Callable] = {
    "00_learning_rates": learning_rates,
    "01_schedulers": schedulers,
    "02_range_test": range_test,
    "03_headline_experiment": headline,
    "04_headline_figures": headline_figures,
    "05_policies": policies,
    "06_best_lr": best_lr,
    "07_mlp_mnist": mlp,
    "08_tournament": tournament,
    "09_rate_finders": rate_finders,
    "10_your_data": your_data,
}
