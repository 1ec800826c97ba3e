"""Valkeys as `embedkeep up` starts them, and what makes them one cluster and keeps it whole."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.cluster import Endpoint, View, Wanted
from embedkeep_operator.local.forming import Forming
from embedkeep_operator.local.supervisor import Board, Event
from embedkeep_operator.render_valkey import CLUSTER_FILE, own_lines, valkey_config
from embedkeep_operator.topology import Plan, Reason, plan
from embedkeep_operator.valkeys import Valkeys
from support.valkey import Valkey, free_port

PASSWORD: Final = "s3cret"  # of tests
SETTLED: Final = Plan(reason=Reason.SETTLED)
CACHE: Final = EmbeddingCache.model_validate(
    {
        "apiVersion": "embedkeep.dev/v1alpha1",
        "kind": "EmbeddingCache",
        "metadata": {"name": "docs"},
        "spec": {
            "model": {"name": "org/model"},
            "nodes": {"shards": 3, "memory": {"valkey": "32Mi"}},
            "embedder": {"managed": {}},
        },
    }
)


@dataclass
class Formed:
    """The Valkeys by name, valkey-0 and so on, shard by shard."""

    valkeys: dict[str, Valkey]
    folders: dict[str, Path]
    wanted: dict[str, Wanted]
    """What is kept together. Changes when one of them moves."""
    events: list[Event]
    board: Board
    forming: Forming

    async def until(self, holds: Callable[[], bool]) -> None:
        """What forming says of itself."""
        await self.board.until(holds)

    async def settled(self) -> dict[str, View]:
        """Wait until they say that they are one whole cluster, and what they say then."""
        while plan(self.wanted, seen := await self.seen()) != SETTLED:  # noqa: ASYNC110  # they announce nothing
            await asyncio.sleep(0.05)
        return seen

    async def seen(self) -> dict[str, View]:
        async with Valkeys(self.wanted, PASSWORD) as valkeys:
            return await valkeys.look()

    async def run(self, name: str, *words: str | int) -> object:
        """One command to one of them, and its answer."""
        (answer,) = await asyncio.to_thread(self.valkeys[name].run, words, password=PASSWORD)
        return answer

    def endpoint(self, name: str) -> Endpoint:
        endpoint = self.wanted[name].endpoint
        assert endpoint is not None
        return endpoint

    async def restarted(self, name: str, *, anew: bool, moved: bool = False) -> None:
        """Killed and started again, empty.

        Args:
            anew: It has lost its id too.
            moved: On other ports.
        """
        self.valkeys[name].kill()
        if anew:
            (self.folders[name] / CLUSTER_FILE).unlink()
        if moved:
            self.valkeys[name].port = free_port()
            self.configure(name, bus_port=free_port())
        await self.started(name)

    async def started(self, name: str) -> None:
        """After it was killed."""
        await asyncio.to_thread(self.valkeys[name].start, password=PASSWORD)

    def configure(self, name: str, *, bus_port: int) -> None:
        """Write its config, for the port that it has."""
        port = self.valkeys[name].port
        endpoint = Endpoint(host="127.0.0.1", port=port, bus_port=bus_port)
        self.wanted[name] = Wanted(shard=self.wanted[name].shard, endpoint=endpoint)
        (self.folders[name] / "valkey.conf").write_text(
            valkey_config(
                CACHE, host="127.0.0.1", port=port, folder=self.folders[name], bus_port=bus_port
            )
            + own_lines(passwords=[PASSWORD], address="127.0.0.1")
        )


@asynccontextmanager
async def formed(
    folder: Path, *, shards: int = 3, replicas: int = 0, forming: bool = True
) -> AsyncIterator[Formed]:
    """Started Valkeys; with *forming* they are being kept together."""
    events: list[Event] = []
    board = Board()
    wanted: dict[str, Wanted] = {}
    keeper = Forming(wanted, PASSWORD, on_change=board.changed, on_event=events.append)
    made = Formed({}, {}, wanted, events, board, keeper)
    with ExitStack() as stack:
        for number in range(shards * (1 + replicas)):
            name = f"valkey-{number}"
            made.folders[name] = folder / name
            made.folders[name].mkdir()
            valkey = Valkey(made.folders[name], config=made.folders[name] / "valkey.conf")
            made.valkeys[name] = valkey
            wanted[name] = Wanted(shard=number // (1 + replicas), endpoint=None)
            made.configure(name, bus_port=free_port())
            valkey.start(password=PASSWORD)
            stack.callback(valkey.kill)
        if forming:
            keeper.start()
        try:
            yield made
        finally:
            await keeper.stop()
