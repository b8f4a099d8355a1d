"""Executors: the same records from each, cores and GPUs divided, a dead worker told and replaced."""

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

from search import workers
from search.config import study_config
from search.data import Dataset
from search.errors import Failure, UsageError
from search.jobs import Job
from search.training import EpochRecord
from search.workers import (
    Broken,
    Event,
    Executor,
    Finished,
    InlineExecutor,
    Progress,
    RayExecutor,
    RayWorker,
    actor_options,
)
from spaces import DataSpec
from tests.search.tiny import tiny_candidate

REPOSITORY = Path(__file__).parents[2]
NUM_GPUS = 2  # that Ray believes in


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One Ray for all: starting it takes seconds."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        ray.init(num_cpus=8, num_gpus=NUM_GPUS, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def executor(ray: Any, dataset: Dataset) -> Iterator[RayExecutor]:
    """Two workers on a machine of four cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "num_cores", lambda: 4)
        executor = RayExecutor(study_config(workers=2, gpus_per_trial=0.0), dataset)
        yield executor
        executor.close()


def job(until_epoch: int = 2, checkpoint: bytes | None = None, trial: int = 0, **params: Any) -> Job:
    return Job(trial, tiny_candidate(epochs=100_000, **params), 7 + trial, until_epoch, checkpoint)


def finish(executor: Executor, num_jobs: int = 1) -> list[Event]:
    """Everything that happens until so many jobs have ended."""
    events: list[Event] = []
    while sum(not isinstance(event, Progress) for event in events) < num_jobs:
        events += executor.wait(10.0)
    return events


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
    for each in jobs[:2]:
        assert executor.has_room()
        executor.submit(each)
    assert not executor.has_room()
    events = finish(executor)
    executor.submit(jobs[2])
    events += finish(executor, 2)
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


def test_cores_are_divided_among_the_workers(ray: Any, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert executor.describe() == "ray, 2 workers of 2 threads, CPU"
    for actor in executor._idle:
        seen = in_worker(ray, actor, lambda worker: (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]))
        assert seen == (2, "2")
    monkeypatch.setattr(workers, "num_cores", lambda: 4)
    for num_workers, threads, num_cpus in ((1, 4, 4), (3, 1, 1), (4, 1, 1), (5, 1, 0)):
        options = actor_options(num_workers, 0.0)
        assert options["runtime_env"]["env_vars"] == {"OMP_NUM_THREADS": str(threads)}
        assert options["num_cpus"] == num_cpus  # more workers than cores: Ray must not wait for a core to be free


def test_without_gpus_one_worker_a_core_at_most_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(workers, "num_cores", lambda cores=cores: cores)
        assert workers._default_workers(0.0, 0) == expected
    assert workers._default_workers(1.0, 8) == 8
    assert workers._default_workers(0.5, 2) == 4
    assert workers._gpus_per_worker(None, 2) == 1.0
    assert workers._gpus_per_worker(None, 0) == 0.0


class Probe:
    def visible_devices(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_worker_sees_its_own_gpu(ray: Any) -> None:
    actor_class = ray.remote(**actor_options(2, 1.0))(Probe)
    actors = [actor_class.remote() for _ in range(2)]
    try:
        assert sorted(ray.get([actor.visible_devices.remote() for actor in actors], timeout=60)) == ["0", "1"]
    finally:
        for actor in actors:
            ray.kill(actor)


def test_more_gpus_than_there_are(ray: Any, dataset: Dataset) -> None:
    with pytest.raises(UsageError, match=r"^--gpus-per-trial 3: there are 2 GPUs; ask for at most that$"):
        RayExecutor(study_config(gpus_per_trial=3.0), dataset)
    with pytest.raises(UsageError, match=r"^3 workers with 1 GPUs each need more than the 2 there are: lower "):
        RayExecutor(study_config(workers=3), dataset)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_that_cannot_use_its_gpu_does_not_fall_back_to_the_cpu(dataset: Dataset) -> None:
    with pytest.raises(Failure, match="a GPU was assigned to this worker and PyTorch cannot use it"):
        RayWorker(dataset, 1, True)


def test_a_killed_worker_is_told_and_replaced(ray: Any, executor: RayExecutor) -> None:
    pid = in_worker(ray, executor._idle[-1], lambda worker: os.getpid())
    executor.submit(job(100_000))
    while not executor.wait(10.0):
        pass
    os.kill(pid, signal.SIGKILL)
    *_, event = finish(executor)
    assert isinstance(event, Broken)
    assert (event.cause, event.retry, event.job.trial) == ("worker died", True, 0)
    assert "\n" not in event.message
    assert len(executor._idle) == 2
    assert pid not in [in_worker(ray, actor, lambda worker: os.getpid()) for actor in executor._idle]
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
    assert lost not in executor._idle and len(executor._idle) == 2
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


def test_closing_ends_the_workers_and_leaves_a_cluster_that_was_there(ray: Any, executor: RayExecutor) -> None:
    """The last: no worker is left for others."""
    actor = executor._idle[0]
    executor.close()
    assert ray.is_initialized()
    with pytest.raises(ray.exceptions.RayActorError):
        for _ in range(100):
            in_worker(ray, actor, lambda worker: time.sleep(0.1))
