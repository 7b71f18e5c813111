"""Does the loop anyone would write learn as much as the study's? CLR to 8,000 iterations, trained by a plain loop.

    python benchmarks/conventional.py --results results/cifar10 [--data-dir data/mine] [--dataset images] [--runs 5]

It shares nothing with the study's training but the images and the network: a data set of PIL images, a DataLoader that
shuffles, NCHW, torch's default threads, torch's own CyclicLR. Its test accuracies stand in
`<results>/tables/conventional_loop.csv` beside those of the headline's CLR runs in `<results>/headline`, with the
differences. Finished runs are kept in `<results>/conventional_loop/`.
"""

import argparse
import json
import os
from pathlib import Path

import pandas as pd
import torch
from throughput import PilImages
from torch.nn import functional as F
from torch.utils.data import DataLoader

from modules import models
from modules.data.datasets import Dataset, load
from modules.report import tables
from modules.report.formatting import readable
from modules.runs.files import atomic_write
from modules.runs.provenance import processor, revision
from modules.statistics import difference, verdict

AT = (4000, 8000)  # ends of the first two cycles
MARGIN = 0.005


def train(dataset: Dataset, seed: int, loaders: int) -> dict[int, float]:
    """Test accuracies of one run of a plain loop at the iterations `AT`."""
    torch.manual_seed(seed)
    model = models.build("cifar10_quick", dataset.channels, dataset.size, len(dataset.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0025, momentum=0.9, weight_decay=0.004)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.0025, 0.01, step_size_up=2000, cycle_momentum=False)
    train_images = PilImages(dataset.train_images, dataset.train_labels)
    test_images = PilImages(dataset.test_images, dataset.test_labels)
    found, iteration = {}, 0
    while iteration < AT[-1]:
        for inputs, labels in DataLoader(train_images, 100, shuffle=True, num_workers=loaders, drop_last=True):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            scheduler.step()
            iteration += 1
            if iteration in AT:
                model.eval()
                with torch.no_grad():
                    right = sum(
                        (model(inputs).argmax(1) == labels).sum().item()
                        for inputs, labels in DataLoader(test_images, 1000, num_workers=loaders)
                    )
                model.train()
                found[iteration] = right / len(test_images)
                print(f"seed {seed}, iteration {iteration:,}: test accuracy {found[iteration]:.4f}", flush=True)
            if iteration == AT[-1]:
                break
    return found


def compare(folder: Path, results: Path) -> pd.DataFrame:
    """The plain loop's accuracies beside the headline's, at each iteration of `AT`."""
    plain = [json.loads(path.read_text(encoding="utf-8"))["accuracy"] for path in sorted(folder.glob("seed*.json"))]
    ours = tables.curves(tables.read_runs(results / "headline"), "triangular")
    rows = []
    for at in AT:
        arms = {"plain loop": [run[str(at)] for run in plain], "study": ours.loc[at].tolist()}
        for name, values in arms.items():
            row = {"quantity": "accuracy", "policy": f"{name} at {at}", "runs": len(values)}
            rows.append(row | tables.mean_row(values, 0, 1))
        apart = difference(arms["plain loop"], arms["study"])
        row = {"quantity": "accuracy_difference", "policy": f"plain loop - study at {at}", "runs": len(plain)}
        rows.append(row | tables.row_of(apart, "Welch") | {"note": verdict(apart, MARGIN)})
    return tables.table_of(rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="a results folder whose headline/ is complete")
    parser.add_argument("--dataset", default="images", help="the data set the headline was trained on")
    parser.add_argument("--data-dir", help="where the data lie, if not in data/")
    parser.add_argument("--runs", type=int, default=5, help="seeds 1 to runs")
    parser.add_argument("--loaders", type=int, default=2, help="worker processes of the DataLoader")
    options = parser.parse_args()
    if not (options.results / "headline").is_dir():
        parser.error(f"--results {options.results}: no headline/ there to compare with")
    results = options.results.resolve()
    os.chdir(Path(__file__).resolve().parents[1])
    dataset = load(options.dataset, options.data_dir)
    folder = results / "conventional_loop"
    folder.mkdir(exist_ok=True)
    for seed in range(1, options.runs + 1):
        path = folder / f"seed{seed}.json"
        if not path.exists():
            about = {
                "accuracy": train(dataset, seed, options.loaders),
                "data": {"label": dataset.label, "fingerprint": dataset.fingerprint},
                "processor": processor(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "revision": revision(),
            }
            atomic_write(path, json.dumps(about, indent=2) + "\n")
    table = compare(folder, results)
    tables.write(table, results / "tables" / "conventional_loop.csv")
    print(readable(table).to_string(index=False))


if __name__ == "__main__":
    main()
