"""How fast the study's runs are, beside the loop anyone would write and beside what the machine could do at best.

    make benchmark        # under five minutes; writes results/benchmarks/throughput.{csv,png}

In every round all variants run one after the other, so that a machine that slows down slows them all; the table holds
medians over rounds. Iterations count for the whole machine: two runs side by side count twice.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from dask.system import CPU_COUNT
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from tqdm import tqdm

from modules import models
from modules.data.datasets import load
from modules.report.figures import save, style
from modules.runs.parallel import cluster
from modules.runs.provenance import processor, revision
from modules.runs.spec import Spec, spec
from modules.runs.training import one_thread, step, train

NETWORKS = ("cifar10_quick", "cifar10_full", "mlp")
BATCH = 100
TRAIN_IMAGES = 5000
# The study evaluates 10,000 images every 1,000 iterations, in batches of 250. A round is short, so both are scaled down
# alike; checkpoints come with evaluations, so they are written forty times more often here than in the study.
EVALUATE_EVERY, TEST_IMAGES = 25, 250
LOADERS = 8  # whatever the cores: that is what people write
READY = 2 * LOADERS  # batches that a DataLoader fetches ahead
POLICY = dict(name="triangular", base_lr=0.0025, max_lr=0.01, step_size=2000)


def make_data(folder: Path) -> None:
    """Random 32 x 32 colour images in the layout of the data set `images`; speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for label in range(10):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for index in range(count // 10):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{index}.png")


class PilImages(TorchDataset):
    """Images one at a time, as torchvision's CIFAR10 gives them: an array's row, a PIL image, a transform."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (1.0,) * 3)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class Conventional:
    """The loop anyone would write: PIL data set, DataLoader with eight workers, NCHW, torch's default threads."""

    def __init__(self, network: str, images: np.ndarray, labels: np.ndarray) -> None:
        self.model = models.build(network)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0025, momentum=0.9, weight_decay=0.004)
        loader = DataLoader(
            PilImages(images, labels), BATCH, shuffle=True, num_workers=LOADERS, drop_last=True, persistent_workers=True
        )
        self.batches = self._endless(loader)

    @staticmethod
    def _endless(loader: DataLoader):
        while True:
            yield from loader

    def __call__(self, iterations: int) -> float:
        """Seconds an iteration, once the batches are gone that its workers had ready."""
        for done in range(READY + iterations):
            if done == READY:
                started = time.perf_counter()
            inputs, labels = next(self.batches)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(inputs), labels).backward()
            self.optimizer.step()
        seconds = (time.perf_counter() - started) / iterations
        time.sleep(0.5)  # the workers make batches ready again, not at the expense of what is measured next
        return seconds


_BARE: dict = {}  # networks and batches that stay ready in a process: only their steps are timed


def bare_step(network: str, precision: str, threads: int, iterations: int) -> float:
    """Seconds an iteration of forward, backward and update on one ready batch, channels_last, denormals flushed."""
    with one_thread():
        torch.set_num_threads(threads)
        key = (network, precision)
        if key not in _BARE:
            torch.manual_seed(0)
            model = models.build(network).to(memory_format=torch.channels_last)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0025, momentum=0.9, weight_decay=0.004)
            inputs = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
            _BARE[key] = (model, optimizer, inputs, torch.randint(0, 10, (BATCH,)))
            for _ in range(3):
                step(*_BARE[key], precision)
        started = time.perf_counter()
        for _ in range(iterations):
            step(*_BARE[key], precision)
        return (time.perf_counter() - started) / iterations


def arithmetic_rate(precision: str, seconds: float = 0.25) -> float:
    """Best floating point operations a second of one thread, in large matrix products and large convolutions.

    They come from two libraries, and either may be slow on a processor: MKL's products are, in float32, on AMD's.
    """
    dtype, best = getattr(torch, precision), 0.0
    with one_thread(), torch.no_grad():
        works = []
        for size in (512, 1024, 2048):
            a, b = torch.randn(2, size, size).to(dtype)
            works.append((2 * size**3, partial(torch.mm, a, b)))
        for channels in (64, 128):
            images = torch.randn(16, channels, 32, 32).to(dtype).contiguous(memory_format=torch.channels_last)
            weights = torch.randn(channels, channels, 5, 5).to(dtype).contiguous(memory_format=torch.channels_last)
            count = 2 * images.numel() * channels * 25
            works.append((count, partial(F.conv2d, images, weights, padding=2)))
        for count, work in works:
            work()
            stop = time.perf_counter() + seconds / len(works)
            while time.perf_counter() < stop:
                started = time.perf_counter()
                work()
                best = max(best, count / (time.perf_counter() - started))
    return best


def arithmetic(network: str) -> int:
    """Floating point operations of one iteration's forward and backward pass, counted by torch."""
    model = models.build(network)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(torch.zeros(BATCH, 3, 32, 32)), torch.zeros(BATCH, dtype=torch.long)).backward()
    return counter.get_total_flops()


def real_run(settings: Spec, folder: str, data_dir: str) -> float:
    """Seconds an iteration of one of the study's runs, evaluation, rows and checkpoints included."""
    path = train(settings, folder, data_dir, device="cpu")
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["seconds"] / settings.iterations


def side_by_side(client, functions: list) -> float:
    """Run one function a worker at the same time; the whole machine's seconds an iteration."""
    futures = [client.submit(function, pure=False) for function in functions]
    return float(np.mean(client.gather(futures))) / len(functions)


def measure(rounds: int, iterations: int) -> pd.DataFrame:
    """One row a network, variant and round: `network`, `variant`, `round`, `ms` an iteration of the whole machine."""
    rows = []
    warnings.filterwarnings("ignore", "This DataLoader will create 8 worker processes")
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        data = Path(place) / "data"
        make_data(data)
        images = load("images", data)
        conventional = {name: Conventional(name, images.train_images, images.train_labels) for name in NETWORKS}
        for loop in conventional.values():
            loop(1)  # the loaders' processes are forked here, while this one has no other threads
        client = stack.enter_context(cluster(CPU_COUNT))
        client.wait_for_workers(CPU_COUNT)
        variants = {}
        for name in NETWORKS:
            count = iterations if name != "mlp" else 10 * iterations
            variants[name, "conventional loop"] = partial(conventional[name], count // 2)
            for precision in ("float32", "bfloat16"):
                variants[name, f"the study's runs, {precision}"] = partial(
                    _study, client, name, precision, count, place, data
                )
                # Where bfloat16 is emulated it is slow, and steady enough to be measured in fewer iterations.
                bare = partial(bare_step, name, precision, 1, count // (4 if precision == "bfloat16" else 2))
                variants[name, f"bare step, {precision}, one process a core"] = partial(
                    side_by_side, client, [bare] * CPU_COUNT
                )
            variants[name, "bare step, float32, one thread alone"] = partial(bare_step, name, "float32", 1, count // 2)
            variants[name, "bare step, float32, all threads"] = partial(
                bare_step, name, "float32", CPU_COUNT, count // 2
            )
        # The first steps of a process choose and compile their kernels.
        for name in NETWORKS:
            for precision in ("float32", "bfloat16"):
                _study(client, name, precision, 2, place, data, evaluate_every=2)
                side_by_side(client, [partial(bare_step, name, precision, 1, 1)] * CPU_COUNT)
            conventional[name](3)
            bare_step(name, "float32", 1, 1)
        operations = {name: arithmetic(name) for name in NETWORKS}
        for number in range(rounds):
            bar = tqdm(variants.items(), desc=f"round {number + 1} of {rounds}", leave=False, disable=None)
            for (name, variant), function in bar:
                rows.append((name, variant, number, 1000 * function()))
            for precision in ("float32", "bfloat16"):
                rates = client.gather([client.submit(arithmetic_rate, precision, pure=False) for _ in range(CPU_COUNT)])
                for name in NETWORKS:
                    rows.append((name, f"limit, {precision}", number, 1000 * operations[name] / sum(rates)))
    return pd.DataFrame(rows, columns=["network", "variant", "round", "ms"])


def _study(
    client, network: str, precision: str, iterations: int, place: str, data: Path, evaluate_every: int = EVALUATE_EVERY
) -> float:
    folder = tempfile.mkdtemp(dir=place)
    # Whole evaluation intervals, so that evaluation has its true share.
    iterations = max(1, round(iterations / evaluate_every)) * evaluate_every
    runs = [
        spec(
            dataset="images",
            model=network,
            policy=POLICY,
            iterations=iterations,
            evaluate_every=evaluate_every,
            seed=seed,
            precision=precision,
        )
        for seed in range(CPU_COUNT)
    ]
    return side_by_side(client, [partial(real_run, run, folder, str(data)) for run in runs])


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Median, lowest and highest milliseconds of each variant, and medians of ratios taken round by round: its speed
    against the conventional loop, the fraction of the limit it reaches, and a study's time over its bare step's."""
    out = []
    for (network, variant), group in rows.groupby(["network", "variant"], sort=False):
        ms = group.set_index("round").ms
        mine = rows[rows.network == network].set_index("round")
        base = mine[mine.variant == "conventional loop"].ms
        limit = mine[mine.variant == ("limit, bfloat16" if "bfloat16" in variant else "limit, float32")].ms
        bare = mine[mine.variant == variant.replace("the study's runs", "bare step") + ", one process a core"].ms
        out.append(
            {
                "network": network,
                "variant": variant,
                "ms": ms.median(),
                "ms_low": ms.min(),
                "ms_high": ms.max(),
                "times_conventional": (base / ms).median(),
                "fraction_of_limit": (limit / ms).median(),
                "over_bare_step": (ms / bare).median(),
                "rounds": len(ms),
            }
        )
    table = pd.DataFrame(out).round(3)
    date = datetime.now(UTC).date().isoformat()
    return table.assign(date=date, processor=processor(), cores=CPU_COUNT, torch=version("torch"), revision=revision())


def draw(table: pd.DataFrame):
    """Milliseconds an iteration by variant, one panel a network."""
    import matplotlib.pyplot as plt

    style()
    figure, panels = plt.subplots(1, len(NETWORKS), figsize=(13, 4.2), sharey=True)
    for axes, network in zip(panels, NETWORKS, strict=True):
        part = table[table.network == network].iloc[::-1]
        errors = [part.ms - part.ms_low, part.ms_high - part.ms]
        axes.barh(part.variant, part.ms, xerr=errors, color="#0173b2", error_kw={"lw": 1, "ecolor": "0.3"})
        axes.set(title=network, xlabel="ms an iteration, whole machine")
        axes.grid(axis="y", visible=False)
    figure.suptitle(f"{table.processor.iloc[0]}, {table.cores.iloc[0]} cores: medians, lowest to highest", fontsize=10)
    figure.tight_layout()
    return figure


def main() -> None:
    """Measure, write the CSV and the plot, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds; 5 or more for a table that is quoted")
    parser.add_argument("--iterations", type=int, default=25, help="iterations of a study's run in a round")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), help="folder for CSV and plot")
    options = parser.parse_args()
    if options.rounds < 1 or options.iterations < 4:
        parser.error("at least 1 round and 4 iterations are needed")
    os.chdir(Path(__file__).resolve().parents[1])
    table = summarise(measure(options.rounds, options.iterations))
    options.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.output / "throughput.csv", index=False)
    save(draw(table), options.output / "throughput.png")
    print(table.loc[:, :"over_bare_step"].to_string(index=False, na_rep=""))
    print(f"written to {options.output}/throughput.csv and .png")


if __name__ == "__main__":
    main()
