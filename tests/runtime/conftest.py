"""The server that runs of the command line are forked from."""

from collections.abc import Iterator

import pytest

from tests.runtime.runs import Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    server = Runs(tmp_path_factory.mktemp("runs"))
    yield server
    server.close()
