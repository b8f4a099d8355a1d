"""A Ray node lost under a study: what ran there goes on elsewhere, and the study comes out whole."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.forked import ForkedDriver
from tests.faults.invariants import assert_sound

TRIALS = 4
WORKERS_A_NODE = 1
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two real nodes."""
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")  # processes that our actors' environment cannot use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": WORKERS_A_NODE, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(num_cpus=WORKERS_A_NODE)
        yield cluster
        cluster.shutdown()


def test_a_node_lost_in_the_midst_of_rungs(driver: Callable[..., ForkedDriver], cluster: Any) -> None:
    options = ("--epochs", "270", "--limit-train", "60", "--trials", str(TRIALS))
    lost = driver("--address", cluster.address, *options)
    process = lost.start()
    epochs = lost.folder / "epochs.txt"
    lost.wait_for(lambda: epochs.exists() and len({line.split()[0] for line in epochs.read_text().splitlines()}) == 2)
    assert "ray, 2 workers of 1 threads" in lost.output
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    process.join(200)
    assert process.exitcode == 0, lost.output
    views = assert_sound(lost, TRIALS, num_repeated=WORKERS_A_NODE)
    assert sum(view.attempts for view in views) == WORKERS_A_NODE
    assert {view.state for view in views} <= {"complete", "rejected"}
