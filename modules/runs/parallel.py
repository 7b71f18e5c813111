"""Many runs at once on `dask.distributed`: one-thread worker processes, live progress, retries.

By default a cluster of this machine's cores, bound to loopback, is started and stopped around the runs. Where
`DASK_SCHEDULER_ADDRESS` names a scheduler, its workers are used; they must see the same folders under the same names.
"""

import logging
import multiprocessing.util
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from uuid import uuid4

import torch
from tqdm import tqdm

from modules.checks import RunError, first_line, short, whole
from modules.data.datasets import default_data_dir, load
from modules.runs.files import RunFiles, complete_runs, writing
from modules.runs.progress import Bar, Progress, State
from modules.runs.spec import Spec
from modules.runs.stacked import common, divided, train_together, why_not
from modules.runs.training import branches_of, check, train

TOPIC = "clr-progress"
SHOWN = "clr-shown"
WANTED = "clr-workers"
KILLS = 3  # of its worker in a row, after which a run is set aside
CROWD = 2  # workers a core at most: hundreds of them do nothing but start
PATIENCE = 60  # seconds without any worker of this machine's, after which a study ends
PATIENCE_ELSEWHERE = 600  # the same where a scheduler's own machines may still be on their way
SOCKET_PATH = 60  # bytes of a temporary folder's path: with what comes behind, a socket's may have 104

#: Where a study's notebooks find its cluster: the address of its scheduler.
SHARED = "CLR_STUDY_CLUSTER"

#: Set where a study's own process shows how far its notebooks' runs are: it has the terminal.
TOLD = "CLR_STUDY_TOLD"

# Elsewhere a process may not be forked once it has loaded what torch loads, or cannot be forked at all.
FORKED = sys.platform == "linux"

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
    specs: Sequence[Spec], folder: str | Path, data_dir: str | Path | None = None, workers: int | None = None
) -> list[RunFiles]:
    """Train every run that is not complete yet; complete ones are left alone, unfinished ones go on.

    Everything that can be wrong is looked for before the first run starts. Runs that are faster together than one
    after another (`stacked.divided`) are trained in groups.

    Args:
        specs: the runs; names must differ.
        folder: results folder, made when missing, held by a lock meanwhile.
        data_dir: as for `datasets.load`.
        workers: worker processes, never more than there are runs, nor than two for each core; by default one for each
            core, or one where there is a GPU, which they would have to share.

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
            done = {}
            for spec in pending:  # here, so that what is said of a checkpoint is said on this terminal
                state = RunFiles(held, spec.name).saved(spec, fingerprints[spec.dataset])
                done[spec.name] = state["iteration"] if state else 0
            place = Path(data_dir or default_data_dir()).resolve()  # a cluster's workers may have other defaults
            # By all runs, whatever is left of them: a group is then the same after a stop, and finds its checkpoint.
            kind = "cuda" if torch.cuda.is_available() else "cpu"
            alone, groups = divided(specs, kind)
            if kind == "cuda" and alone:
                print(f"one after another: {alone[0].name} and its like cannot be stacked, {why_not(alone[0])}")
            progress = Progress(pending, done)
            _run(
                [spec for spec in alone if spec.name in done],
                [group for group in groups if any(spec.name in done for spec in group)],
                progress,
                held.resolve(),
                place,
                workers,
                fingerprints,
            )
        for spec, file in zip(specs, files, strict=True):
            file.check(spec, fingerprints[spec.dataset])
    diverged = f", {progress.diverged} of these diverged" if pending and progress.diverged else ""
    print(f"{len(specs)} runs complete, {len(pending)} of them trained now{diverged}")
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
        for spec in {common(spec): spec for spec in asked}.values():
            check(spec, dataset)
        for spec in asked:
            RunFiles(folder, spec.name).check(spec, dataset.fingerprint)


def same_data(folder: str | Path, dataset: str, data_dir: str | Path | None = None) -> None:
    """Raise RunError when runs that others build on were trained on other data than there are now.

    Args:
        folder: their experiment's; it need not exist.
        dataset, data_dir: the data of the runs that build on them, as for `datasets.load`.
    """
    for run in complete_runs(folder)[:1]:  # they are all of one kind, or cannot be read as a table
        known, fingerprint = run.read()[1]["data"], load(dataset, data_dir).fingerprint
        if known["fingerprint"] != fingerprint:
            raise RunError(
                f"{folder} was trained on {known['label']}, fingerprint {known['fingerprint'][:12]}, and these data "
                f"have {fingerprint[:12]}: they have changed since; put them back, or use another RESULTS"
            )


@contextmanager
def cluster(workers: int, most: int | None = None) -> Iterator:
    """A client of one-thread workers.

    They are those of the scheduler that `DASK_SCHEDULER_ADDRESS` names, else those of the study that started this
    process (`shared_cluster`), else workers started here and ended afterwards.

    Args:
        workers: worker processes wanted; a scheduler that `DASK_SCHEDULER_ADDRESS` names has those it has.
        most: worker processes that a study's cluster may keep where it has more than wanted; by default `workers`.

    Raises:
        RunError: nobody answers at that address.
    """
    from distributed import Client
    from distributed.client import logger as client_logger

    # What goes wrong is said by the exceptions below, in a line; dask would log a traceback as well, and its
    # connections do so when they are cut while a message is under way.
    for logger in (client_logger, logging.getLogger("distributed.batched")):
        logger.setLevel(logging.CRITICAL)
    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        with _client(address, "DASK_SCHEDULER_ADDRESS") as client:
            if not client.scheduler_info()["workers"]:
                minutes = PATIENCE_ELSEWHERE // 60
                print(f"The scheduler at {address} has no workers yet; waiting {minutes} minutes for the first.")
            yield client
    elif address := os.environ.get(SHARED):
        with _own_settings(), _client(address, SHARED) as client:
            client.log_event(WANTED, {"least": workers, "most": most or workers})
            yield client
    else:
        with ExitStack() as stack:
            with _uninterrupted():
                started = stack.enter_context(_local_cluster(workers))
                # By its address: a client of a cluster would wait for all workers.
                client = stack.enter_context(Client(started.scheduler_address))
            yield client


@contextmanager
def shared_cluster(show: Callable[[State], None]) -> Iterator[None]:
    """One cluster for a whole study: processes started inside find it, and `cluster` gives them a client of it.

    Its workers start when they are first asked for, and stay until the end. Nothing is started where
    `DASK_SCHEDULER_ADDRESS` names a scheduler.

    Args:
        show: called with how far their runs are, about once a second, from another thread.
    """
    os.environ[TOLD] = "1"
    with ExitStack() as stack:
        stack.callback(os.environ.pop, TOLD)
        if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
            client = stack.enter_context(_client(address, "DASK_SCHEDULER_ADDRESS"))
            client.subscribe_topic(SHOWN, lambda event: show(State(*event[1])))
        else:
            stack.enter_context(_shared(show))
        yield


@contextmanager
def _shared(show: Callable[[State], None]) -> Iterator[None]:
    from distributed import SchedulerPlugin

    class Grow(SchedulerPlugin):
        def log_event(self, topic: str, message: dict) -> None:
            if topic == WANTED:
                _scale(started, min(message["most"], max(message["least"], len(started.worker_spec))))
            elif topic == SHOWN:
                show(State(*message))

    with ExitStack() as stack:
        with _uninterrupted():
            started = stack.enter_context(_local_cluster(0))
        started.scheduler.add_plugin(Grow())
        os.environ[SHARED] = started.scheduler_address
        stack.callback(os.environ.pop, SHARED)
        yield


@contextmanager
def _client(address: str, variable: str) -> Iterator:
    from distributed import Client

    try:
        client = Client(address)
    except Exception as error:  # whatever a wrong address, a silent port or a missing certificate leads to
        why = " ".join(str(error).split()) or type(error).__name__
        raise RunError(f"no scheduler answers at {variable}={address}: {short(why)}") from error
    with client:
        yield client


@contextmanager
def _own_settings() -> Iterator[None]:
    """dask's own defaults in place of the user's files and variables, which are for their own clusters."""
    import dask
    import distributed  # noqa: F401  # whose defaults are then among dask's

    with dask.config.set(dask.config.merge(*dask.config.defaults)):
        yield


@contextmanager
def _local_cluster(workers: int) -> Iterator:
    """A scheduler in this process, bound to loopback, and its workers: processes of one thread, replaced when lost."""
    import dask
    from distributed import LocalCluster
    from distributed.worker import logger as worker_logger
    from tornado.ioloop import PeriodicCallback

    worker_logger.setLevel(logging.ERROR)
    settings = {
        # A run goes to a worker when that worker is free, never into a queue behind another run.
        "distributed.scheduler.worker-saturation": 1.0,
        # Whoever asked for a run hears of every worker that it lost, and counts: a long run may outlive many.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
    }
    if FORKED:
        settings["distributed.worker.multiprocessing-method"] = "forkserver"
        settings["distributed.nanny.pre-spawn-environ"] = {}
    else:
        settings["distributed.nanny.pre-spawn-environ"] = WORKER_ENVIRONMENT
    with _own_settings(), dask.config.set(settings), _silent("asyncio"), ExitStack() as stack:
        try:
            started = stack.enter_context(
                LocalCluster(
                    n_workers=0,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    # Any free port: a second study beside this one is no cause for a warning. There are no pages on it,
                    # which others on this machine could read.
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                    death_timeout=PATIENCE,
                )
            )
        except (OSError, RuntimeError) as error:
            raise RunError(f"no scheduler can be started on 127.0.0.1: {first_line(_root(error))}") from error
        mending = PeriodicCallback(lambda: _mend(started), 1000)
        started.loop.add_callback(mending.start)
        stack.callback(started.loop.add_callback, mending.stop)
        _scale(started, workers)
        yield started


def _scale(started, workers: int) -> None:
    """Let a cluster of this machine have so many workers; they come later."""
    while len(started.worker_spec) > workers:
        started.worker_spec.popitem()
    while len(started.worker_spec) < workers:
        started.worker_spec.update(started.new_worker_spec())
    started.loop.add_callback(_mend, started)


async def _mend(started) -> None:
    """Start the workers that a cluster lacks.

    dask gives one up for good when its process is missing at the moment it looks, or could not be started.
    """
    from distributed import Status

    if started.status != Status.running:
        return
    for name, nanny in list(started.workers.items()):
        if nanny.status in (Status.closed, Status.failed):
            del started.workers[name]
    if started.worker_spec.keys() != started.workers.keys():
        try:
            _prepare_workers()
            await started._correct_state()
        except Exception as error:  # whatever keeps a process from starting; the next look tries again
            started.scheduler.log_event(TOPIC, {"trouble": first_line(_root(error))})


def _root(error: BaseException) -> BaseException:
    """What an error came from in the first place."""
    while before := error.__cause__ or error.__context__:
        error = before
    return error


def _prepare_workers() -> None:
    """Start the process that workers are forked from, which loads torch once for all of them.

    It stays until this process ends. The memory allocator reads its settings when a process starts, so they must be
    set here; afterwards this process's environment, which notebooks inherit, is as it was. Ctrl-C goes to a whole group
    of processes, and so does the end of their terminal, but ending the workers is this one's business: they never see
    either. Else dask would start them anew while this process ends, and wait for them for minutes.
    """
    if not FORKED:
        return
    from distributed.utils import get_mp_context

    # A process's first optimizer loads torch._dynamo, which takes as long as torch itself.
    get_mp_context().set_forkserver_preload(["distributed", "modules.runs.training", "torch._dynamo"])
    resource_tracker.ensure_running()  # first, as it lets Ctrl-C through to what is started next
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    folder = tempfile.tempdir
    os.environ.update({name: str(value) for name, value in WORKER_ENVIRONMENT.items()})
    if len(os.fsencode(tempfile.gettempdir())) > SOCKET_PATH:
        tempfile.tempdir = "/tmp"
    try:
        multiprocessing.util.get_temp_dir()  # which is remembered
        forkserver.ensure_running()
    finally:
        tempfile.tempdir = folder
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Without a logger's tracebacks, where what they tell is said in a line elsewhere."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ctrl-C may end a notebook's kernel amid its own tasks, which asyncio would log below the one line about it."""
    try:
        yield
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise


def _run(
    alone: Sequence[Spec],
    groups: Sequence[Sequence[Spec]],
    progress: Progress,
    folder: Path,
    data_dir: Path,
    workers: int | None,
    fingerprints: dict,
) -> None:
    from dask.system import CPU_COUNT
    from distributed.scheduler import KilledWorker

    failures, kills, running = [], {}, {}
    ended: queue.SimpleQueue = queue.SimpleQueue()
    workers = min(workers or (1 if torch.cuda.is_available() else CPU_COUNT), CROWD * CPU_COUNT)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        client = stack.enter_context(cluster(min(workers, len(alone) + len(groups)), workers))
        client.subscribe_topic(TOPIC, lambda event: progress.update(event[1]))
        if os.environ.get(TOLD):
            progress.show = lambda state: client.log_event(SHOWN, list(state))
        else:
            bar = Bar()
            progress.show = bar.show
            stack.callback(bar.close)
        begun = {spec.name for spec in alone if RunFiles(folder, spec.name).checkpoint.exists()}
        branches = branches_of(alone, begun)
        later = {branch.name for found in branches.values() for branch in found}
        grouped = {group[0].name for group in groups}

        def submit(runs: Sequence[Spec]) -> None:
            first = runs[0]
            together = first.name in grouped
            future = client.submit(
                _train,
                runs,
                together,
                folder,
                data_dir,
                fingerprints[first.dataset],
                () if together else branches.get(first.name, ()),
                # Never the key of an earlier client's task, which the scheduler may still have with other settings.
                key=f"{first.name}-{uuid4().hex}",
                pure=False,
                retries=1,
                # Longest first: a short run at the end leaves the fewest cores idle.
                priority=first.iterations,
            )
            running[future.key] = future, runs
            future.add_done_callback(ended.put)

        for runs in (*groups, *([spec] for spec in alone if spec.name not in later)):
            submit(runs)
        while running:
            future, runs = running.pop(_next(ended, client, progress).key)
            first = runs[0]
            error = future.exception() if future.status == "error" else None
            if isinstance(error, KilledWorker) and not _gave_up(kills, runs, progress):
                submit(runs)
                continue
            for branch in branches.get(first.name, ()):
                submit([branch])
            if future.status == "finished":
                progress.done(runs, future.result())
            elif error is None:
                raise RunError(
                    "the connection to the scheduler was lost: the same command goes on from the last evaluations"
                )
            else:
                others = f" and {len(runs) - 1} trained with it" if len(runs) > 1 else ""
                why = f"failed: {first_line(error)}"
                if isinstance(error, KilledWorker):
                    why = f"ended the worker process {KILLS} times in a row (out of memory?)"
                failures.append(f"{first.name}{others} {why}")
                tqdm.write(f"set aside: {failures[-1]}")
    if failures:
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise RunError("; ".join(failures[:3]) + more)


def _next(ended: queue.SimpleQueue, client, progress: Progress):
    """The next task that has ended, unless no worker has lived for as long as a study waits for one."""
    named = os.environ.get("DASK_SCHEDULER_ADDRESS")
    patience, where = (PATIENCE_ELSEWHERE, f" at {named}") if named else (PATIENCE, "")
    seen = time.monotonic()
    while True:
        with suppress(queue.Empty):
            return ended.get(timeout=1)
        progress.refresh()
        with suppress(OSError, AttributeError):  # a scheduler that is gone ends all its tasks soon
            if client.scheduler_info()["workers"]:
                seen = time.monotonic()
        if time.monotonic() - seen > patience:
            why = f" ({progress.trouble})" if progress.trouble else ""
            raise RunError(f"no worker process{where} for {patience} seconds{why}: the same command goes on")


def _gave_up(kills: dict[str, tuple[int, int]], runs: Sequence[Spec], progress: Progress) -> bool:
    """Count a death of a worker, and say whether its runs get no other: they came no further than the time before.

    `kills` has, by a task's first run, the deaths in a row and the evaluations that it had come to; it is changed.
    """
    evaluations = max(progress.at.get(spec.name, 0) // spec.evaluate_every for spec in runs)
    times, before = kills.get(runs[0].name, (0, -1))
    times = 1 if evaluations > before else times + 1
    kills[runs[0].name] = times, max(evaluations, before)
    return times >= KILLS


def _train(
    runs: Sequence[Spec], together: bool, folder: Path, data_dir: Path, fingerprint: str, branches: Sequence[Spec]
) -> list[str]:
    """On a worker: train one run, or several together, and say of each in a line how it ended."""
    say = _teller()

    def report(iteration: int, accuracies: dict[str, float | None]) -> None:
        for name, accuracy in accuracies.items():
            say({"name": name, "iteration": iteration, "accuracy": accuracy})

    where = dict(folder=folder, data_dir=data_dir, fingerprint=fingerprint, tell=lambda line: say({"said": line}))
    if together:
        paths = train_together(runs, report=report, **where)
    else:
        name = runs[0].name
        paths = [train(runs[0], report=lambda done, last: report(done, {name: last}), branches=branches, **where)]
    return [_outcome(path) for path in paths]


def _teller() -> Callable[[dict], None]:
    """On a worker: what sends the driver an event, and ends the task that nobody waits for any more."""
    from distributed import Status, get_worker

    worker = get_worker()
    key = worker.get_current_task()
    if worker.state.nthreads != 1:
        # Two runs in one process would change each other's number of threads, and with it their bytes.
        raise RunError(f"a worker has {worker.state.nthreads} threads: start workers with --nthreads 1")

    def say(event: dict) -> None:
        task = worker.state.tasks.get(key)
        if worker.status not in (Status.running, Status.paused) or task is None or task.state == "cancelled":
            raise Abandoned("client or scheduler is gone, nobody waits for this run")
        worker.log_event(TOPIC, event)

    return say


def _outcome(path: Path) -> str:
    """How a complete run ended, in a line."""
    text, record = RunFiles(path.parent, path.stem).read()
    rows = text.splitlines()
    last = rows[-1].split(",") if len(rows) > 1 else None
    if last is None:
        return "diverged before its first evaluation"
    reached = f"accuracy {float(last[-1]):.4f}" if last[-1] else f"training loss {float(last[2]):.4g}"
    ended = ", diverged" if record["diverged"] else ""
    return f"{reached} after {int(last[0]):,} iterations{ended}"
