"""Valkeys of a test's own that are one cluster, and nodes beside them."""

import asyncio
import contextlib
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from embedkeep.config import Cluster, NodeConfig
from embedkeep.keys import KeySpace, tenant_salt
from embedkeep.node.metrics import Hop
from embedkeep.node.slots import slot_of
from support.node import Node, found, node_config, running, sample, scrape, until
from support.tap import Tap, serve_tap
from support.valkey import START_TIMEOUT_S, Valkey, free_port

SLOTS = 16384
NAMES = ("a", "b", "c")


class Valkeys:
    """Started Valkeys by name, the primaries first, that share the slots out in their order.

    Args:
        shards: How many primaries there were at first; of one named a the replicas are a1, a2 ...
    """

    def __init__(self, servers: dict[str, Valkey], shards: int) -> None:
        self.servers = servers
        self._shards = shards

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

    def where(self, key: bytes) -> str:
        """The same as shares were given out at first, without asking."""
        share = -(-SLOTS // self._shards)
        return list(self.servers)[slot_of(key) // share]

    def is_copied(self, name: str) -> bool:
        """The replica *name* is in step with its primary."""
        return "master_link_status:up" in _said(self[name], "INFO", "replication")

    def is_primary(self, name: str) -> bool:
        """It says so, and has slots."""
        _, _, flags, _, _, _, _, _, *held = _own_line(self[name]).split()
        return "master" in flags and bool(held)

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
    folder: Path, *arguments: str, names: tuple[str, ...] = NAMES, replicas: int = 0
) -> Iterator[Valkeys]:
    """A whole cluster, killed at the end."""
    with ExitStack() as stack:
        servers: dict[str, Valkey] = {}
        copies = {f"{name}{number + 1}": name for number in range(replicas) for name in names}
        for name in (*names, *copies):
            (folder / name).mkdir()
            server = servers[name] = Valkey(
                folder / name,
                "--cluster-enabled", "yes",
                "--cluster-port", str(free_port()),
                "--cluster-require-full-coverage", "no",
                "--cluster-allow-reads-when-down", "yes",
                "--cluster-node-timeout", "1000",
                "--cluster-allow-replica-migration", "no",
                "--repl-diskless-sync-delay", "0",
                *arguments,
            )  # fmt: skip
            server.start()
            stack.callback(server.kill)
        valkeys = Valkeys(servers, len(names))
        first, *others = servers.values()
        share = -(-SLOTS // len(names))
        for at, (name, server) in enumerate(servers.items()):
            server.run(("CLUSTER", "SET-CONFIG-EPOCH", at + 1))
            if name in names:
                own = (at * share, min((at + 1) * share, SLOTS) - 1)
                server.run(("CLUSTER", "ADDSLOTSRANGE", *own))
        for server in others:
            bus = server.arguments[server.arguments.index("--cluster-port") + 1]
            first.run(("CLUSTER", "MEET", "127.0.0.1", server.port, bus))
        valkeys.until(lambda: all(map(_whole, servers.values())))
        for name, of in copies.items():
            servers[name].run(("CLUSTER", "REPLICATE", valkeys.ids()[of]))
        valkeys.until(lambda: all(valkeys.is_copied(name) for name in copies))
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


def _own_line(server: Valkey) -> str:
    return next(line for line in _said(server, "CLUSTER", "NODES").splitlines() if "myself" in line)


def _said(server: Valkey, *command: str) -> str:
    (reply,) = server.run(command)
    assert isinstance(reply, bytes)
    return reply.decode()


@dataclass(eq=False)
class Nodes:
    """Nodes by name, each beside the Valkey of that name, and the model's edge."""

    valkeys: Valkeys
    tap: Tap
    nodes: dict[str, Node]
    processes: dict[str, asyncio.subprocess.Process]
    """Where they run as processes."""
    configs: dict[str, NodeConfig]

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def texts(self, owner: str, count: int, *, epoch: int = 0, length: int = 0) -> list[str]:
        """Texts whose entries lie in the Valkey *owner*, of at least so many characters."""
        make = KeySpace(
            fingerprint=self.tap.fingerprint, salt=tenant_salt(b"", ""), epoch=epoch, prompt=""
        ).key
        all_texts = (f"text {number}".ljust(length, "x") for number in itertools.count())
        here = self.valkeys.where
        return list(itertools.islice((t for t in all_texts if here(make(t)) == owner), count))

    async def settled(self, api_key: str | None = None) -> None:
        """Wait until all tiers are whole, and all nodes know all others."""
        for node in self.nodes.values():
            await until(partial(_is_settled, node, api_key))

    async def hops(self, name: str) -> dict[str, float]:
        """How the calls of this node to its peers ended, those that there were."""
        text = await asyncio.to_thread(scrape, self[name].metrics_port)
        counts = {each: sample(text, "embedkeep_hops_total", outcome=each) for each in Hop}
        return {outcome: count for outcome, count in counts.items() if count}

    def kill(self, name: str) -> None:
        """End a node without a word."""
        self.processes[name].kill()

    def pause(self, name: str) -> None:
        """Let a node hang: connections stay, nothing answers."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let it go on."""
        self.processes[name].send_signal(signal.SIGCONT)


PATIENT: Final = {"first_sign_s": 5.0, "silence_s": 10.0}
"""Waits that no healthy peer needs, however busy the machine is."""


@asynccontextmanager
async def running_nodes(
    valkeys: Valkeys,
    tap: Tap,
    folder: Path,
    *,
    cluster: Mapping[str, object] = PATIENT,
    processes: bool = False,
    api_key: str | None = None,
    opinions: Mapping[str, Sequence[str]] = MappingProxyType({}),
    **fields: object,
) -> AsyncIterator[Nodes]:
    """Nodes beside all of *valkeys*, settled.

    Args:
        cluster: Fields of `Cluster`.
        processes: Each is a process of its own, to be killed or paused.
        api_key: Of any tenant, where there are some.
        opinions: Of nodes that are mistaken: the Valkeys that they take to be beside the members.
        fields: Of each node's config.
    """
    secret = folder / "secret"
    secret.write_text("0123456789abcdef")
    ports = {name: free_port() for name in valkeys.servers}
    async with AsyncExitStack() as stack:
        tap_port = await stack.enter_async_context(serve_tap(tap))
        started = Nodes(valkeys, tap, {}, {}, {})
        for name, port in ports.items():
            (folder / f"node-{name}").mkdir()
            told = cluster_config(valkeys, name, ports, **cluster)
            if name in opinions:
                told = _mistaken(told, opinions[name])
            own = next(member for member in told.members if member.name == name)
            config = node_config(
                folder / f"node-{name}",
                tap_port,
                grpc={"port": port},
                valkey={"port": own.valkey_port, "breaker_open_s": 0.1, "read_timeout_s": 1.0},
                cluster=told,
                cluster_secret_file=secret,
                **fields,
            )
            started.configs[name] = config
            if processes:
                process = await stack.enter_async_context(node_process(config))
                started.processes[name] = process
                started.nodes[name] = await stack.enter_async_context(found(config))
            else:
                started.nodes[name] = await stack.enter_async_context(running(config))
        await started.settled(api_key)
        yield started


@asynccontextmanager
async def node_process(config: NodeConfig) -> AsyncIterator[asyncio.subprocess.Process]:
    """A node as a process of its own, killed at the end."""
    assert config.announce_file is not None
    file = config.announce_file.with_suffix(".config")
    file.write_text(config.model_dump_json())
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _RUN, str(file))
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


_RUN = """
import sys
from pathlib import Path
from embedkeep.config import NodeConfig, load
from embedkeep.node.main import main
main(load(NodeConfig, Path(sys.argv[1])))
"""


def _mistaken(told: Cluster, order: Sequence[str]) -> Cluster:
    """*told*, with the Valkeys of these members in the members' places."""
    ports = {member.name: member.valkey_port for member in told.members}
    members = (
        member.model_copy(update={"valkey_port": ports[other]})
        for member, other in zip(told.members, order, strict=True)
    )
    return told.model_copy(update={"members": tuple(members)})


async def is_shut(node: Node, count: int) -> bool:
    """Whether *node* leaves so many Valkeys alone."""
    return await node.metric("embedkeep_breaker_open", tier="valkey") == count


async def _is_settled(node: Node, api_key: str | None) -> bool:
    tiers = {tier.name: tier for tier in (await node.info(api_key)).tiers}
    alone = await node.metric("embedkeep_breaker_open", tier="peers")
    return not tiers["valkey"].message and tiers["embedder"].serving and alone == 0
