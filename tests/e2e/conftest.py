"""What end-to-end tests may use: any Kubernetes, named by KUBECONFIG, and images that it has."""

import os
from collections.abc import AsyncIterator, Generator

import pytest
from lightkube import AsyncClient
from lightkube.config.kubeconfig import KubeConfig

from support.kube import Room, room

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have fixtures know whether their test failed."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    """The Kubernetes that KUBECONFIG names, and no other: not one that somebody works with."""
    file = os.environ.get("KUBECONFIG")
    if not file:
        pytest.skip("KUBECONFIG names no Kubernetes; see docs/e2e.md")
    async with AsyncClient(KubeConfig.from_file(file)) as connected:
        yield connected


@pytest.fixture
async def own(client: AsyncClient, request: pytest.FixtureRequest) -> AsyncIterator[Room]:
    """A namespace of the test's own. Where the test fails, what was in it is shown."""
    async with room(client, "e2e") as made:
        yield made
        if request.node.stash.get(FAILED, True):
            print(await made.described())  # noqa: T201 - pytest shows it with the failure
