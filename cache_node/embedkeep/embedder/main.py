"""The embedder's process: load the model or find the upstream, answer, drain at the end."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from embedkeep.config import Backend as BackendName
from embedkeep.config import EmbedderConfig, Quantization
from embedkeep.embedder import folder, source
from embedkeep.embedder.answering import SERVICE
from embedkeep.embedder.backends import Backend
from embedkeep.embedder.service import EmbedderService
from embedkeep.embedder.upstream.service import UpstreamService
from embedkeep.errors import EmbedKeepError, InvalidConfig
from embedkeep.serving import Endpoint, Health, run, serving
from embedkeep.v1 import embedder_pb2_grpc

_LOADING_MAY_END_S: Final = 0.5
"""How long a model that is still loading may take to its end when the process is told to stop."""


def main(config: EmbedderConfig) -> None:
    """Run an embedder until SIGINT or SIGTERM.

    It listens at once; its health is NOT_SERVING until the model is loaded and warm, or the
    upstream was seen to answer.

    Raises:
        SystemExit: It cannot start or its device broke, after a message for people. Status 2 where
            the config must change, so that nobody tries again; 1 otherwise.
    """
    try:
        if config.upstream is not None:
            asking = UpstreamService(
                config.model,
                config.upstream,
                config.batch,
                max_message_bytes=config.max_message_bytes,
            )
            run(lambda stop: _serve(config, asking, asking.start, stop), process="embedder")
            return
        service = EmbedderService(
            config.model, config.batch, max_message_bytes=config.max_message_bytes
        )
        start = partial(service.start, lambda: open_backend(config))
        run(lambda stop: _serve(config, service, start, stop), process="embedder")
    except EmbedKeepError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2 if isinstance(error, InvalidConfig) else 1) from None
    if not service.ended(within_s=_LOADING_MAY_END_S):
        # Everything else is closed; left is a model that was still loading, or a text being read.
        sys.stderr.flush()
        os._exit(0)


def open_backend(config: EmbedderConfig) -> Backend:
    """Find, read and load the model that *config* names. Blocks, for minutes where it downloads.

    Raises:
        InvalidConfig: It cannot be found or run; says which field, its value and what to do.
    """
    if config.quantization is not Quantization.NONE and config.backend is not BackendName.ONNX:
        raise InvalidConfig(
            f"{config.quantization} needs backend onnx; {config.backend} computes in dtype",
            field="quantization",
        )
    described = folder.read(
        source.resolve(config.model, backend=config.backend), max_tokens=config.model.max_tokens
    )
    # Each engine is imported only where it is chosen: the other one may not be installed.
    if config.backend is BackendName.ONNX:
        from embedkeep.embedder.backends.onnx import OnnxBackend  # noqa: PLC0415  # as said above

        return OnnxBackend(config, described)
    from embedkeep.embedder.backends.torch import TorchBackend  # noqa: PLC0415  # as said above

    return TorchBackend(config, described)


async def _serve(
    config: EmbedderConfig,
    service: EmbedderService | UpstreamService,
    start: Callable[[], Coroutine[None, None, None]],
    stop: asyncio.Event,
) -> None:
    health = Health([SERVICE])
    endpoint = Endpoint(
        grpc=config.grpc,
        metrics=config.metrics,
        tls=config.tls,
        max_message_bytes=config.max_message_bytes,
        announce_file=config.announce_file,
        drain_s=config.drain_s,
    )
    async with AsyncExitStack() as stack:
        # Closed last: calls in flight are still computed while the server drains.
        stack.push_async_callback(service.close)
        await stack.enter_async_context(
            serving(
                endpoint,
                register=lambda server: embedder_pb2_grpc.add_EmbedderServicer_to_server(
                    service, server
                ),
                health=health,
                registry=service.metrics.registry,
            )
        )
        await _until_either(stopped=stop.wait(), answering=_answer(service, start, health))


async def _until_either(**endings: Coroutine[None, None, object]) -> None:
    """Wait for the first to end; it raises what that one raised. The others are cancelled."""
    tasks = [asyncio.create_task(ending, name=name) for name, ending in endings.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _answer(
    service: EmbedderService | UpstreamService,
    start: Callable[[], Coroutine[None, None, None]],
    health: Health,
) -> None:
    await start()
    await health.set(serving=True)
    await service.broken()
