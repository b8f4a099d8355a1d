import contextlib
import functools
import http.server
import shutil
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
import torch
from click import Command
from optuna.storages import InMemoryStorage

from search import tracking  # before any other import of mlflow: it turns the telemetry off
from search.command import run_command
from search.data import Dataset
from spaces import SPACES, Space
from tests.search.tiny import TINY, Runs, synthetic_dataset


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Nothing here is big enough to share, and cores that others use make two threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def tiny_space(monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setitem(SPACES, TINY.name, TINY)
    return TINY


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return synthetic_dataset()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, in which studies/ and mlflow.db come to lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("CONVLOGIC_DATA", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store with its tables and nothing in them: making them takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_uri(workspace: Path, empty_store: Path) -> str:
    """A store of one's own. Absolute: MLflow keeps connections by URI, and the current folder changes."""
    shutil.copy(empty_store, workspace / "mlflow.db")
    return f"sqlite:///{workspace}/mlflow.db"


@pytest.fixture
def run(workspace: Path, tiny_space: Space, dataset: Dataset) -> Runs:
    return Runs(dataset, InMemoryStorage())


@pytest.fixture
def run_sqlite(workspace: Path, tiny_space: Space, dataset: Dataset) -> Runs:
    return Runs(dataset, None)


@dataclass
class Outcome:
    """What a command left: exit code and its two streams."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    workspace: Path, tiny_space: Space, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs a command in this process as `python -m` would, in the workspace."""

    def call(command: Command, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(command)
        assert isinstance(ended.value.code, int)
        streams = capsys.readouterr()
        return Outcome(ended.value.code, streams.out, streams.err)

    return call


class Unreachable:
    """torchvision's dataset class on a machine without a network."""

    def __init__(self, root: str, download: bool) -> None:
        raise RuntimeError("Error downloading:\nTried a mirror, got:\n<urlopen error no route to host>\n")


@pytest.fixture
def torchvision_datasets(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands in for torchvision.datasets, which takes seconds to import."""
    datasets = types.ModuleType("torchvision.datasets")
    datasets.MNIST = datasets.FashionMNIST = Unreachable  # type: ignore[attr-defined]
    torchvision = types.ModuleType("torchvision")
    torchvision.datasets = datasets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    return datasets


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Serves a folder over HTTP on this machine; gives its address."""
    monkeypatch.setenv("no_proxy", "*")
    with contextlib.ExitStack() as stack:

        def start(folder: Path) -> str:
            handler = functools.partial(QuietHandler, directory=str(folder))
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/"

        yield start
