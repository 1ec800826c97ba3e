"""The served OpenAPI document, and what a fuzzer makes of it: every answer is one it describes."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.node import WAIT_S, node_config, running
from support.tap import Tap, serve_tap

CHECKS = [
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
NOT_A_BUG = {503, 504}
"""Of the 5xx: a short x-request-timeout-ms may be asked for."""

OPERATIONS = [
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/embed"),
    ("POST", "/"),
    ("GET", "/info"),
    ("GET", "/health"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node in a thread of its own: the fuzzer blocks."""
    folder: Path = tmp_path_factory.mktemp("node")
    started, ports = threading.Event(), []
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(serve_tap(Tap()))
            node = await stack.enter_async_context(running(node_config(folder, port)))
            ports.append(node.http_port)
            started.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(WAIT_S)
    yield f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(over.set)
    thread.join(WAIT_S)
    loop.close()


def test_the_document_lists_the_operations_that_are_answered(url: str) -> None:
    paths = requests.get(f"{url}/openapi.json", timeout=WAIT_S).json()["paths"]

    listed = [(method.upper(), path) for path, about in paths.items() for method in about]
    assert sorted(listed) == sorted(OPERATIONS)
    for method, path in listed:
        assert requests.request(method, url + path, timeout=WAIT_S).status_code != 405


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_one_that_the_document_describes(
    url: str, method: str, path: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operation = schema[path][method]
    if mode.is_negative and not (operation.body or operation.headers):
        assert method == "GET"  # nothing of it can be wrong
        return
    checks = [*CHECKS, negative_data_rejection] if mode.is_negative else CHECKS

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=60, suppress_health_check=[*HealthCheck], database=None)
    def fuzz(case: schemathesis.Case[Any]) -> None:
        response = case.call(timeout=WAIT_S)
        assert response.status_code < 500 or response.status_code in NOT_A_BUG, response.text
        try:
            case.validate_response(response, checks=checks)
        except FailureGroup as group:
            raise AssertionError(
                "\n".join(f"{each.title}: {each.message}" for each in group.exceptions)
                + f"\n{json.dumps(str(case.body))} {dict(case.headers)}"
            ) from group

    fuzz()
