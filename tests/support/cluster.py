"""Valkeys of a test's own that are one cluster, and nodes beside them."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from embedkeep.config import Cluster
from support.valkey import START_TIMEOUT_S, Valkey, free_port

SLOTS = 16384
NAMES = ("a", "b", "c")


class Valkeys:
    """Started primaries by name, that share the slots out in their order."""

    def __init__(self, servers: dict[str, Valkey]) -> None:
        self.servers = servers

    def __getitem__(self, name: str) -> Valkey:
        return self.servers[name]

    def ids(self) -> dict[str, str]:
        """What each calls itself."""
        return {name: _said(each, "CLUSTER", "MYID") for name, each in self.servers.items()}

    def owner(self, key: bytes) -> str:
        """Who holds *key*, as Valkey itself says."""
        for name, server in self.servers.items():
            (reply,) = server.run(("CLUSTER", "SLOTS"))
            (slot,) = server.run(("CLUSTER", "KEYSLOT", key))
            assert isinstance(reply, list)
            for first, last, (_, port, *_more), *_replicas in reply:
                if first <= slot <= last and port == server.port:
                    return name
        raise AssertionError(key)

    def move(self, first: int, last: int, *, source: str, target: str) -> None:
        """Have *source* hand these slots to *target*, entries and all, and see it done."""
        there = self.ids()[target]
        moved = ("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", there)
        assert self[source].run(moved) == [b"OK"]
        self.until(lambda: b"success" in repr(self[source].run(GET_MIGRATIONS)).encode())

    def until(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + START_TIMEOUT_S
        while not condition():
            assert time.monotonic() < until, "the cluster did not get there"
            time.sleep(0.01)


GET_MIGRATIONS = ("CLUSTER", "GETSLOTMIGRATIONS")


@contextmanager
def valkey_cluster(
    folder: Path, *arguments: str, names: tuple[str, ...] = NAMES
) -> Iterator[Valkeys]:
    """A whole cluster, killed at the end."""
    with ExitStack() as stack:
        servers: dict[str, Valkey] = {}
        for name in names:
            (folder / name).mkdir()
            server = servers[name] = Valkey(
                folder / name,
                "--cluster-enabled", "yes",
                "--cluster-port", str(free_port()),
                "--cluster-require-full-coverage", "no",
                "--cluster-allow-reads-when-down", "yes",
                "--cluster-node-timeout", "1000",
                *arguments,
            )  # fmt: skip
            server.start()
            stack.callback(server.kill)
        valkeys = Valkeys(servers)
        first, *others = servers.values()
        share = -(-SLOTS // len(servers))
        for at, server in enumerate(servers.values()):
            own = (at * share, min((at + 1) * share, SLOTS) - 1)
            server.run(("CLUSTER", "SET-CONFIG-EPOCH", at + 1), ("CLUSTER", "ADDSLOTSRANGE", *own))
        for server in others:
            bus = server.arguments[server.arguments.index("--cluster-port") + 1]
            first.run(("CLUSTER", "MEET", "127.0.0.1", server.port, bus))
        valkeys.until(lambda: all(map(_whole, servers.values())))
        yield valkeys


def cluster_config(valkeys: Valkeys, name: str, ports: dict[str, int], **fields: object) -> Cluster:
    """What the node *name* is told; *ports* are the nodes' own."""
    return Cluster.model_validate(
        {
            "name": name,
            "members": [
                {
                    "name": each,
                    "address": f"127.0.0.1:{ports.get(each, 1)}",
                    "valkey_host": "127.0.0.1",
                    "valkey_port": server.port,
                }
                for each, server in valkeys.servers.items()
            ],
        }
        | fields
    )


def _whole(server: Valkey) -> bool:
    (reply,) = server.run(("CLUSTER", "SLOTS"))
    assert isinstance(reply, list)
    owned = sum(last + 1 - first for first, last, *_ in reply)
    return owned == SLOTS and "cluster_state:ok" in _said(server, "CLUSTER", "INFO")


def _said(server: Valkey, *command: str) -> str:
    (reply,) = server.run(command)
    assert isinstance(reply, bytes)
    return reply.decode()
