"""Many runs at once on `dask.distributed`: one-thread worker processes, live progress, retries.

By default a cluster of this machine's cores, bound to loopback, is started and stopped around the runs. Where
`DASK_SCHEDULER_ADDRESS` names a scheduler, its workers are used; they must see the same folders under the same names.
"""

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import torch
from tqdm import tqdm

from modules.checks import RunError, first_line, short, whole
from modules.data.datasets import default_data_dir, load
from modules.runs import checkpoints
from modules.runs.files import RunFiles, writing
from modules.runs.spec import Spec
from modules.runs.training import anneals, check, train

TOPIC = "clr-progress"

# dask asks glibc to hand memory back after every iteration by default, which costs page faults in the next one;
# huge pages save address translation in the 13 MB activations.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "MALLOC_TRIM_THRESHOLD_": 2**30,
    "MALLOC_MMAP_THRESHOLD_": 2**25,
    "THP_MEM_ALLOC_ENABLE": 1,
    # A run that fails is named by the client in one line; the worker's own traceback would come on top.
    "DASK_LOGGING__DISTRIBUTED": "critical",
}


class Abandoned(Exception):
    """A worker's run that nobody waits for any more; it ends at once and leaves its checkpoint."""


def run_all(
    specs: Sequence[Spec],
    folder: str | Path,
    data_dir: str | Path | None = None,
    workers: int | None = None,
) -> list[RunFiles]:
    """Train every run that is not complete yet; complete ones are left alone, unfinished ones go on.

    Everything that can be wrong is looked for before the first run starts.

    Args:
        specs: the runs; names must differ.
        folder: results folder, made when missing, held by a lock meanwhile.
        data_dir: as for `datasets.load`.
        workers: worker processes, never more than there are runs; by default one for each core, or one where there is
            a GPU, which they would have to share.

    Returns:
        The files of all runs, in the order of `specs`.

    Raises:
        RunError: bad settings, a folder in use or holding other runs, or a run that failed for good.
        DataError: the data cannot be read.
    """
    check_all(specs, folder, data_dir, workers)
    files = [RunFiles(folder, spec.name) for spec in specs]
    pending = [spec for spec, file in zip(specs, files, strict=True) if not file.complete]
    if pending:
        # Once: to see that a folder of images has not changed takes a look at each of its files.
        fingerprints = {name: load(name, data_dir).fingerprint for name in {spec.dataset for spec in specs}}
        with writing(folder) as held:
            for spec in pending:  # here, so that what is said of a checkpoint is said on this terminal
                checkpoints.resume(RunFiles(held, spec.name), spec, fingerprints[spec.dataset])
            place = Path(data_dir or default_data_dir()).resolve()  # a cluster's workers may have other defaults
            _run(pending, held.resolve(), place, workers, fingerprints)
        for spec, file in zip(specs, files, strict=True):
            file.check(spec, fingerprints[spec.dataset])
    print(f"{len(specs)} runs complete, {len(pending)} of them trained now")
    return files


def check_all(
    specs: Sequence[Spec], folder: str | Path, data_dir: str | Path | None = None, workers: int | None = None
) -> None:
    """Look for everything that can be wrong with a call of `run_all`, and change nothing.

    Arguments and errors as for `run_all`.
    """
    if workers is not None:
        whole("workers", workers)
    if not isinstance(folder, str | Path):
        raise RunError(f"folder={short(folder)}: a path is needed")
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names):
        raise RunError(f"two runs have the same name: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    for name in sorted({spec.dataset for spec in specs}):
        dataset, asked = load(name, data_dir), [spec for spec in specs if spec.dataset == name]
        for spec in {
            (s.model, s.pooling, s.init, s.activation, s.bias_lr_mult, s.multipliers, s.batch_size): s for s in asked
        }.values():
            check(spec, dataset)
        for spec in asked:
            RunFiles(folder, spec.name).check(spec, dataset.fingerprint)


@contextmanager
def cluster(workers: int) -> Iterator:
    """A client of the cluster that `DASK_SCHEDULER_ADDRESS` names, else of one started here with one-thread workers.

    Args:
        workers: worker processes to start, where the cluster is started here.

    Raises:
        RunError: nobody answers at that address.
    """
    import dask
    from distributed import Client, LocalCluster
    from distributed.client import logger as client_logger
    from distributed.worker import logger as worker_logger

    # What goes wrong is said by the exceptions below, in a line; dask would log a traceback as well, and its
    # connections do so when they are cut while a message is under way.
    for logger in (client_logger, logging.getLogger("distributed.batched")):
        logger.setLevel(logging.CRITICAL)
    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        try:
            client = Client(address)
        except Exception as error:  # whatever a wrong address, a silent port or a missing certificate leads to
            why = " ".join(str(error).split()) or type(error).__name__
            raise RunError(f"no scheduler answers at DASK_SCHEDULER_ADDRESS={address}: {short(why)}") from error
        with client:
            if not client.scheduler_info()["workers"]:
                print(f"The scheduler at {address} has no workers yet; waiting for the first.")
            yield client
        return
    worker_logger.setLevel(logging.ERROR)
    settings = {
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
        # A run goes to a worker when that worker is free, never into a queue behind another run.
        "distributed.scheduler.worker-saturation": 1.0,
        # A long run may outlive many a worker.
        "distributed.scheduler.allowed-failures": 1000,
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        with _uninterrupted():
            started = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    # Any free port: a second study beside this one is no cause for a warning.
                    dashboard_address="127.0.0.1:0",
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                )
            )
            client = stack.enter_context(Client(started))
        try:
            yield client
        except KeyboardInterrupt:
            # A notebook's kernel may now end amid its own tasks, which asyncio would log below the one line about it.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C until a cluster is whole: half a cluster hangs.

    The processes started meanwhile, and those that their nannies start later, never see it: Ctrl-C goes to a whole
    group of processes, but ending the workers is this one's business.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
        if came:
            raise KeyboardInterrupt


def _run(specs: Sequence[Spec], folder: Path, data_dir: Path, workers: int | None, fingerprints: dict) -> None:
    from dask.system import CPU_COUNT
    from distributed import as_completed

    failures = []
    workers = workers or (1 if torch.cuda.is_available() else CPU_COUNT)
    with cluster(min(workers, len(specs))) as client, _Progress(specs) as progress:
        client.subscribe_topic(TOPIC, lambda event: progress.update(event[1]))
        twins = _twins(specs, folder)
        later = {twin.name for twin in twins.values()}

        def submit(spec: Spec):
            return client.submit(
                _train,
                spec,
                folder,
                data_dir,
                fingerprints[spec.dataset],
                twins.get(spec.name),
                # Never the key of an earlier client's task, which the scheduler may still have with other settings.
                key=f"{spec.name}-{uuid4().hex}",
                pure=False,
                retries=1,
                # Longest first: a short run at the end leaves the fewest cores idle.
                priority=spec.iterations,
            )

        futures = {submit(spec): spec for spec in specs if spec.name not in later}
        ended = as_completed(futures)
        for future in ended:
            spec = futures[future]
            if twin := twins.get(spec.name):
                futures[begun := submit(twin)] = twin
                ended.add(begun)
            if future.status == "finished":
                progress.done(spec, future.result())
            elif future.status != "error":
                raise RunError(
                    "the connection to the scheduler was lost: the same command goes on from the last evaluations"
                )
            else:
                failures.append(f"{spec.name} failed: {first_line(future.exception())}")
    if failures:
        raise RunError("; ".join(failures))


def _twins(specs: Sequence[Spec], folder: Path) -> dict[str, Spec]:
    """By a run's name, the one that goes on from its checkpoint where it anneals, and so has to wait for it."""
    waiting = [spec for spec in specs if spec.policy.anneal and not RunFiles(folder, spec.name).checkpoint.exists()]
    found = {}
    for twin in waiting:
        stems = (spec for spec in specs if spec.name not in found and anneals(twin, spec))
        if stem := next(stems, None):
            found[stem.name] = twin
    return found


def _train(spec: Spec, folder: Path, data_dir: Path, fingerprint: str, twin: Spec | None) -> str:
    """On a worker: train one run and say in a line how it ended."""
    from distributed import Status, get_worker

    worker = get_worker()
    key = worker.get_current_task()
    if worker.state.nthreads != 1:
        # Two runs in one process would change each other's number of threads, and with it their bytes.
        raise RunError(f"a worker has {worker.state.nthreads} threads: start workers with --nthreads 1")

    def report(iteration: int, accuracy: float | None) -> None:
        task = worker.state.tasks.get(key)
        if worker.status not in (Status.running, Status.paused) or task is None or task.state == "cancelled":
            raise Abandoned("client or scheduler is gone, nobody waits for this run")
        worker.log_event(TOPIC, {"name": spec.name, "iteration": iteration, "accuracy": accuracy})

    path = train(spec, folder, data_dir, report=report, fingerprint=fingerprint, twin=twin)
    rows = path.read_text().splitlines()
    last = rows[-1].split(",") if len(rows) > 1 else None
    if last is None:
        return "diverged before its first evaluation"
    reached = f"accuracy {float(last[-1]):.4f}" if last[-1] else f"training loss {float(last[2]):.4f}"
    ended = ", diverged" if json.loads(path.with_suffix(".json").read_text())["diverged"] else ""
    return f"{reached} after {int(last[0]):,} iterations{ended}"


class _Progress:
    """One bar over all iterations, with each running run's iteration and accuracy behind it."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.bar = tqdm(total=sum(spec.iterations for spec in specs), unit="it", mininterval=2, dynamic_ncols=True)
        self.at: dict[str, tuple[int, float | None]] = {}
        self.finished: set[str] = set()
        self.lock = threading.Lock()  # events come in the client's thread, endings in the main one

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()

    def update(self, event: dict) -> None:
        """Take a worker's event: `{"name", "iteration", "accuracy"}`."""
        name, iteration = event["name"], event["iteration"]
        with self.lock:
            if name in self.finished:
                return
            if name not in self.at:
                # What an earlier start of the study left is not this one's speed.
                self.bar.n += iteration
                self.bar.initial += iteration
                self.bar.last_print_n += iteration
                self.at[name] = (iteration, None)
            before = self.at[name][0]
            self.at[name] = (iteration, event["accuracy"])
            running = (
                f"{name} {iteration:,}" + (f" acc {accuracy:.3f}" if accuracy is not None else "")
                for name, (iteration, accuracy) in self.at.items()
            )
            self.bar.set_postfix_str(", ".join(running), refresh=False)
            self.bar.update(iteration - before)

    def done(self, spec: Spec, outcome: str) -> None:
        """A run ended: count what its last event left out, and keep a line about it."""
        with self.lock:
            self.bar.update(spec.iterations - self.at.pop(spec.name, (0, None))[0])
            self.finished.add(spec.name)
        self.bar.write(f"{spec.name}: {outcome}")
