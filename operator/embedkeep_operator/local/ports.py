"""Which ports a cache gets on this machine. Blocks while a port of a killed run is still held."""

import contextlib
import random
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from embedkeep.errors import InvalidConfig
from embedkeep.runs import NodePorts, Ports, numbered
from embedkeep_operator.api_nodes import Ports as WantedPorts

HOST: Final = "127.0.0.1"
MOST: Final = 65_535
FREE: Final = range(10_240, 32_768)
"""Where free ports are looked for: below those that Linux and macOS give to connections."""
TRIES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """One port of one node."""

    field: str
    node: str
    port: int | None
    """None: a free one."""

    def __str__(self) -> str:
        return f"{self.field} of {self.node}"


def choose_ports(wanted: WantedPorts, *, shards: int, replicas: int = 0, wait_s: float) -> Ports:
    """The ports asked for, where they can be bound now, and free ones for the others.

    A port that is asked for is the first node's; the other nodes follow it one by one.

    Args:
        replicas: Nodes of each shard beside the first.
        wait_s: How long a port that is asked for may still be in use, seconds.

    Raises:
        InvalidConfig: One is in use, or two nodes would get the same; names the fields.
    """
    count = shards * (1 + replicas)
    wishes = _wishes(wanted, count)
    _refuse_collisions(wishes, count)
    with ExitStack() as held:  # all at once, so that none is given out twice
        given = {
            (wish.field, wish.node): _number(held.enter_context(_bound(wish, wait_s)))
            for wish in sorted(wishes, key=lambda wish: wish.port is None)
        }

        def free() -> int:
            return _number(held.enter_context(_free()))

        nodes = tuple(
            NodePorts(
                grpc=given["grpc", node],
                http=given["http", node],
                metrics=given["metrics", node],
                valkey=free(),
                bus=free() if count > 1 else None,
                shard=number // (1 + replicas),
            )
            for number, node in enumerate(numbered("node", count))
        )
        return Ports(nodes=nodes, embedder_grpc=free(), embedder_metrics=free())


def _wishes(wanted: WantedPorts, count: int) -> tuple[_Wish, ...]:
    fields: Mapping[str, int | None] = {
        "grpc": wanted.grpc,
        "http": wanted.http,
        "metrics": wanted.metrics,
    }
    return tuple(
        _Wish(field=field, node=node, port=first + number if first is not None else None)
        for field, first in fields.items()
        for number, node in enumerate(numbered("node", count))
    )


def _refuse_collisions(wishes: tuple[_Wish, ...], count: int) -> None:
    """Nodes' ports follow one another, so those of two fields may meet."""
    for wish in wishes:
        if wish.port is not None and wish.port > MOST:
            raise InvalidConfig(
                f"{wish.port}, for {wish.node}, is past {MOST}: begin at {MOST - count + 1}"
                " or before",
                field=f"spec.nodes.ports.{wish.field}",
            )
    for one, other in combinations(wishes, 2):
        if one.port is not None and one.port == other.port:
            raise InvalidConfig(
                f"{other.port}, for {other.node}, is also {one}: with {count} nodes begin"
                f" {count} apart, or leave one out for free ports",
                field=f"spec.nodes.ports.{other.field}",
            )


def _number(held: socket.socket) -> int:
    return int(held.getsockname()[1])


def _bound(wish: _Wish, wait_s: float) -> socket.socket:
    """The port of *wish*, held until it is closed."""
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            return _free() if wish.port is None else _listener(wish.port)
        except OSError as error:
            if time.monotonic() < give_up_at:
                time.sleep(0.1)
                continue
            raise InvalidConfig(
                f"{HOST}:{wish.port} for {wish.node} cannot be used: {error.strerror}; leave it"
                " out, or give --free-ports, for a free one",
                field=f"spec.nodes.ports.{wish.field}",
            ) from error


def _free() -> socket.socket:
    """One that the kernel gives to nobody's outgoing connection.

    A process that ends and is started again finds it free.
    """
    for port in random.sample(FREE, TRIES):
        with contextlib.suppress(OSError):
            return _listener(port)
    return _listener(0)


def _listener(port: int) -> socket.socket:
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # As servers do: a connection of an earlier run that lingers is no reason to refuse.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((HOST, port))
    except OSError:
        held.close()
        raise
    return held
