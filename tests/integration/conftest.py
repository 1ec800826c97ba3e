"""What tests of several nodes may use."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.cluster import NAMES, Nodes, Valkeys, running_nodes, valkey_cluster
from support.tap import Tap


@pytest.fixture(scope="session")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkeys]:
    """A cluster for the tests that do it no harm."""
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as valkeys:
        yield valkeys


@pytest.fixture
def whole(unharmed: Valkeys) -> Valkeys:
    """The same, empty. Tests that kill, pause or move anything start their own."""
    for name in NAMES:
        unharmed[name].run(("FLUSHALL",))
    return unharmed


@pytest.fixture
async def nodes(whole: Valkeys, tap: Tap, tmp_path: Path) -> AsyncIterator[Nodes]:
    """Three nodes in this process that wait long for each other."""
    async with running_nodes(whole, tap, tmp_path) as started:
        yield started
