from unittest.mock import Mock

import pytest

from convlogic_core.native_network import NativeNetwork
from convlogic_core.ops.backend import check_implementation


def native_is_built() -> bool:
    try:
        check_implementation("cpu")
    except ValueError:
        return False
    return True


WITH_EXTENSION = pytest.mark.skipif(not native_is_built(), reason="the native extension was not built")


# Of wider scope than a test, so that Hypothesis accepts it.
@pytest.fixture(scope="session", params=["python", pytest.param("cpu", marks=WITH_EXTENSION)])
def implementation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def fastest() -> str:
    """The backend to use where the test is about something else and takes many gates."""
    return "cpu" if native_is_built() else "python"


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Counts the forward passes in which a network ran as a whole."""
    spy = Mock(side_effect=NativeNetwork.differentiable_scores, autospec=True)
    monkeypatch.setattr(NativeNetwork, "differentiable_scores", lambda network, x: spy(network, x))
    return spy
