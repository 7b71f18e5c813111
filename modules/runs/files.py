"""The files of a study: where they lie, written whole or not at all, checked by their checksums, one writer at a time.

A results folder holds a folder for each experiment (`headline/`), and `tables/`, `figures/`, `notebooks/`. A run's
results are `<policy>-seed<k>.csv` and `.json` in its experiment's folder; while it is under way its checkpoint is
`.partial/<name>.pt`, taken up only by the run that wrote it. Where an experiment is published, all its runs are in one
pack, as `packed` says. Whoever reads runs asks here, and need not know which of the two it is.
"""

import csv
import hashlib
import io
import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import filelock
import torch

from modules.checks import RunError, short
from modules.runs import packed
from modules.runs.provenance import recorded
from modules.runs.spec import Spec, differences

#: How a checkpoint is laid out, and what it has; one of another layout, or none of these, is set aside.
LAYOUT = 1
PARTS = ("iteration", "seconds", "starts", "rows", "model", "optimizer", "scheduler", "average")

COLUMNS = ("iteration", "lr", "train_loss", "val_loss", "val_acc")


class NotTakenUp(ValueError):
    """A checkpoint that training cannot go on from; the message says why."""


def complete_runs(folder: str | Path, policy: str = "*") -> "list[RunFiles]":
    """The complete runs in one experiment's folder, packed or not, in the order of their names.

    Args:
        folder: the experiment's folder; it need not exist.
        policy: only runs of this policy or variant.

    Raises:
        RunError: the folder's pack is damaged.
    """
    names = {path.stem for path in Path(folder).glob("*-seed*.csv")}
    if pack := _pack(folder):
        names |= set(pack.names)
    return [RunFiles(folder, name) for name in sorted(names) if policy in ("*", name.rpartition("-seed")[0])]


def experiments(results: str | Path) -> list[str]:
    """The experiments in a results folder that have a complete run, in the order of their names."""
    folders = sorted(path for path in Path(results).glob("[!.]*") if path.is_dir())
    return [folder.name for folder in folders if complete_runs(folder)]


def pack_runs(folder: str | Path) -> None:
    """Put all complete runs of an experiment into its pack, `runs.csv` and `runs.jsonl`, and delete their own files.

    A stop in between loses nothing: a run's own files go last, and until then they are what counts.

    Raises:
        RunError: a run is damaged, or is there twice with different results, or has other columns than the others.
    """
    folder = Path(folder)
    runs = complete_runs(folder)
    loose = [run for run in runs if run.csv.exists() or run.json.exists()]
    if not loose:
        return
    contents = {run.name: run.read() for run in runs}
    sums = {name: checksums(table.encode(), record) for name, (table, record) in contents.items()}
    if before := _pack(folder):
        for run in loose:
            if run.name in before.names and before.run(run.name)[1]["sha256"] != sums[run.name]:
                raise RunError(f"{run.csv} is not the {run.name} of {folder / packed.TABLE}: take one of them out")
    table, records = packed.packed(
        {name: (table, {**record, "sha256": sums[name]}) for name, (table, record) in contents.items()}
    )
    again = packed.Pack(table, records)
    for name in contents:
        text, record = again.run(name)
        del record["sha256"]
        if checksums(text.encode(), record) != sums[name]:
            raise RunError(f"{folder / name} cannot be packed: its columns are not those of the other runs")
    atomic_write(folder / packed.RECORDS, records)
    atomic_write(folder / packed.TABLE, table)
    for run in loose:
        run.csv.unlink(missing_ok=True)
        run.json.unlink(missing_ok=True)


def _pack(folder: str | Path) -> packed.Pack | None:
    """The pack of an experiment's folder, where there is one."""
    table, records = (Path(folder) / name for name in (packed.TABLE, packed.RECORDS))
    if not table.exists():  # it is written last
        return None
    if not records.exists():
        raise RunError(f"{table} has no {records.name} beside it: restore it")
    stats = (path.stat() for path in (table, records))
    return _read_pack(table, records, *((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats))


@lru_cache(maxsize=4)  # a study asks for its runs one by one
def _read_pack(table: Path, records: Path, *stamps: tuple[int, int, int]) -> packed.Pack:
    """The pack in two files; `stamps` are others when the files are."""
    try:
        return packed.Pack(table.read_bytes().decode(), records.read_bytes().decode())
    except (RunError, UnicodeDecodeError) as error:
        raise RunError(f"{table.parent}: {error}: restore {table.name} and {records.name}") from error


class RunFiles:
    """Where one run's results live in a folder: `csv` and `json`, or the folder's pack.

    Args:
        folder: the experiment's results folder.
        name: the run's name, `<policy>-seed<k>`.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.folder = folder = Path(folder)
        self.name = name
        self.csv = folder / f"{name}.csv"
        self.json = folder / f"{name}.json"
        self.weights = folder / f"{name}.weights.pt"
        self.checkpoint = folder / ".partial" / f"{name}.pt"

    @property
    def complete(self) -> bool:
        """Whether everything of it is there: of its own files the CSV is written last."""
        return self.csv.exists() or self._packed is not None

    @property
    def _packed(self) -> packed.Pack | None:
        """Its folder's pack, where it is in there and has no files of its own."""
        pack = None if self.csv.exists() else _pack(self.folder)
        return pack if pack and self.name in pack else None

    @property
    def place(self) -> Path:
        """What messages call it: its CSV, or its name in the folder of its pack."""
        return self.folder / self.name if self._packed else self.csv

    def table(self) -> bytes:
        """A complete run's CSV as it lies here, unchecked."""
        return pack.run(self.name)[0].encode() if (pack := self._packed) else self.csv.read_bytes()

    def read(self) -> tuple[str, dict]:
        """A complete run's CSV text and JSON record, both as the run wrote them.

        Raises:
            RunError: one of them is missing, unreadable, not what the run wrote, or holds what no run writes.
        """
        pack = self._packed
        try:
            table = self.table()
            record = pack.run(self.name)[1] if pack else json.loads(self.json.read_bytes())
            stored = record.pop("sha256")
            written = {"csv": stored["csv"], "record": stored["record"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable(error) from error
        actual = checksums(table, record)
        for part, path, shared in (("csv", self.csv, packed.TABLE), ("record", self.json, packed.RECORDS)):
            if written[part] != actual[part]:
                if self._packed:
                    raise RunError(
                        f"{self.place} is not as the run wrote it (checksum): restore {self.folder / shared}"
                    )
                raise RunError(
                    f"{path} is not as the run wrote it (checksum): restore it, or delete {self.csv.name} and "
                    f"{self.json.name} and the run is trained anew"
                )
        try:
            check_rows(text := table.decode())
            recorded(record)
        except ValueError as error:
            raise RunError(f"{self.place}: {error}") from error
        return text, record

    def _unreadable(self, error: Exception) -> RunError:
        why = type(error).__name__
        if self._packed:
            return RunError(f"{self.place} has no readable record ({why}): restore {self.folder / packed.RECORDS}")
        return RunError(
            f"{self.csv} has no readable {self.json.name} beside it ({why}): restore it, or delete both and the run is "
            "trained anew"
        )

    def check(self, asked: Spec, fingerprint: str) -> None:
        """Raise RunError when a complete run here is damaged or not the one asked for; it is never overwritten."""
        if not self.complete:
            return
        _, record = self.read()
        found = differences(recorded(record), asked)
        if record["data"]["fingerprint"] != fingerprint:
            found.append(f"data: fingerprint {record['data']['fingerprint'][:12]}, not {fingerprint[:12]}")
        if found:
            raise RunError(
                f"{self.place} is a complete run with other settings ({'; '.join(found)}): move it or use another "
                "folder"
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

    def save(self, asked: Spec, fingerprint: str, state: dict) -> None:
        """Replace the checkpoint.

        Args:
            asked, fingerprint: whose it is, and the data's.
            state: what `saved` is to give back; anything `torch.load(weights_only=True)` reads.

        Raises:
            RunError: it cannot be written; the one before is still there.
        """
        write_checkpoint(self.checkpoint, {"spec": asked.model_dump_json(), "fingerprint": fingerprint} | state)

    def saved(self, asked: Spec, fingerprint: str, say: Callable[[str], None] = print) -> dict | None:
        """What the checkpoint holds, or None where the run has to start from the beginning.

        Args:
            asked, fingerprint: what is to be trained, and the data's fingerprint.
            say: as for `read_checkpoint`.
        """

        def check(state: dict) -> None:
            found = differences(Spec(**json.loads(state["spec"])), asked)
            if state["fingerprint"] != fingerprint:
                found.append("data: another fingerprint")
            if found:
                raise NotTakenUp(f"is of other settings ({'; '.join(found)})")
            check_state(state, asked.iterations, PARTS)

        return read_checkpoint(self.checkpoint, check, f"{self.name} starts", say)

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


def write_checkpoint(path: Path, state: dict) -> None:
    """Replace a checkpoint by a state, anything that `torch.load(weights_only=True)` reads.

    Raises:
        RunError: it cannot be written; the one before is still there.
    """
    content = io.BytesIO()
    torch.save({"layout": LAYOUT} | state, content)
    try:
        while True:
            path.parent.mkdir(exist_ok=True)
            # A run that finishes just now takes the folder away when it looks empty: make it again.
            with suppress(FileNotFoundError):
                return atomic_write(path, content.getvalue())
    except OSError as error:
        raise RunError(f"checkpoint {path} cannot be written: {error.strerror}") from error


def read_checkpoint(
    path: Path, check: Callable[[dict], None], who: str, say: Callable[[str], None] = print, device: str = "cpu"
) -> dict | None:
    """What a checkpoint holds, or None where there is none to go on from.

    One that cannot be read, or is of other settings or data, may still be hours of somebody's work: it is set aside.

    Args:
        path: the checkpoint's.
        check: called with what it holds; raises whatever it likes where that is wrong, `NotTakenUp` to say why.
        who, say: as for `set_aside`.
        device: where its tensors go.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        # torch does not look at the archive's own checksums.
        if zipfile.ZipFile(io.BytesIO(content)).testzip():
            raise ValueError("a checksum does not match")
        state = torch.load(io.BytesIO(content), weights_only=True, map_location=device)
        check(state)
        return state
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except NotTakenUp as error:
        why = str(error)
    except Exception as error:  # whatever the damage leads to
        why = f"could not be read ({type(error).__name__})"
    set_aside(path, why, who, say)
    return None


def set_aside(path: Path, why: str, who: str, say: Callable[[str], None] = print) -> None:
    """Put a checkpoint into `.set-aside/`.

    Args:
        path: the checkpoint's.
        why: what is said of it.
        who: who has no checkpoint now, such as `fixed-seed1 starts`.
        say: called with a line that says all this.
    """
    aside = path.parents[1] / ".set-aside" / f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pt"
    aside.parent.mkdir(exist_ok=True)
    path.replace(aside)
    say(f"{path} {why}: set aside as {aside.parent.name}/{aside.name}, {who} from the beginning")


def check_state(state: dict, iterations: int, parts: Iterable[str], runs: int | None = None) -> None:
    """Refuse a checkpoint that cannot be taken up.

    Args:
        state: what it holds.
        iterations: of the run; it cannot have done more.
        parts: what it must have; a checkpoint from before there were layouts is of the first.
        runs: how many runs it is of, each with rows of its own, where it is a group's.

    Raises:
        NotTakenUp: it is of another layout, or says what cannot be.
    """

    def need(good: bool, why: str) -> None:
        if not good:
            raise NotTakenUp(f"is of another layout ({why})")

    need(isinstance(state, dict) and state.get("layout", 1) == LAYOUT, "another version wrote it")
    missing = [part for part in parts if part not in state]
    need(not missing, f"it has no {', '.join(missing)}")
    done = state["iteration"]
    need(type(done) is int and 0 <= done <= iterations, f"iteration={done} of {iterations}")
    of_runs = [state["rows"]] if runs is None else state["rows"]
    need(isinstance(of_runs, list) and len(of_runs) == (runs or 1), "its rows are not those of its runs")
    for rows in of_runs:
        whole = isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(COLUMNS) for row in rows)
        need(whole and all(row[0] <= done for row in rows), "its rows are none")


def as_csv(rows: Iterable[Iterable]) -> str:
    """A run's rows as its CSV has them; every number in as many digits as give it back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()


def check_rows(table: str) -> None:
    """Look whether a run's CSV has the rows of a run: their numbers, and between which bounds.

    Raises:
        RunError: one line that names the first row that is wrong.
    """
    header, *rows = table.splitlines() or [""]
    if header != ",".join(COLUMNS):
        raise RunError(f"its columns are {short(header)}, not {','.join(COLUMNS)}")
    before = 0
    for row in rows:
        try:
            iteration, lr, *losses, accuracy = row.split(",")
            good = before < int(iteration) and 0 <= float(lr) < math.inf and len(losses) == 2
            good &= all(math.isfinite(float(loss)) for loss in losses if loss) and 0 <= float(accuracy or 0) <= 1
        except ValueError:
            good = False
        if not good:
            raise RunError(f"no run writes the row {short(row)}")
        before = int(iteration)


def checksums(table: bytes, record: dict) -> dict[str, str]:
    """SHA-256 of a run's CSV, and of its record (without checksums) as sorted JSON."""
    text = json.dumps(record, sort_keys=True).encode()
    return {"csv": hashlib.sha256(table).hexdigest(), "record": hashlib.sha256(text).hexdigest()}


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all, whether the process is killed or the power fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else the name may reach the disk before the content does
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
            lock.acquire(timeout=0)
            holder.write_bytes(f"process {os.getpid()}, since {time.strftime('%H:%M:%S')}".encode())
    except filelock.Timeout:
        by = f" ({holder.read_bytes().decode()})" if holder.exists() else ""
        raise RunError(f"{folder} is being written by another process{by}") from None
    try:
        sweep(folder)
        yield folder
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """A folder to write in, made when missing; what the disk refuses is said in a line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except filelock.Timeout:  # an OSError, and no complaint of the disk's
        raise
    except OSError as error:
        raise RunError(f"results folder {folder} cannot be written: {error.strerror}") from error
