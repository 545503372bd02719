"""The tiny experiment, which a run would train without a fault."""

import pytest

from tests.support.command_line import Tiny, make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny experiment; read only."""
    return make_tiny(tmp_path_factory.mktemp("experiment"))
