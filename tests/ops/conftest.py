"""The native kernels once for every instruction set that this processor supports."""

from collections.abc import Iterator

import pytest

_native = pytest.importorskip("convlogic_core._native", reason="the native extension was not built")


@pytest.fixture(params=_native.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one instruction set."""
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)
