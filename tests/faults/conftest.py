import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search import tracking
from tests.faults.forked import RAYS_AGENTS, ForkedDriver


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent)
    for item in items:
        if sys.platform != "linux" and str(item.path).startswith(here):
            item.add_marker(pytest.mark.skip(reason="looks for processes in /proc"))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store with its tables and nothing in them."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def ended() -> Iterator[list[ForkedDriver]]:
    """Drivers of tests that are over: at the very end nothing of theirs is left, nor any of Ray's slow agents."""
    drivers: list[ForkedDriver] = []
    yield drivers
    try:
        for each in drivers:
            each.wait_until_gone(but="$")
    finally:
        for each in drivers:
            each.kill_all()


@pytest.fixture
def driver(tmp_path: Path, empty_store: Path, ended: list[ForkedDriver]) -> Iterator[Callable[..., ForkedDriver]]:
    """Makes drivers of the tiny space in a folder of the test's own."""
    made: list[ForkedDriver] = []

    def make(*arguments: str, **options: str) -> ForkedDriver:
        if not made:
            shutil.copy(empty_store, tmp_path / "mlflow.db")
        made.append(ForkedDriver(tmp_path, ("--space", "tiny", "--sampler", "random", *arguments), **options))
        return made[-1]

    yield make
    for each in made:
        each.kill_all(but=RAYS_AGENTS)
    ended.extend(made)
