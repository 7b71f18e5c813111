"""The files of runs: written whole or not at all, checked by their checksums, one writer at a time.

A run's results are `<policy>-seed<k>.csv` and `.json`; while it is under way its checkpoint is `.partial/<name>.pt`.
"""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import torch

from modules.checks import RunError
from modules.runs.spec import Spec, differences, spec

COLUMNS = ("iteration", "lr", "train_loss", "val_loss", "val_acc")


class RunFiles:
    """Where one run's results live in a folder.

    Args:
        folder: the experiment's results folder.
        name: the run's name, `<policy>-seed<k>`.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        folder = Path(folder)
        self.csv = folder / f"{name}.csv"
        self.json = folder / f"{name}.json"
        self.weights = folder / f"{name}.weights.pt"
        self.checkpoint = folder / ".partial" / f"{name}.pt"

    @property
    def complete(self) -> bool:
        """The CSV is written last, so it is there only when everything is."""
        return self.csv.exists()

    def read(self) -> tuple[str, dict]:
        """A complete run's CSV text and JSON record, both as the run wrote them.

        Raises:
            RunError: one of them is missing, unreadable, or not what the run wrote.
        """
        try:
            table = self.csv.read_bytes()
            record = json.loads(self.json.read_bytes())
            stored = record.pop("sha256")
            written = ((self.csv, stored["csv"]), (self.json, stored["record"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.csv} has no readable {self.json.name} beside it ({type(error).__name__}): restore it, or "
                "delete both and the run is trained anew"
            ) from error
        for (path, checksum), actual in zip(written, checksums(table, record).values(), strict=True):
            if checksum != actual:
                raise RunError(
                    f"{path} is not as the run wrote it (checksum): restore it, or delete {self.csv.name} and "
                    f"{self.json.name} and the run is trained anew"
                )
        return table.decode(), record

    def check(self, asked: Spec, fingerprint: str) -> None:
        """Raise RunError when a complete run here is damaged or not the one asked for; it is never overwritten."""
        if not self.complete:
            return
        _, record = self.read()
        try:
            found = differences(spec(**record["spec"]), asked)
        except RunError as error:
            raise RunError(f"{self.json}: {error}") from error
        if record["data"]["fingerprint"] != fingerprint:
            found.append(f"data: fingerprint {record['data']['fingerprint'][:12]}, not {fingerprint[:12]}")
        if found:
            raise RunError(
                f"{self.csv} is a complete run with other settings ({'; '.join(found)}): move it or use another folder"
            )

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold this one run; waits while another process trains it.

        The folder's lock (`writing`) is its driver's. A driver that was killed leaves workers behind for a few seconds,
        and on a cluster of others' for as long as their runs last.

        Raises:
            RunError: the folder cannot be written.
        """
        path = self.csv.with_name(f".{self.csv.stem}.lock")
        lock = filelock.FileLock(path)
        with _writable(self.csv.parent):
            lock.acquire()
        try:
            sweep(self.checkpoint.parent, self.checkpoint.name)
            yield
        finally:
            if self.complete:
                self.checkpoint.unlink(missing_ok=True)
            with suppress(OSError):  # other runs are still in there, or it never was
                self.checkpoint.parent.rmdir()
            path.unlink(missing_ok=True)  # filelock's waiters look again when the file they hold has lost its name
            lock.release()

    def keep(self, weights: dict) -> None:
        """Write a network's `state_dict()`, before `finish`.

        Raises:
            RunError: it cannot be written; the checkpoint is still there.
        """
        content = io.BytesIO()
        torch.save({key: value.cpu() for key, value in weights.items()}, content)
        with _writable(self.csv.parent):
            atomic_write(self.weights, content.getvalue())

    def finish(self, rows: Iterable[tuple], record: dict) -> None:
        """Write a complete run: JSON first, CSV last.

        Raises:
            RunError: they cannot be written; the checkpoint is still there.
        """
        table = as_csv(rows).encode()
        record = {**record, "sha256": checksums(table, record)}
        with _writable(self.csv.parent):
            atomic_write(self.json, json.dumps(record, indent=2) + "\n")
            atomic_write(self.csv, table)


def as_csv(rows: Iterable[Iterable]) -> str:
    """A run's rows as its CSV has them; every number in as many digits as give it back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()


def checksums(table: bytes, record: dict) -> dict[str, str]:
    """SHA-256 of a run's CSV, and of its record (without checksums) as sorted JSON."""
    text = json.dumps(record, sort_keys=True).encode()
    return {"csv": hashlib.sha256(table).hexdigest(), "record": hashlib.sha256(text).hexdigest()}


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, name: str = "*") -> None:
    """Delete what a killed `atomic_write` to a file of that name left behind; for whoever holds the folder."""
    for stale in folder.glob(f".{name}.*.tmp"):
        stale.unlink(missing_ok=True)


@contextmanager
def writing(folder: str | Path) -> Iterator[Path]:
    """Hold a results folder for writing; it is created when missing.

    Raises:
        RunError: the folder cannot be written, or another process holds it.
    """
    folder = Path(folder)
    lock, holder = filelock.FileLock(folder / ".lock"), folder / ".holder"
    try:
        with _writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            holder.write_text(f"process {os.getpid()}, since {time.strftime('%H:%M:%S')}")
    except filelock.Timeout:
        by = f" ({holder.read_text()})" if holder.exists() else ""
        raise RunError(f"{folder} is being written by another process{by}") from None
    try:
        sweep(folder)
        yield folder
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except filelock.Timeout:  # an OSError, and no complaint of the disk's
        raise
    except OSError as error:
        raise RunError(f"results folder {folder} cannot be written: {error.strerror}") from error
