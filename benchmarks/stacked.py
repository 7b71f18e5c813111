"""Runs trained together beside runs one after another: what an iteration of a run costs on one core.

    .venv/bin/python benchmarks/stacked.py [--runs 400] [--iterations 400] [--networks dense-64-64-64 lenet]

Seconds of the processor, so that other work on the machine counts for little; everything is in them: images, updates,
evaluations, files. Runs one after another all cost the same, so a few of them are trained. Both ways take turns.
"""

import argparse
import tempfile
import time

import pandas as pd
import torch

from modules.runs.spec import Spec, spec
from modules.runs.stacked import GROUP, train_together
from modules.runs.training import train

DATASETS = {"dense-64-64-64": ("digits-8x8", 16), "lenet": ("digits", 16), "cifar10_quick": ("digits", 100)}
POLICIES = (
    dict(name="fixed", lr=0.02, milestones=(200, 300)),
    dict(name="triangular", base_lr=0.005, max_lr=0.05, step_size=50),
    dict(name="linear", lr=0.05),
    dict(name="triangular", base_lr=0.005, max_lr=0.05, step_size=50, anneal=0.25),
)


def asked(network: str, seed: int, iterations: int) -> Spec:
    """A run of a network, of one of four policies."""
    dataset, batch_size = DATASETS[network]
    return spec(
        dataset=dataset,
        model=network,
        policy=POLICIES[seed % len(POLICIES)],
        variant="run",
        weight_decay=1e-4,
        batch_size=batch_size,
        iterations=iterations,
        evaluate_every=max(20, iterations // 20),
        seed=seed,
    )


def seconds(specs: list[Spec], together: bool) -> float:
    """Processor seconds of training them in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        if together:
            train_together(specs, folder, device="cpu")
        else:
            for one in specs:
                train(one, folder, device="cpu")
        return time.process_time() - before


def measured(network: str, runs: int, iterations: int, group: int, alone: int) -> list[dict]:
    """A row for each way: run-iterations a second, and microseconds each."""
    specs = [asked(network, seed, iterations) for seed in range(1, runs + 1)]
    for way in (False, True):  # what is loaded and compiled once is nobody's cost
        seconds([asked(network, seed, 2) for seed in (1, 2)], way)
    spent, counted = {"one after another": 0.0, "together": 0.0}, {"one after another": 0, "together": 0}
    for start in range(0, runs, group):
        members = specs[start : start + group]
        turns = [("together", members)]
        if counted["one after another"] < alone:
            turns.append(("one after another", members[:1]))
        for way, some in turns:
            spent[way] += seconds(some, way == "together")
            counted[way] += len(some)
    rate = {way: counted[way] * iterations / spent[way] for way in spent}
    return [
        {
            "network": network,
            "runs": way,
            "trained": counted[way],
            "seconds": round(spent[way], 1),
            "run-iterations a second": round(rate[way]),
            "microseconds each": round(1e6 / rate[way], 1),
            "factor": round(rate[way] / rate["one after another"], 2),
        }
        for way in spent
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=DATASETS, default=["dense-64-64-64"])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--group", type=int, default=GROUP["cpu"], help="runs trained together")
    parser.add_argument("--alone", type=int, default=10, help="runs trained one after another")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for network in options.networks:
        rows += measured(network, options.runs, options.iterations, options.group, options.alone)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
