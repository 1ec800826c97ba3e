"""What every test may use."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from support.apiserver import ApiServer, NoAssets, api_server
from support.node import Node, tapped
from support.tap import Tap
from support.valkey import Valkey, valkey

# A shell that starts the tests in the background has it ignored, and so would have what they start;
# some of them interrupt that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine and its load than of what is tested.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where all is there that tests need, as in CI, a test that is skipped has failed.

    Except for what a machine is, and not what it lacks: one without a GPU, or run by root. Tests
    say that by `skipif`, and what is missing by `pytest.skip`.
    """
    report = yield
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("skipif") is not None
    if report.skipped and not expected and os.environ.get("EMBEDKEEP_SKIPS") == "fail":
        report.outcome = "failed"
        report.longrepr = f"skipped, and EMBEDKEEP_SKIPS=fail: {report.longreprtext}"
    return report


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Nodes run on uvloop, whose connections differ from asyncio's in when they write and read."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops"):
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture(scope="session")
def valkey_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A Valkey for the tests that do it no harm."""
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server that nothing runs behind. Tests keep to a namespace of their own."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(api_server(tmp_path_factory.mktemp("kubernetes")))
        except NoAssets as error:
            pytest.skip(str(error))
        yield server


@pytest.fixture
def store(valkey_process: Valkey) -> Valkey:
    """An empty Valkey. Tests that kill or pause one start their own."""
    valkey_process.run(("FLUSHALL",))
    return valkey_process


@pytest.fixture
def tap() -> Tap:
    """The model's edge."""
    return Tap()


@pytest.fixture
def node_fields() -> dict[str, object]:
    """Of the node's config, beside what `node` gives it; for a module of tests to say otherwise."""
    return {}


@pytest.fixture
async def node(
    tap: Tap, store: Valkey, tmp_path: Path, node_fields: dict[str, object]
) -> AsyncIterator[Node]:
    """A node with an open Valkey tier and a tapped embedder."""
    async with tapped(tap, tmp_path, store, **node_fields) as started:
        yield started
