"""Runs for TensorBoard: what their CSVs hold, as event files."""

from pathlib import Path

import pandas as pd


def write_events(runs: pd.DataFrame, folder: str | Path) -> None:
    """Write one folder of event files a run, in place of those an earlier call wrote.

    Args:
        runs: as `tables.read_runs` gives them.
        folder: where `<policy>-seed<k>/` goes. TensorBoard names event files after the machine: they are for reading
            here, not for publishing.

    Source: best_lr's `--log_dir`.
    """
    from torch.utils.tensorboard import SummaryWriter

    for (policy, seed), rows in runs.groupby(["policy", "seed"]):
        target = Path(folder) / f"{policy}-seed{seed}"
        for old in target.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(target) as writer:
            for row in rows.itertuples():
                for name in ("lr", "train_loss", "val_loss", "val_acc"):
                    if pd.notna(value := getattr(row, name)):
                        writer.add_scalar(name, value, row.iteration)
