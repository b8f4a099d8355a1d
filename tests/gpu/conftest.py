"""Tests on a real device: `pytest -m gpu`. Asked for without a device, they fail."""

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
