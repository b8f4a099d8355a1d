"""Tests on a real device. Asked for without a device, they fail.

A machine needs PyTorch with CUDA, nvcc on PATH and numpy, safetensors, pytest, scikit-build-core, pybind11, cmake and
ninja; nothing else of the project's dependencies is imported here. From the root of the repository:

    python3 -m pip install --no-deps --no-build-isolation -C cmake.define.CONVLOGIC_CUDA=ON -e .
    python3 -m pytest -m gpu tests/gpu
"""

import pytest

from convlogic_core.ops.backend import cuda_problem


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "gpu" in config.option.markexpr:
        return
    unasked = [item for item in items if item.get_closest_marker("gpu")]
    if unasked:
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]


@pytest.fixture(scope="session", autouse=True)
def device_is_there() -> None:
    if problem := cuda_problem():
        pytest.fail(f"tests on a GPU were asked for: {problem}", pytrace=False)
