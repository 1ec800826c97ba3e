"""Asks the Valkeys of one cache how they see their cluster, and tells them what to do.

The shell of `topology` and `rotation`: no decision is made here. The Valkeys' own bus knows no
password and lets everybody in, so whoever is to meet others has first answered here after AUTH.
"""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar

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
from embedkeep_operator.rotation import Access, Allow, Refuse, Reload, Show

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
_ACCESS_QUESTIONS: Final = (("ACL", "GETUSER", "default"), ("CONFIG", "GET", "masterauth"))
"""That make an `Access`."""
_FILES: Final = ("tls-cert-file", "tls-key-file", "tls-ca-cert-file")

Word = str | int
Answers = Sequence[object]
Said = TypeVar("Said")


class Valkeys:
    """Connections to all of them, for one look and the steps that follow from it.

    Args:
        wanted: By name. One that does not run is not asked, and does not count as silent.
        passwords: Of the default user, tried in this order.
        tls: Whom to trust. The certificate must carry the wanted one's hostname, or else its
            address. None: plain TCP.
    """

    def __init__(
        self,
        wanted: Mapping[str, Wanted],
        *passwords: str,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._wanted = wanted
        self._passwords = passwords
        self._tls = tls
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
        """What each says of the cluster that answers in time, by name."""
        self.silent = {}
        return await self._asked(_QUESTIONS, _view)

    async def look_at_access(self) -> dict[str, Access]:
        """What each accepts and shows, by name; who was silent before is not asked again."""
        return await self._asked(_ACCESS_QUESTIONS, _access)

    async def _asked(
        self, questions: Sequence[tuple[Word, ...]], read: "Callable[[_Connection, Answers], Said]"
    ) -> "dict[str, Said]":
        where = {name: each.endpoint for name, each in self._wanted.items()}
        running = {
            name: endpoint
            for name, endpoint in where.items()
            if endpoint is not None and name not in self.silent
        }
        found = await asyncio.gather(
            *(self._ask(name, endpoint, questions) for name, endpoint in running.items())
        )
        said = {}
        for name, answers in zip(running, found, strict=True):
            if isinstance(answers, str):
                self.silent[name] = answers
            else:
                said[name] = read(self._open[name], answers)
        return said

    async def _ask(
        self, name: str, endpoint: Endpoint, questions: Sequence[tuple[Word, ...]]
    ) -> list[object] | str:
        """Its answers, or why there are none."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if (old := self._open.pop(name, None)) is not None:
                    await old.close()
                hostname = self._wanted[name].hostname or endpoint.host
                connection = self._open[name] = await _connected(endpoint, self._tls, hostname)
                if (refusal := await self._authenticated(connection)) is not None:
                    return refusal
                answers = await connection.ask(*questions)
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return error.strerror or str(error)
        refusals = [answer for answer in answers if isinstance(answer, hiredis.HiredisError)]
        return str(refusals[0]) if refusals else answers

    async def _authenticated(self, connection: "_Connection") -> str | None:
        """None: it accepts one of the passwords. Otherwise what it says to the last."""
        said = "no password to show"
        for password in self._passwords:
            (answer,) = await connection.ask(("AUTH", password))
            if not isinstance(answer, hiredis.HiredisError):
                return None
            said = str(answer)
        return said

    async def take(self, step: Step) -> str | None:
        """Tell the Valkey that *step* is for, which must have answered the last look.

        Returns:
            None: It is done. Otherwise why it is not, or not known to be.
        """
        try:
            async with asyncio.timeout(TIMEOUT_S):
                connection = self._open[step.at]
                told = command(step) if not isinstance(step, Reload) else await _files(connection)
                (answer,) = await connection.ask(told)
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return error.strerror or str(error)
        return str(answer) if isinstance(answer, hiredis.HiredisError) else None


def command(step: Step) -> tuple[Word, ...]:  # noqa: C901, PLR0911, PLR0912  # one for each kind
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
        case Allow(password=password):
            return "ACL", "SETUSER", "default", f">{password}"
        case Refuse(digest=old):
            return "ACL", "SETUSER", "default", f"!{old}"
        case Show(password=password):
            return "CONFIG", "SET", "masterauth", password
        case _:
            raise AssertionError(f"no command for {step}")


async def _files(connection: "_Connection") -> tuple[Word, ...]:
    """Set what it reads certificates from to what that is: it reads them again."""
    (found,) = await connection.ask(("CONFIG", "GET", *_FILES))
    return "CONFIG", "SET", *(str(each) for each in (found if isinstance(found, list) else ()))


def _view(_connection: "_Connection", answers: Answers) -> View:
    nodes, info, replication, keys, admits = answers
    return parsed(
        str(nodes), info=f"{info}{replication}", keys=int(str(keys)), admits=admits == "OK"
    )


def _access(connection: "_Connection", answers: Answers) -> Access:
    user, shown = answers
    said, auth = _pairs(user), _pairs(shown)
    passwords = said.get("passwords")
    return Access(
        allowed=frozenset(map(str, passwords if isinstance(passwords, list) else ())),
        shown=str(auth.get("masterauth", "")),
        certificate=connection.certificate,
    )


def _pairs(reply: object) -> dict[str, object]:
    flat = reply if isinstance(reply, list) else []
    return dict(zip(map(str, flat[::2]), flat[1::2], strict=True))


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

    @property
    def certificate(self) -> str | None:
        """SHA-256 of what the other side has shown. None: plain TCP."""
        over = self._writer.get_extra_info("ssl_object")
        shown = over.getpeercert(binary_form=True) if over is not None else None
        return hashlib.sha256(shown).hexdigest() if shown is not None else None

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def _connected(endpoint: Endpoint, tls: ssl.SSLContext | None, hostname: str) -> _Connection:
    return _Connection(
        *await asyncio.open_connection(
            endpoint.host,
            endpoint.port,
            ssl=tls,
            server_hostname=hostname if tls is not None else None,
        )
    )
