"""A Ray cluster that was there before: two real nodes here, started in an empty folder."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.config import study_config
from search.data import Dataset
from search.errors import Failure
from search.packages import copy_packages
from search.ray_workers import RayExecutor
from search.workers import Broken, Event, Finished, InlineExecutor, Progress
from tests.search.tiny import finish
from tests.search.tiny import long_job as job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


# `pip install --editable` puts a finder before everything else: nodes that have no installation of ours do without
WITHOUT_EDITABLE = """
import sys
sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != "_editable_skbc_convlogic_search"]
"""


@pytest.fixture(scope="module")
def cluster(elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes whose processes start in an empty folder and find none of our packages."""
    customized = tmp_path_factory.mktemp("customized")
    (customized / "sitecustomize.py").write_text(WITHOUT_EDITABLE)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # processes that our actors' environment cannot use
        patch.setenv("PYTHONPATH", str(customized))
        patch.chdir(elsewhere)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=2)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def executor(cluster: Any, dataset: Dataset, elsewhere: Path) -> Iterator[RayExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)  # which Ray adds to the workers' path
        executor = RayExecutor(study_config(address=cluster.address), dataset)
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield executor
    executor.close()


def in_worker(executor: RayExecutor, actor: Any, function: Callable[[Any], Any]) -> Any:
    return executor._ray.get(actor.__ray_call__.remote(function))


def where(worker: Any) -> tuple[str, str, str, list[str], bool]:
    import ray

    import search
    from convlogic_core.ops import backend

    node: str = ray.get_runtime_context().get_node_id()
    return node, str(search.__file__), os.getcwd(), os.listdir(), backend.native_built()


def checkpoints(events: list[Event]) -> dict[int, bytes]:
    return {event.job.trial: event.checkpoint for event in events if isinstance(event, Finished)}


def test_code_and_data_travel_to_nodes_that_have_neither(executor: RayExecutor, elsewhere: Path) -> None:
    assert executor.describe() == "ray, 3 workers of 1 threads, CPU"
    seen = [in_worker(executor, actor, where) for actor in executor._idle]
    assert len({node for node, *_ in seen}) == 2
    from convlogic_core.ops import backend

    for _, code, folder, files, native in seen:
        assert "py_modules_files" in code
        assert Path(folder) == elsewhere and files == []
        assert native == backend.native_built()


def test_both_nodes_measure_what_this_process_does(executor: RayExecutor, dataset: Dataset) -> None:
    inline = InlineExecutor(dataset)
    jobs = [job(2, trial=trial) for trial in range(3)]
    expected: dict[int, bytes] = {}
    for each in jobs:
        executor.submit(each)
        inline.submit(each)
        expected |= checkpoints(finish(inline))
    assert not executor.has_room()
    reached = checkpoints(finish(executor, 3))
    assert reached == expected
    for each in jobs:  # and on, from the checkpoints that this process keeps
        executor.submit(replace(each, until_epoch=4, checkpoint=reached[each.trial]))
    finished = finish(executor, 3)
    assert {event.record.epoch for event in finished if isinstance(event, Progress)} == {3, 4}
    inline.submit(replace(jobs[2], until_epoch=4, checkpoint=reached[2]))
    assert checkpoints(finish(inline))[2] == checkpoints(finished)[2]


def test_a_lost_nodes_trials_go_on_on_the_other(executor: RayExecutor, cluster: Any, dataset: Dataset) -> None:
    """Its workers' successors find no room and wait, without being in anyone's way; a new node gives it to them."""
    nodes = [in_worker(executor, actor, where)[0] for actor in executor._idle]
    (second,) = cluster.worker_nodes
    on_second = [node == second.node_id for node in nodes][::-1]  # the last at rest is the first to get a job
    assert sum(on_second) == 2
    for trial in range(3):
        executor.submit(job(100_000, trial=trial))
    begun: set[int] = set()
    while len(begun) < 3:
        begun |= {event.job.trial for event in executor.wait(10.0)}
    cluster.remove_node(second, allow_graceful=False)
    broken = [event for event in finish(executor, 2) if isinstance(event, Broken)]
    assert {event.job.trial for event in broken} == {trial for trial in range(3) if on_second[trial]}
    assert {(event.cause, event.retry) for event in broken} == {("worker died", True)}
    assert all("\n" not in event.message for event in broken)
    assert not executor.has_room() and len(executor._starting) == 2
    executor._trial_timeout_s = 0.0  # end the other one
    assert {event.cause for event in finish(executor) if isinstance(event, Broken)} == {"timeout"}
    executor._trial_timeout_s = None
    while not executor.has_room():
        assert executor.wait(1.0) == []
    lost = replace(broken[0].job, until_epoch=2)
    executor.submit(lost)
    inline = InlineExecutor(dataset)
    inline.submit(lost)
    assert checkpoints(finish(executor)) == checkpoints(finish(inline))
    cluster.add_node(num_cpus=2)
    deadline = time.monotonic() + 120
    while len(executor._idle) < 3:
        assert executor.wait(1.0) == [] and time.monotonic() < deadline


def test_workers_that_import_other_code_are_refused(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_code", "that of a later commit")
    executor._ray.kill(executor._idle.pop())
    executor._start_worker()
    with pytest.raises(Failure, match=r"on \S+ workers import other code than this: .* pip uninstall it there"):
        for _ in range(120):
            executor.wait(1.0)


def test_the_copied_packages_are_whole(tmp_path: Path) -> None:
    folders = [Path(folder) for folder in copy_packages(tmp_path)]
    assert [folder.name for folder in folders] == ["convlogic_core", "spaces", "search"]
    repository = Path(__file__).parents[2]
    for folder in folders:
        source = repository / folder.name
        copied = {path.relative_to(folder) for path in folder.rglob("*.py")}
        assert copied == {path.relative_to(source) for path in source.rglob("*.py")}
