"""Notebook 10's runs: from its parameters to range tests and trainings, checked before anything is trained."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from modules.checks import RunError, seeds, short, whole
from modules.data import datasets
from modules.data.splits import Split, split
from modules.rate_finders.benchmark import SCHEDULES
from modules.report import advice, tables
from modules.runs import parallel
from modules.runs.files import RunFiles, complete_runs
from modules.runs.spec import Spec, spec
from modules.study.design import shared_settings

LEAST_RAMP = 100  # iterations: with fewer every rule is worse
LEAST_TRAINING = 400  # iterations


class About(NamedTuple):
    """What a notebook says of a user's data: a few sentences, how many images decide, the largest class's share."""

    said: str
    deciding: int
    majority: float


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

    No test image is read where there are images to choose by: those of a folder for validation, where there is one for
    testing too, else a tenth of the training images. In a folder without test images those held out decide.

    Returns:
        The range tests, a seed each; a function from `suggest_rate`'s rate for each schedule to the trainings; and what
        there is to say of the data.

    Raises:
        RunError, DataError: a parameter is wrong, or a folder holds other runs; the function's call: the data have
            changed since the range tests.
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
    setting = shared_settings(settings, **setting, evaluation=decides, test_at_end=False)

    def trainings(rates: dict[str, float]) -> list[Spec]:
        parallel.same_data(ramp_folder, dataset, data_dir)
        return [
            spec(
                **setting,
                variant=schedule,
                policy=SCHEDULES[schedule](rate, iterations),
                iterations=iterations,
                evaluate_every=max(1, iterations // 20),
                seed=seed,
            )
            for schedule, rate in rates.items()
            for seed in seeds(runs)
        ]

    climb = dict(name="range_test", min_lr=1e-6, max_lr=10.0, ramp="exponential")
    how = dict(variant="ramp", policy=climb, evaluation="none", iterations=ramp, evaluate_every=1)
    ramps = [spec(**{**setting, **how}, seed=seed) for seed in seeds(runs)]
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
    if data.validation_labels is not None:
        said += " Those of the folder for validation decide, those of the one for testing are not read."
    said = " ".join([said, *data.notes])
    momentum = f", momentum {ramp.momentum:g}" if ramp.momentum else ""
    epochs = iterations / (counts.sum() // ramp.batch_size)
    said += (
        f" Every rate here is for {ramp.optimizer}{momentum}, weight decay {ramp.weight_decay:g}, batches of "
        f"{ramp.batch_size}, augmentation {ramp.augment}. A training lasts {iterations:,} iterations, "
        f"{epochs:.3g} epochs."
    )
    return About(said, len(deciding), majority)
