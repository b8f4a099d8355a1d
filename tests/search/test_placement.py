"""What workers are asked for, from what nodes have: no Ray and no GPU needed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from search.data import Dataset
from search.errors import UsageError
from search.jobs import Job, Worker
from search.pace import Pace
from search.placement import Node, Placement, gpu_fraction, place
from tests.search.tiny import tiny_candidate

GIB = 2**30


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([Node(1, 0)], 0, Placement(1, 1, 1, 0.0)),
        ([Node(2, 0)], 0, Placement(2, 1, 1, 0.0)),
        ([Node(64, 0)], 0, Placement(4, 16, 16, 0.0)),
        ([Node(4, 0)], 1, Placement(1, 4, 4, 0.0)),
        ([Node(4, 0)], 3, Placement(3, 1, 1, 0.0)),
        ([Node(4, 0)], 5, Placement(5, 1, 0, 0.0)),  # more workers than cores: Ray must not wait for one to be free
        ([Node(8, 0), Node(8, 0)], 0, Placement(8, 2, 2, 0.0)),
        ([Node(6, 0), Node(2, 0)], 2, Placement(2, 3, 3, 0.0)),  # 4 threads each are there, but on no node for the 2nd
        ([Node(2, 0), Node(64, 0)], 1, Placement(1, 64, 64, 0.0)),
        ([Node(0, 0), Node(4, 0)], 0, Placement(4, 1, 1, 0.0)),  # a head that takes no work
    ],
)
def test_cores_are_divided_node_by_node(nodes: list[Node], workers: int, expected: Placement) -> None:
    assert place(nodes, workers, None) == expected


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "expected"),
    [
        ([Node(16, 8)], 0, None, Placement(8, 2, 2, 1.0)),
        ([Node(16, 2)], 0, 0.5, Placement(4, 4, 4, 0.5)),
        ([Node(16, 2)], 0, 0.4, Placement(4, 4, 4, 0.4)),  # five times 0.4 are 2, but a worker never spans two GPUs
        ([Node(16, 4)], 0, 2.0, Placement(2, 8, 8, 2.0)),
        ([Node(16, 3)], 0, 2.0, Placement(1, 16, 16, 2.0)),
        ([Node(64, 0), Node(8, 2)], 0, None, Placement(2, 4, 4, 1.0)),  # cores without a GPU are no help
        ([Node(1, 2)], 0, 0.5, Placement(4, 1, 0, 0.5)),
        ([Node(8, 2)], 0, 0.0, Placement(4, 2, 2, 0.0)),
        ([Node(16, 1)], 0, 0.1, Placement(10, 1, 1, 0.1)),
    ],
)
def test_gpus_are_divided_node_by_node(
    nodes: list[Node], workers: int, gpus: float | None, expected: Placement
) -> None:
    assert place(nodes, workers, gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "message"),
    [
        ([Node(8, 2)], 0, 3.0, "--gpus-per-trial 3: the largest node has 2 GPUs; ask for at most that"),
        ([Node(8, 1), Node(8, 1)], 0, 2.0, "--gpus-per-trial 2: the largest node has 1 GPUs; ask for at most that"),
        ([Node(8, 0)], 0, 0.5, "--gpus-per-trial 0.5: there are no GPUs; ask for at most that"),
        ([Node(8, 2)], 0, 1.5, "--gpus-per-trial 1.5: above 1 only whole GPUs can be asked for"),
        (
            [Node(8, 2)],
            3,
            None,
            "3 workers with 1 GPUs each need more than the 2 there are: lower --workers or --gpus-per-trial",
        ),
        (
            [Node(8, 2)],
            5,
            0.4,
            "5 workers with 0.4 GPUs each need more than the 2 there are: lower --workers or --gpus-per-trial",
        ),
    ],
)
def test_more_than_there_is(nodes: list[Node], workers: int, gpus: float | None, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        place(nodes, workers, gpus)
    assert str(raised.value) == message


def test_the_part_of_a_gpu_that_a_trial_needs() -> None:
    assert gpu_fraction(1 * GIB, 80 * GIB) == 1 / 8
    assert gpu_fraction(7 * GIB, 80 * GIB) == 1 / 8  # 8.75 GiB and CUDA's half: 9.25 of 10
    assert gpu_fraction(8 * GIB, 80 * GIB) == 2 / 8  # 10 and a half
    assert gpu_fraction(40 * GIB, 80 * GIB) == 6 / 8
    assert gpu_fraction(79 * GIB, 80 * GIB) == 1.0
    rng = np.random.default_rng(0)
    for peak in rng.integers(0, 80 * GIB, 100).tolist():
        fraction = gpu_fraction(peak, 80 * GIB)
        assert fraction == 1.0 or fraction * 80 * GIB >= 1.25 * peak
        assert fraction * 8 == int(fraction * 8)


@pytest.mark.parametrize(("gpus", "capped"), [(0.25, [0.25]), (1.0, []), (2.0, [])])
def test_a_part_of_a_gpu_is_a_part_of_its_memory(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, gpus: float, capped: list[float]
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", seen.append)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * GIB)
    properties: Any = SimpleNamespace(total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    threads = torch.get_num_threads()
    assert Worker(dataset, threads, gpus).gpu_memory() == (3 * GIB, 80 * GIB)
    assert seen == capped


def job(**params: Any) -> Job:
    return Job(0, tiny_candidate(**params), 0, 9, None)


def test_a_worker_is_stuck_when_others_were_far_faster_gate_for_gate() -> None:
    pace, small, large = Pace(), job(k=2), job(k=5)
    assert pace.limit_s(small) == 3600  # nothing is known
    pace.epoch_took(small, 0.1)
    assert pace.limit_s(small) == 600
    pace.epoch_took(small, 60)
    assert pace.limit_s(small) == pytest.approx(20 * 60)
    assert pace.limit_s(large) > 1.2 * pace.limit_s(small)  # it has more gates
    pace.epoch_took(small, 1)
    assert pace.limit_s(small) == pytest.approx(20 * 60)  # the slowest counts
