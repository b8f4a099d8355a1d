"""One Ray actor a worker, on this machine or on a cluster. The only file that imports ray, and only when it is used."""

import logging
import os
import socket
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .config import StudyConfig, check_address, num_cores
from .data import Dataset
from .errors import Failure, UsageError
from .jobs import Job, Worker
from .pace import Pace
from .packages import code_digest, copy_packages
from .placement import Node, Placement, gpu_fraction, place
from .workers import Broken, Event, Finished, Progress, event_of, timed_out

CONNECT_TIMEOUT_S: Final = 10.0
START_TIMEOUT_S: Final = 120.0
MAX_FAILED_STARTS: Final = 3
IDLE_ANSWERS_S: Final = 5.0  # what an idle worker that lives does in milliseconds
KERNEL_COUNTERS: Final = Path("/proc/vmstat")


@dataclass
class _Run:
    """A job on its worker. Times are `time.monotonic`'s."""

    job: Job
    actor: Any
    started: float
    last_epoch: float
    oom_kills: int


class RayExecutor:
    """Workers are actors that Ray never restarts, and their tasks are never retried by it: the driver decides.

    A worker that dies, is stuck or runs out of time is replaced. Where there is no room for the new one (its node is
    gone), it waits until there is, and the others go on.
    """

    def __init__(self, config: StudyConfig, dataset: Dataset) -> None:
        # `uv run` makes Ray re-package the folder for its workers, which already run in this environment
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray

        self._ray: Any = ray
        self._workers_asked, self._trial_timeout_s = config.workers, config.trial_timeout_s
        self._probing = config.gpus_per_trial == "auto"
        self._pace = Pace()
        self._code = code_digest()
        self._starting: dict[Any, tuple[Any, float]] = {}
        self._idle: list[Any] = []
        self._running: dict[Any, _Run] = {}
        self._failed_starts, self._any_started = 0, False
        self._owns_session = not ray.is_initialized()
        try:
            if self._owns_session:
                _join(ray, config.address) if config.address else _start(ray)
            if config.gpus_per_trial == "auto":
                self.placement = self._probe_placement()
            else:
                self.placement = place(self._nodes(), config.workers, config.gpus_per_trial)
            self._dataset = ray.put(dataset)
            for _ in range(self.placement.num_workers):
                self._start_worker()
            self._wait_for_workers()
        except BaseException:
            self.close()
            raise

    def has_room(self) -> bool:
        return bool(self._idle)

    def submit(self, job: Job) -> None:
        actor, now = self._idle.pop(), time.monotonic()
        stream = actor.run.options(num_returns="streaming").remote(job)
        self._running[stream] = _Run(job, actor, now, now, _oom_kills())

    def wait(self, timeout_s: float) -> list[Event]:
        events = []
        for ref in self._ready(timeout_s):
            if ref in self._starting:
                self._finish_start(ref)
            elif (event := self._next_event(ref)) is not None:
                events.append(event)
        events += self._overdue()
        if not (self._running or self._idle):
            self._check_room()
        return events

    def close(self) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._starting.values())]:
            self._ray.kill(actor)
        for run in self._running.values():
            self._ray.kill(run.actor)
        if self._owns_session:
            self._ray.shutdown()

    def describe(self) -> str:
        placement, waiting = self.placement, len(self._starting)
        device = f"{placement.gpus:g} GPU each" if placement.gpus else "CPU"
        if self._probing:
            device = "a whole GPU until the first trial tells how much of one a trial needs"
        workers = f"{placement.num_workers} workers" + (f" ({waiting} of them wait for room)" if waiting else "")
        return f"ray, {workers} of {placement.threads} threads, {device}"

    # Starting

    def _nodes(self) -> list[Node]:
        resources = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [Node(each.get("CPU", 0), each.get("GPU", 0)) for each in resources]

    def _probe_placement(self) -> Placement:
        """One worker alone on a whole GPU."""
        if not any(node.gpus for node in self._nodes()):
            raise UsageError("--gpus-per-trial auto: there are no GPUs; leave it out")
        return place(self._nodes(), 1, 1.0)

    def _start_worker(self) -> None:
        actor_class: Any = self._ray.remote(**actor_options(self.placement))(Worker)
        actor = actor_class.remote(self._dataset, self.placement.threads, self.placement.gpus)
        self._starting[actor.ready.remote()] = (actor, time.monotonic())

    def _wait_for_workers(self) -> None:
        """All of them, or those that found room in time."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._starting and time.monotonic() < deadline:
            for ref in self._ready(0.5):
                self._finish_start(ref)
        if not self._idle:
            self._check_room()

    def _finish_start(self, ref: Any) -> None:
        actor, _ = self._starting.pop(ref)
        try:
            node, code = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)
            self._failed_starts += 1
            if self._failed_starts == (MAX_FAILED_STARTS if self._any_started else 1):
                raise Failure(f"the workers do not start: {_last_line(error)}") from error
            self._start_worker()
            return
        if code != self._code:
            self._ray.kill(actor)
            raise Failure(
                f"on {node} workers import other code than this: an editable installation there comes before what is "
                "sent; bring it to the same commit, or pip uninstall it there"
            )
        self._failed_starts, self._any_started = 0, True
        self._idle.append(actor)

    def _check_room(self) -> None:
        """Nothing runs and nothing can: not for longer than a start may take."""
        if any(time.monotonic() - since < START_TIMEOUT_S for _, since in self._starting.values()):
            return
        have, free = self._ray.cluster_resources(), self._ray.available_resources()
        resources = " and ".join(f"{free.get(name, 0):g} of {have.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        raise Failure(
            f"no worker found room within {START_TIMEOUT_S:g} s: each asks for {self.placement.each()}, free are "
            f"{resources}; wait for others to end, add nodes, or change --workers or --gpus-per-trial"
        )

    # Running

    def _ready(self, timeout_s: float) -> list[Any]:
        """Everything that has news; waits for the first."""
        refs = [*self._running, *self._starting]
        if not refs:
            return []
        first, others = self._ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
        if first and others:
            first += self._ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[0]
        ready: list[Any] = first
        return ready

    def _next_event(self, stream: Any) -> Event | None:
        run = self._running[stream]
        try:
            event = event_of(run.job, self._ray.get(next(stream)))
        except self._ray.exceptions.RayError as error:
            self._replace(stream)
            self._replace_dead_idle()
            cause = self._cause(error, run)
            message = (
                _last_line(error) if cause == "worker died" else "the worker was killed: its node ran out of memory"
            )
            return Broken(run.job, cause, message, retry=True)
        except StopIteration:
            del self._running[stream]
            self._idle.append(run.actor)
            return Broken(run.job, "error", "the worker ended without a checkpoint", retry=True)
        if isinstance(event, Progress):
            now = time.monotonic()
            self._pace.epoch_took(run.job, now - run.last_epoch)
            run.last_epoch = now
            return event
        del self._running[stream]
        self._idle.append(run.actor)
        if self._probing and isinstance(event, Finished):
            self._divide_gpus()
        return event

    def _cause(self, error: Exception, run: _Run) -> str:
        """Ray's memory monitor says that it killed; of the kernel's only this machine's counter tells."""
        by_ray = isinstance(error, self._ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error)
        return "out of memory" if by_ray or _oom_kills() > run.oom_kills else "worker died"

    def _overdue(self) -> list[Event]:
        now = time.monotonic()
        late = {stream: event for stream, run in self._running.items() if (event := self._lateness(run, now))}
        heard = self._ready(0) if late else []  # what waits to be heard is not late: it was the driver
        for stream in [stream for stream in late if stream in heard]:
            del late[stream]
        for stream in late:
            self._replace(stream)
        return [*late.values()]

    def _lateness(self, run: _Run, now: float) -> Event | None:
        limit_s = self._pace.limit_s(run.job)
        if self._trial_timeout_s is not None and now - run.started > self._trial_timeout_s:
            return timed_out(run.job, self._trial_timeout_s)
        if now - run.last_epoch > limit_s:
            message = f"the worker was stuck: it finished no epoch in {limit_s:,.0f} s"
            return Broken(run.job, "worker died", message, retry=True)
        return None

    def _replace(self, stream: Any) -> None:
        """Another worker for the one of this stream, which may still live where only its node was out of reach."""
        self._ray.kill(self._running.pop(stream).actor)
        self._start_worker()

    def _replace_dead_idle(self) -> None:
        """A lost node takes idle workers along: each would cost the trial that it is given one of its attempts."""
        answers = {actor.ready.remote(): actor for actor in self._idle}
        if answers:
            self._ray.wait([*answers], num_returns=len(answers), timeout=IDLE_ANSWERS_S)
        for answer, actor in answers.items():
            try:
                self._ray.get(answer, timeout=0)
            except self._ray.exceptions.RayError:  # no answer in time is one too
                self._idle.remove(actor)
                self._ray.kill(actor)
                self._start_worker()

    def _divide_gpus(self) -> None:
        """After the first trial: as many workers a GPU as its memory lets, or as were asked for."""
        (probe,) = self._idle
        self._idle = []
        try:
            fraction = gpu_fraction(*self._ray.get(probe.gpu_memory.remote()))
        except self._ray.exceptions.RayError:  # died after its checkpoint: the next one is asked
            self._ray.kill(probe)
            self._start_worker()
            return
        self._ray.kill(probe)
        self._probing = False
        most = place(self._nodes(), 0, fraction).num_workers
        self.placement = place(self._nodes(), min(self._workers_asked or most, most), fraction)
        for _ in range(self.placement.num_workers):
            self._start_worker()


def actor_options(placement: Placement) -> dict[str, Any]:
    """What Ray is asked for each actor: its share of the cores, and GPUs that it alone sees."""
    return {
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(placement.threads), "OMP_WAIT_POLICY": "passive"}},
    }


def _start(ray: Any) -> None:
    # it would start a worker a core at once, which our actors cannot use: their environment is another
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                address="local",
                num_cpus=num_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise Failure(f"Ray does not start: {_joined(error)}; --executor inline needs none") from error


def _join(ray: Any, address: str) -> None:
    """Connect to a cluster, and send it the code that its workers import."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    way_out = "start one with `ray start --head`, or leave --address out"
    try:
        check_address(address)
        if address != "auto":  # Ray itself tries for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
            way_out = "run on one of its nodes, with its Ray, and with RAY_AUTH_MODE=token if it asks for a token"
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            ray.init(
                address=address,
                runtime_env={"py_modules": copy_packages(Path(folder))},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise Failure(f"no Ray cluster can be joined at {address}: {_joined(error)}; {way_out}") from error


def _oom_kills() -> int:
    """Processes that this machine's kernel has killed for their memory; 0 where it does not say."""
    try:
        lines = KERNEL_COUNTERS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _joined(error: BaseException) -> str:
    """What Ray says, often in many lines, in one."""
    return " ".join(str(error).split()) or type(error).__name__


def _last_line(error: Exception) -> str:
    """What Ray says in many lines: the last one names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
