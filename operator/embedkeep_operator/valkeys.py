"""Asks the Valkeys of one cache how they see their cluster, and tells them what to do.

The shell of `topology`: no decision is made here. The Valkeys' own bus knows no password and lets
everybody in, so whoever is to meet others has first answered here after AUTH.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

import hiredis

from embedkeep_operator import slots
from embedkeep_operator.cluster import (
    Admit,
    Assign,
    Clear,
    Endpoint,
    Forget,
    Meet,
    Peer,
    Replicate,
    Reset,
    SetEpoch,
    Step,
    TakeOver,
    Unbind,
    View,
    Wanted,
)

TIMEOUT_S: Final = 1.0
"""Longest wait for one Valkey's answers, seconds: they come within a round trip or not at all."""
_NOTHING: Final = object()
_QUESTIONS: Final = (
    ("CLUSTER", "NODES"),
    ("CLUSTER", "INFO"),
    ("INFO", "replication"),
    ("DBSIZE",),
    ("ACL", "DRYRUN", "default", "PSYNC", "?", "-1"),
)
"""That make a `View`."""

Word = str | int


class Valkeys:
    """Connections to all of them, for one look and the steps that follow from it.

    Args:
        wanted: By name. One that does not run is not asked, and does not count as silent.
        password: Of the default user.
    """

    def __init__(self, wanted: Mapping[str, Wanted], password: str) -> None:
        self._wanted = wanted
        self._password = password
        self._open: dict[str, _Connection] = {}
        self.silent: dict[str, str] = {}
        """Who did not answer the last look, by name, and why."""

    async def __aenter__(self) -> Self:
        """Nothing is connected before the first look."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all connections."""
        for connection in self._open.values():
            await connection.close()

    async def look(self) -> dict[str, View]:
        """What each says that answers in time, by name."""
        where = {name: each.endpoint for name, each in self._wanted.items()}
        running = {name: endpoint for name, endpoint in where.items() if endpoint is not None}
        names = [*running]
        found = await asyncio.gather(*(self._look_at(*each) for each in running.items()))
        self.silent = {
            name: said for name, said in zip(names, found, strict=True) if isinstance(said, str)
        }
        return {
            name: said for name, said in zip(names, found, strict=True) if isinstance(said, View)
        }

    async def _look_at(self, name: str, endpoint: Endpoint) -> View | str:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                connection = self._open[name] = await _connected(endpoint)
                answers = await connection.ask(("AUTH", self._password), *_QUESTIONS)
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return error.strerror or str(error)
        if refusals := [answer for answer in answers if isinstance(answer, hiredis.HiredisError)]:
            return str(refusals[0])
        _, nodes, info, replication, keys, admits = answers
        return parsed(
            str(nodes), info=f"{info}{replication}", keys=int(str(keys)), admits=admits == "OK"
        )

    async def take(self, step: Step) -> str | None:
        """Tell the Valkey that *step* is for, which must have answered the last look.

        Returns:
            None: It is done. Otherwise why it is not, or not known to be.
        """
        try:
            async with asyncio.timeout(TIMEOUT_S):
                (answer,) = await self._open[step.at].ask(command(step))
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return error.strerror or str(error)
        return str(answer) if isinstance(answer, hiredis.HiredisError) else None


def command(step: Step) -> tuple[Word, ...]:  # noqa: C901, PLR0911  # one for each kind
    """*step* in Valkey's words."""
    match step:
        case SetEpoch(epoch=epoch):
            return "CLUSTER", "SET-CONFIG-EPOCH", epoch
        case Meet(whom=whom):
            return "CLUSTER", "MEET", whom.host, whom.port, whom.bus_port
        case Forget(id=gone):
            return "CLUSTER", "FORGET", gone
        case Unbind(slots=wrong):
            return "CLUSTER", "DELSLOTSRANGE", *_flat(wrong)
        case Assign(slots=share):
            return "CLUSTER", "ADDSLOTSRANGE", *_flat(share)
        case Replicate(primary=primary):
            return "CLUSTER", "REPLICATE", primary
        case TakeOver():
            return "CLUSTER", "FAILOVER", "TAKEOVER"
        case Admit():
            return "ACL", "SETUSER", "default", "+psync", "+sync"
        case Clear():
            return "FLUSHALL", "ASYNC"
        case Reset():
            return "CLUSTER", "RESET", "SOFT"
        case _:
            raise AssertionError(f"no command for {step}")


def _flat(held: int) -> tuple[int, ...]:
    return tuple(bound for each in slots.ranges_of(held) for bound in each)


def parsed(nodes: str, *, info: str = "", keys: int = 0, admits: bool = True) -> View:
    """What a Valkey says.

    Args:
        nodes: CLUSTER NODES, one line a Valkey: id, host:port@bus[,names], flags, primary, ping,
            pong, epoch, link, slots.
        info: CLUSTER INFO and INFO replication.
        keys: DBSIZE.
        admits: The default user may PSYNC.
    """
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    peers = {}
    own_id = ""
    for line in nodes.splitlines():
        peer_id, address, flagged, primary, _, _, epoch, _, *held = line.split()
        flags = {*flagged.split(",")}
        if "myself" in flags:
            own_id = peer_id
        peers[peer_id] = Peer(
            endpoint=_endpoint(address.partition(",")[0]),
            epoch=int(epoch),
            slots=slots.from_ranges(_range(each) for each in held if not each.startswith("[")),
            primary=primary if primary != "-" else None,
            met="handshake" not in flags,
            well=not flags & {"fail", "fail?", "noaddr"},
        )
    return View(
        id=own_id,
        peers=peers,
        takes_writes=facts.get("cluster_state") == "ok",
        keys=keys,
        follows=facts.get("master_link_status") == "up",
        offset=int(facts.get("slave_repl_offset", 0)),
        admits=admits,
    )


def _endpoint(address: str) -> Endpoint:
    place, _, bus = address.partition("@")
    host, _, port = place.rpartition(":")
    return Endpoint(host=host, port=int(port), bus_port=int(bus))


def _range(text: str) -> slots.Range:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


class _Connection:
    """Commands in, as many answers out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader(encoding="utf-8", notEnoughData=_NOTHING)

    async def ask(self, *commands: tuple[Word, ...]) -> list[object]:
        """The answers, in order; a refusal is a `hiredis.HiredisError` among them.

        Raises:
            OSError: The connection is lost.
        """
        for each in commands:
            self._writer.write(hiredis.pack_command(each))  # type: ignore[arg-type]  # its stub knows 1-tuples only
        answers: list[object] = []
        while len(answers) < len(commands):
            if (answer := self._parser.gets()) is not _NOTHING:
                answers.append(answer)
            elif said := await self._reader.read(1 << 16):
                self._parser.feed(said)
            else:
                raise ConnectionResetError("it closed the connection")
        return answers

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def _connected(endpoint: Endpoint) -> _Connection:
    return _Connection(*await asyncio.open_connection(endpoint.host, endpoint.port))
