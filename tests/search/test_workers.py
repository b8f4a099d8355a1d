"""Executors: the same records from each, a dead, stuck or late worker told and replaced. Clusters: test_cluster.py."""

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from search import pace, ray_workers
from search.config import study_config
from search.data import Dataset
from search.errors import Failure, UsageError
from search.jobs import Worker
from search.packages import code_digest
from search.placement import Node, Placement
from search.ray_workers import RayExecutor, actor_options
from search.training import EpochRecord
from search.workers import Broken, Event, Finished, InlineExecutor, Progress
from spaces import DataSpec
from tests.search.tiny import Runs, finish
from tests.search.tiny import long_job as job

REPOSITORY = Path(__file__).parents[2]
NUM_GPUS = 2  # that Ray believes in


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One Ray for all: starting it takes seconds."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # processes that our actors' environment cannot use
        import ray
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        ray.init("local", num_cpus=8, num_gpus=NUM_GPUS, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def shared_executor(ray: Any, dataset: Dataset) -> Iterator[RayExecutor]:
    """Two workers on a machine of four cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayExecutor, "_nodes", lambda executor: [Node(4, NUM_GPUS)])
        executor = RayExecutor(study_config(workers=2, gpus_per_trial=0.0), dataset)
        yield executor
        executor.close()


@pytest.fixture
def executor(shared_executor: RayExecutor) -> RayExecutor:
    """With one worker at rest at least; another, replaced in the test before, may still be starting: `refilled`."""
    while not shared_executor.has_room():
        assert shared_executor.wait(10.0) == []
    return shared_executor


def refilled(executor: RayExecutor) -> list[Any]:
    """The workers at rest, once the replaced ones have started too."""
    while executor._starting:
        assert executor.wait(10.0) == []
    return executor._idle


def outcome(events: list[Event], trial: int = 0) -> list[Any]:
    """What a trial measured and its checkpoint, without the clock."""

    def timeless(record: EpochRecord) -> tuple[float, ...]:
        return (record.epoch, record.loss, record.acc_soft, record.acc_discrete)

    return [
        timeless(event.record) if isinstance(event, Progress) else event.checkpoint
        for event in events
        if event.job.trial == trial and not isinstance(event, Broken)
    ]


def in_worker(ray: Any, actor: Any, function: Callable[[Any], Any]) -> Any:
    return ray.get(actor.__ray_call__.remote(function))


def test_ray_and_inline_give_the_same(executor: RayExecutor, dataset: Dataset) -> None:
    jobs = [job(trial=0), job(trial=1, parametrization="iwp", lr_iwp=0.1), job(trial=2, k=5)]
    inline = InlineExecutor(dataset)
    expected: list[Event] = []
    for each in jobs:
        assert inline.has_room()
        inline.submit(each)
        assert not inline.has_room()
        expected += finish(inline)
    refilled(executor)
    for each in jobs[:2]:
        assert executor.has_room()
        executor.submit(each)
    assert not executor.has_room()
    events = finish(executor)
    executor.submit(jobs[2])
    num_ended = sum(not isinstance(event, Progress) for event in events)  # both, perhaps
    events += finish(executor, len(jobs) - num_ended)
    for trial in range(3):
        assert outcome(events, trial) == outcome(expected, trial)
        assert len(outcome(events, trial)) == 3
    # From a checkpoint, too.
    (checkpoint,) = [event.checkpoint for event in expected if isinstance(event, Finished) and event.job.trial == 0]
    executor.submit(job(4, checkpoint))
    inline.submit(job(4, checkpoint))
    resumed = outcome(finish(executor))
    assert resumed == outcome(finish(inline))
    assert [record[0] for record in resumed[:-1]] == [3, 4]
    assert executor.wait(0.0) == inline.wait(0.0) == []


def test_a_deterministic_study_is_the_same_with_one_worker_and_with_two(
    executor: RayExecutor, run: Runs, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two objectives, real training: the same trials in the same order, with the same values. TPE's models ask last."""
    monkeypatch.setattr(RayExecutor, "_nodes", lambda executor: [Node(2, 0)])
    studies = []
    with contextlib.closing(RayExecutor(study_config(workers=1, gpus_per_trial=0.0), dataset)) as alone:
        for name, each in (("one", alone), ("two", executor)):
            views = run(each, study=name, trials=18, deterministic=True)
            studies.append(
                [
                    (view.number, view.params, view.state, view.frozen.values, view.attrs.get("stopped_at_rung"))
                    for view in views
                ]
            )
    assert studies[0] == studies[1]
    assert sum(view.counts for view in views) == 18
    assert {view.epoch for view in views if view.state == "complete"} == {1, 3, 9}


def test_what_a_job_cannot_do_is_told_without_a_retry(executor: RayExecutor, dataset: Dataset) -> None:
    wrong = job()
    wrong = replace(wrong, candidate=replace(wrong.candidate, data=DataSpec("digits", num_thresholds=2)))
    for each in (executor, InlineExecutor(dataset)):
        each.submit(wrong)
        (event,) = finish(each)
        assert isinstance(event, Broken)
        assert (event.cause, event.retry) == ("error", False)
        assert "\n" not in event.message
        assert each.has_room()


def test_cores_are_divided_among_the_workers(ray: Any, executor: RayExecutor) -> None:
    assert executor.describe() == "ray, 2 workers of 2 threads, CPU"
    for actor in refilled(executor):
        seen = in_worker(ray, actor, lambda worker: (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]))
        assert seen == (2, "2")


class Probe:
    def visible_devices(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_worker_sees_its_own_gpu(ray: Any) -> None:
    actor_class = ray.remote(**actor_options(Placement(2, 2, 2, 1.0)))(Probe)
    actors = [actor_class.remote() for _ in range(2)]
    try:
        assert sorted(ray.get([actor.visible_devices.remote() for actor in actors], timeout=60)) == ["0", "1"]
    finally:
        for actor in actors:
            ray.kill(actor)


def test_more_gpus_than_there_are(ray: Any, dataset: Dataset) -> None:
    with pytest.raises(UsageError, match=r"^--gpus-per-trial 3: the largest node has 2 GPUs; ask for at most that$"):
        RayExecutor(study_config(gpus_per_trial=3.0), dataset)
    with pytest.raises(UsageError, match=r"^3 workers with 1 GPUs each need more than the 2 there are: lower "):
        RayExecutor(study_config(workers=3), dataset)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_that_cannot_use_its_gpu_does_not_fall_back_to_the_cpu(dataset: Dataset) -> None:
    with pytest.raises(Failure, match="a GPU was assigned to this worker and PyTorch cannot use it"):
        Worker(dataset, 1, 1.0)


def test_a_killed_worker_is_told_and_replaced(ray: Any, executor: RayExecutor) -> None:
    pid = in_worker(ray, refilled(executor)[-1], lambda worker: os.getpid())
    executor.submit(job(100_000))
    while not executor.wait(10.0):
        pass
    os.kill(pid, signal.SIGKILL)
    *_, event = finish(executor)
    assert isinstance(event, Broken)
    assert (event.cause, event.retry, event.job.trial) == ("worker died", True, 0)
    assert "\n" not in event.message
    assert len(executor._idle) == 1  # at hand for the trial while the other starts
    pids = [in_worker(ray, actor, lambda worker: os.getpid()) for actor in refilled(executor)]
    assert len(pids) == 2 and pid not in pids
    executor.submit(job())
    assert isinstance(finish(executor)[-1], Finished)


def test_idle_workers_that_died_too_cost_no_trial_an_attempt(ray: Any, executor: RayExecutor) -> None:
    """As where a node is lost."""
    pids = [in_worker(ray, actor, lambda worker: os.getpid()) for actor in refilled(executor)]
    dead = [*executor._idle]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    executor.submit(job())
    assert isinstance(finish(executor)[-1], Broken)
    assert not {*dead} & {*refilled(executor)} and len(executor._idle) == 2
    executor.submit(job())
    assert isinstance(finish(executor)[-1], Finished)


def lose_gpu(worker: Any) -> None:
    """Every job fails from now on, and so does the GPU."""

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be\n")

    worker._runner.device = torch.device("cuda")
    worker._runner._run = torch.cuda.synchronize = fail


def test_a_worker_whose_gpu_is_lost_is_replaced(ray: Any, executor: RayExecutor) -> None:
    lost = executor._idle[-1]
    in_worker(ray, lost, lose_gpu)
    executor.submit(job())
    (event,) = finish(executor)
    assert isinstance(event, Broken)
    assert (event.cause, event.retry) == ("worker died", True)
    assert "illegal memory access" in event.message and "\n" not in event.message
    assert lost not in refilled(executor) and len(executor._idle) == 2
    executor.submit(job())
    assert isinstance(finish(executor)[-1], Finished)


def test_without_a_worker_a_lost_gpu_ends_the_command(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    executor = InlineExecutor(dataset, 0.0)
    worker = SimpleNamespace(_runner=executor._runner)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "synchronize", torch.cuda.synchronize)  # restored afterwards
        lose_gpu(worker)
        executor.submit(job())
        with pytest.raises(Failure, match="cannot use its GPU any longer: CUDA error: an illegal memory access"):
            executor.wait(0.0)
    executor.submit(job())  # the same error, and a GPU that goes on
    (event,) = executor.wait(0.0)
    assert isinstance(event, Broken) and (event.cause, event.retry) == ("error", False)


def freeze(ray: Any, executor: RayExecutor) -> int:
    """Stop the next worker's process in the midst of a job: it answers nothing any more."""
    pid: int = in_worker(ray, executor._idle[-1], lambda worker: os.getpid())
    executor.submit(job(100_000))
    while not executor.wait(10.0):
        pass
    os.kill(pid, signal.SIGSTOP)
    return pid


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_stuck_worker_is_told_killed_and_replaced(
    ray: Any, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = freeze(ray, executor)
    monkeypatch.setattr(pace, "LEAST_S", 0.5)
    monkeypatch.setattr(pace, "FACTOR", 0.0)
    *_, event = finish(executor)
    assert isinstance(event, Broken)
    assert (event.cause, event.retry) == ("worker died", True)
    assert event.message == "the worker was stuck: it finished no epoch in 0 s"
    monkeypatch.undo()
    wait_until_gone(pid)
    assert len(refilled(executor)) == 2


def test_a_job_that_takes_too_long_is_ended_and_not_repeated(
    ray: Any, executor: RayExecutor, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "_trial_timeout_s", 0.5)
    inline = InlineExecutor(dataset, trial_timeout_s=0.5)
    refilled(executor)
    for each in (executor, inline):
        each.submit(job(100_000))
        *before, event = finish(each)
        assert all(isinstance(earlier, Progress) for earlier in before)
        assert isinstance(event, Broken)
        assert (event.cause, event.retry) == ("timeout", False)
        assert event.message == "epoch 100000 was not reached within --trial-timeout 0.5"
        assert each.has_room()
    inline.submit(job())
    assert isinstance(finish(inline)[-1], Finished)


@pytest.mark.slow
def test_a_frozen_worker_is_ended_by_the_timeout_too(
    ray: Any, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = freeze(ray, executor)
    monkeypatch.setattr(executor, "_trial_timeout_s", 0.5)
    *_, event = finish(executor)
    assert isinstance(event, Broken) and event.cause == "timeout"
    wait_until_gone(pid)


def test_the_kernels_killing_for_memory_is_told_as_such(
    ray: Any, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counters = tmp_path / "vmstat"
    monkeypatch.setattr(ray_workers, "KERNEL_COUNTERS", counters)
    counters.write_text("nr_free_pages 12\noom_kill 3\n")
    pid = in_worker(ray, executor._idle[-1], lambda worker: os.getpid())
    executor.submit(job(100_000))
    while not executor.wait(10.0):
        pass
    counters.write_text("nr_free_pages 12\noom_kill 4\n")
    os.kill(pid, signal.SIGKILL)
    *_, event = finish(executor)
    assert isinstance(event, Broken)
    assert (event.cause, event.retry) == ("out of memory", True)


def test_rays_memory_monitor_is_told_as_such(ray: Any, executor: RayExecutor) -> None:
    run = ray_workers._Run(job(), None, 0.0, 0.0, ray_workers._oom_kills())
    by_monitor = ray.exceptions.RayActorError(
        error_msg="The actor is dead.\n2 worker(s) were killed due to the node running low on memory. Memory"
    )
    assert executor._cause(by_monitor, run) == "out of memory"
    assert executor._cause(ray.exceptions.OutOfMemoryError("2 workers"), run) == "out of memory"
    assert executor._cause(ray.exceptions.ActorDiedError(), run) == "worker died"


class Light:
    """A worker up to its first job: without PyTorch, which takes seconds to import."""

    def __init__(self, *_: Any) -> None: ...

    def ready(self) -> tuple[str, str]:
        return "here", code_digest()

    def run(self, job: Any) -> Iterator[Any]:
        yield from ()


class Unable(Light):
    def __init__(self, *_: Any) -> None:
        raise RuntimeError("no worker today")


def test_a_worker_that_cannot_be_replaced_ends_the_command_in_the_end(
    ray: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RayExecutor, "_nodes", lambda executor: [Node(1, 0)])
    monkeypatch.setattr(ray_workers, "Worker", Light)
    with contextlib.closing(RayExecutor(study_config(workers=1, gpus_per_trial=0.0), dataset)) as lonely:
        pid = in_worker(ray, lonely._idle[-1], lambda worker: os.getpid())
        monkeypatch.setattr(ray_workers, "Worker", Unable)
        lonely.submit(job(100_000))
        os.kill(pid, signal.SIGKILL)
        assert isinstance(finish(lonely)[-1], Broken)
        assert not lonely.has_room()
        with pytest.raises(Failure, match=r"^the workers do not start: .*no worker today$"):
            for _ in range(20):
                lonely.wait(10.0)


def test_workers_that_find_no_room_are_not_waited_for_without_end(
    ray: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "START_TIMEOUT_S", 1.0)
    monkeypatch.setattr(RayExecutor, "_nodes", lambda executor: [Node(64, 0)])  # Ray has 8
    with pytest.raises(
        Failure,
        match=r"^no worker found room within 1 s: each asks for 64 CPUs and 0 GPUs, free are . of 8 CPUs and 2 of 2 "
        "GPUs; wait for others to end, add nodes, or change --workers or --gpus-per-trial$",
    ):
        RayExecutor(study_config(workers=1, gpus_per_trial=0.0), dataset)


def test_closing_ends_the_workers_and_leaves_a_cluster_that_was_there(ray: Any, executor: RayExecutor) -> None:
    """The last: no worker is left for others."""
    actor = executor._idle[0]  # one that is at rest; another that still starts is ended too
    executor.close()
    assert ray.is_initialized()
    with pytest.raises(ray.exceptions.RayActorError):
        for _ in range(100):
            in_worker(ray, actor, lambda worker: time.sleep(0.1))
