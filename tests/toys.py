"""Small things for tests: images made on the spot, specs that train in a second."""

import inspect
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modules.runs.spec import spec

CROSS_ENTROPY = torch.nn.functional.cross_entropy
ROOT = Path(__file__).resolve().parents[1]


def make_images(folder, count=4, size=16, classes=("cat", "dog")):
    """A folder of random PNG images in the layout of the data set `images`."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def every(names, cases, ids=None):
    """As `pytest.mark.parametrize`, but one test of one behaviour, which names every case that fails.

    Each case has a `tmp_path` of its own; other fixtures it shares with the rest.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    cases = list(cases)

    def decorate(test):
        signature = inspect.signature(test)
        assert set(names) <= set(signature.parameters)

        def all_cases(**fixtures):
            failed = []
            for number, case in enumerate(cases):
                given = fixtures | dict(zip(names, case if len(names) > 1 else [case], strict=True))
                if "tmp_path" in fixtures:
                    given["tmp_path"] = fixtures["tmp_path"] / str(number)
                    given["tmp_path"].mkdir()
                try:
                    test(**given)
                except Exception as error:
                    failed.append(f"{ids[number] if ids else case}: {type(error).__name__}: {error}")
            assert not failed, "\n".join([f"{len(failed)} of {len(cases)} cases", *failed])

        others = [each for name, each in signature.parameters.items() if name not in names]
        all_cases.__name__, all_cases.__doc__ = test.__name__, test.__doc__
        all_cases.__signature__ = signature.replace(parameters=others)
        return all_cases

    return decorate


TRIANGULAR = dict(name="triangular", base_lr=0.01, max_lr=0.1, step_size=6)
FIXED = dict(name="fixed", lr=0.02, milestones=(10, 20))
#: The paper's Table 2, shortened; the second phase's own cuts are counted from its start.
PHASES = dict(
    name="phases",
    phases=[
        dict(iterations=10, policy=dict(name="triangular2", base_lr=0.01, max_lr=0.05, step_size=2)),
        dict(iterations=6, policy=dict(name="fixed", lr=0.004, milestones=(2, 4))),
        dict(iterations=4, policy=dict(name="decay", base_lr=0.001, max_lr=0.002, step_size=2)),
        dict(iterations=4, policy=dict(name="exp", lr=0.001, gamma=0.5)),
    ],
)


def small(policy=None, seed=1, **changes):
    """A spec that trains in about a second: the dense network on the digits."""
    defaults = dict(dataset="digits", model="mlp", batch_size=64, iterations=24, evaluate_every=6)
    return spec(policy=policy or TRIANGULAR, seed=seed, **{**defaults, **changes})


def a_record(run=None, **changes):
    """What a finished run's JSON holds; `changes` take the place of entries."""
    run = run or small()
    data = {"label": "toy", "fingerprint": "same", "train": 1000, "validation": 0, "test": 500}
    return {
        "spec": run.model_dump(mode="json"),
        "diverged": False,
        "iterations": run.iterations,
        "seconds": 1.0,
        "data": data,
        "processor": "a processor",
        "device": "cpu",
        "versions": {"python": "3.11", "torch": "2.14"},
        **changes,
    }


#: Rows of a finished run.
ROWS = [(6, 0.1, 2.0, 2.0, 0.5), (12, 0.2, 1.5, 1.75, 0.625)]


def edited(path, old, new):
    """Put something else into a file, once."""
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def changed(*left_out, **entries):
    """Damage that gives a checkpoint other entries, or leaves some out: a function from its bytes to others."""

    def damage(content):
        state = {**torch.load(io.BytesIO(content), weights_only=True), **entries}
        torch.save({key: value for key, value in state.items() if key not in left_out}, made := io.BytesIO())
        return made.getvalue()

    return damage


def through_disk(state: dict) -> dict:
    """What is read again of a state that was saved."""
    torch.save(state, made := io.BytesIO())
    made.seek(0)
    return torch.load(made, weights_only=True)


def record_of(path):
    """The JSON beside a run's CSV."""
    return json.loads(path.with_suffix(".json").read_text())


def contents(folder):
    """The bytes of all runs' CSVs, by name."""
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


def sgd(*multipliers: float) -> torch.optim.SGD:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))]} for _ in multipliers or (1,)]
    for group, factor in zip(groups, multipliers, strict=False):
        group["lr_mult"] = factor
    return torch.optim.SGD(groups, lr=123.0)


def rates(scheduler, count: int, group: int = 0) -> list[float]:
    out = []
    for _ in range(count):
        out.append(scheduler.optimizer.param_groups[group]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return out


def problem():
    """A small linear problem: model, optimizer, batches, accuracy."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 10, generator=generator)
    labels = (inputs @ torch.randn(10, 4, generator=generator)).argmax(1)
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 4)
    batches = [(inputs[i : i + 50], labels[i : i + 50]) for i in range(0, 400, 50)]

    def accuracy(model):
        return (model(inputs).argmax(1) == labels).float().mean().item()

    return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), batches, accuracy
