"""README's lines in a stranger's loop: torchvision's ResNet-18 and AdamW. What does their rate cost beside a grid?

    python benchmarks/own_loop.py 1    # seed 1; then 2 and 3: an hour of a core each

800 iterations of a rate that falls in a line to zero, batches of 64 of CIFAR-10's first 5,000 images. Rates are judged
on 2,000 others, and tested on the test images. Tried are the rate of README's lines, off a ramp of a fifth of the
iterations; half and twice that rate, and on by factors of two where the last one ends best on validation images; and a
grid made by hand. A training is a row of `results/published/own-loop/seed<seed>.csv`, and is not done twice. When all
seeds are complete, `tables/own_loop.csv` has what each way costs, in pairs of a seed.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
import torchvision
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from clr_study import apply_rate, range_test, suggest_rate
from modules.report import tables

FOLDER = Path(__file__).resolve().parents[1] / "results" / "published" / "own-loop"
ITERATIONS = 800
SEEDS = (1, 2, 3)
GRID = (0.0001, 0.0003, 0.001, 0.003, 0.01)
COLUMNS = ["way", "rate", "val_acc", "test_acc"]


def images() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """CIFAR-10 in `data/`: images that train, that judge, and that test."""
    both = [torchvision.datasets.CIFAR10("data", train=train) for train in (True, False)]
    x, test_x = (torch.from_numpy(part.data).permute(0, 3, 1, 2).float().div(255).sub(0.47).div(0.25) for part in both)
    y, test_y = (torch.tensor(part.targets) for part in both)
    return (
        TensorDataset(x[:5000], y[:5000]),
        TensorDataset(x[45000:47000], y[45000:47000]),
        TensorDataset(test_x, test_y),
    )


def new(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The network and its optimizer, from a seed."""
    torch.manual_seed(seed)
    model = torchvision.models.resnet18(num_classes=10)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)


def batches(images: TensorDataset) -> DataLoader:
    """In another order each time."""
    return DataLoader(images, 64, shuffle=True, drop_last=True)


def suggested(train: TensorDataset, judge: TensorDataset, seed: int) -> float:
    """The rate of README's lines; the ramp has other initial weights than the trainings."""
    model, optimizer = new(100 + seed)
    validation = DataLoader(judge, 500)
    curve = range_test(
        model, optimizer, F.cross_entropy, batches(train), validation=validation, iterations=ITERATIONS // 5
    )
    return float(f"{suggest_rate(curve.lr, curve.train_loss, 'linear', curve.accuracy):.3g}")


def trained(train: TensorDataset, rate: float, seed: int) -> torch.nn.Module:
    """The network after a training whose rate falls from `rate` to zero."""
    model, optimizer = new(seed)
    apply_rate(optimizer, rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda iteration: 1 - iteration / ITERATIONS)
    done = 0
    while done < ITERATIONS:
        for image, target in batches(train):
            optimizer.zero_grad()
            F.cross_entropy(model(image), target).backward()
            optimizer.step()
            scheduler.step()
            done += 1
            if done == ITERATIONS:
                break
    return model.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: TensorDataset) -> float:
    """The share that it gets right."""
    right = [(model(image).argmax(1) == target).float().mean().item() for image, target in DataLoader(images, 1000)]
    return round(sum(right) / len(right), 4)  # exact: of 2,000 or 10,000 images


class Seed:
    """The trainings of a seed, on disk: one that is there is not done again."""

    def __init__(self, seed: int) -> None:
        self.seed, self.path = seed, FOLDER / f"seed{seed}.csv"
        self.rows = pd.read_csv(self.path) if self.path.exists() else pd.DataFrame(columns=COLUMNS)
        self.train, self.judge, self.test = images()

    def run(self) -> None:
        """All that is missing."""
        known = self.rows[self.rows.way == "suggested"].rate
        rate = known.iloc[0] if len(known) else suggested(self.train, self.judge, self.seed)
        self.one("suggested", rate)
        tried = {factor: self.one("factors of two", rate * factor) for factor in (0.5, 1, 2)}
        while (best := max(tried, key=tried.get)) in (min(tried), max(tried)):
            factor = best / 2 if best == min(tried) else best * 2
            tried[factor] = self.one("factors of two", rate * factor)
        for rate in GRID:
            self.one("grid", rate)

    def one(self, way: str, rate: float) -> float:
        """A training's validation accuracy."""
        rate = float(f"{rate:.3g}")
        row = self.rows[(self.rows.way == way) & (self.rows.rate == rate)]
        if row.empty:
            same = self.rows[self.rows.rate == rate]  # of another way: the same training
            if same.empty:
                model = trained(self.train, rate, self.seed)
                found = accuracy(model, self.judge), accuracy(model, self.test)
            else:
                found = float(same.val_acc.iloc[0]), float(same.test_acc.iloc[0])
            row = pd.DataFrame([(way, rate, *found)], columns=COLUMNS)
            self.rows = row if self.rows.empty else pd.concat([self.rows, row], ignore_index=True)
            FOLDER.mkdir(parents=True, exist_ok=True)
            self.rows.to_csv(self.path, index=False)
            print(self.seed, way, rate, found, flush=True)
        return row.val_acc.iloc[0]


def table(runs: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """What each way ends at, and what it costs beside the rate of the grid that validates best on average."""
    grid = pd.concat([rows[rows.way == "grid"].assign(seed=seed) for seed, rows in runs.items()])
    best = grid.groupby("rate").val_acc.mean().idxmax()
    at = {rate: rows.set_index("seed").test_acc for rate, rows in grid.groupby("rate")}
    chosen = {"best of the grid": at[best], "default 0.001": at[0.001]}  # torch's own for AdamW
    for way in ("suggested", "factors of two"):
        tried = {seed: rows[rows.way == way] for seed, rows in runs.items()}
        chosen[way] = pd.Series({seed: rows.test_acc[rows.val_acc.idxmax()] for seed, rows in tried.items()})
    rows = [
        {"quantity": "accuracy", "policy": way, "runs": len(found)} | tables.mean_row(found, 0, 1)
        for way, found in chosen.items()
    ]
    for way in ("default 0.001", "suggested", "factors of two"):
        count, found = tables.difference_of(chosen[way], chosen["best of the grid"], "pairs")
        row = {"quantity": "accuracy_difference", "policy": f"{way} - best of the grid", "runs": count}
        rows.append(row | tables.row_of(found, "pairs", -1, 1))
    rates = pd.Series({seed: rows[rows.way == "suggested"].rate.iloc[0] for seed, rows in runs.items()})
    rows.append({"quantity": "lr", "policy": "best of the grid", "runs": len(runs), "value": best})
    rows.append({"quantity": "lr", "policy": "suggested", "runs": len(runs)} | tables.mean_row(rates, 0, 1))
    return tables.table_of(rows)


def main() -> None:
    """The command line."""
    torch.set_num_threads(1)
    for seed in map(int, sys.argv[1:]):
        Seed(seed).run()
    paths = {seed: FOLDER / f"seed{seed}.csv" for seed in SEEDS}
    runs = {seed: pd.read_csv(path) for seed, path in paths.items() if path.exists()}
    if all(seed in runs and set(GRID) <= set(runs[seed].rate) for seed in SEEDS):
        tables.write(table(runs), FOLDER / "tables" / "own_loop.csv")
        print(table(runs).to_string(index=False))


if __name__ == "__main__":
    main()
