"""Valkeys of a cluster as far as forming it goes: what each believes, and how they tell each other.

A model of Valkey's own rules (cluster_legacy.c), for property tests; that the real ones behave the
same is shown by the integration tests.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

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
)


class Refused(Exception):
    """A Valkey answered with an error."""


@dataclass
class Valkey:
    """One of them."""

    id: str
    endpoint: Endpoint
    table: dict[str, Peer] = field(default_factory=dict)
    """By id, itself too; each slot has at most one owner in it."""
    denied: dict[str, int] = field(default_factory=dict)
    """Slots that are bound to a peer here, and that it did not claim when it was heard last."""
    data: frozenset[str] = frozenset()
    admits: bool = False
    follows: bool = False

    def __post_init__(self) -> None:
        self.table.setdefault(self.id, Peer(endpoint=self.endpoint, epoch=0))

    @property
    def own(self) -> Peer:
        return self.table[self.id]

    def view(self) -> View:
        return View(
            id=self.id,
            peers=dict(self.table),
            keys=len(self.data),
            follows=self.follows,
            offset=len(self.data),
            admits=self.admits,
        )

    def restarted(self) -> "Valkey":
        """It was killed and started again, with its nodes.conf."""
        return Valkey(id=self.id, endpoint=self.endpoint, table=dict(self.table))

    def change(self, peer_id: str, **fields: object) -> None:
        self.table[peer_id] = replace(self.table[peer_id], **fields)  # type: ignore[arg-type]  # fields of Peer

    def bound(self) -> int:
        """All slots that have an owner in the table."""
        held = 0
        for peer in self.table.values():
            held |= peer.slots
        return held

    def bind(self, taken: int, to: str) -> None:
        for peer_id, peer in self.table.items():
            self.change(peer_id, slots=peer.slots & ~taken)
            self.denied[peer_id] = self.denied.get(peer_id, 0) & ~taken
        self.change(to, slots=self.table[to].slots | taken)

    def hears(self, sender: "Valkey") -> None:
        """A ping arrives: the sender's epoch and the slots it claims."""
        if sender.id not in self.table:
            return
        said = sender.own
        self.change(
            sender.id,
            endpoint=said.endpoint,
            epoch=said.epoch,
            primary=said.primary,
            well=True,
            met=True,
        )
        if said.primary is not None:
            self.change(sender.id, slots=0)
            return
        held = self._primary.slots
        self._hears_claims(sender, said)
        self._follows_who_took_all(held, sender.id)

    @property
    def _primary(self) -> Peer:
        """Its own entry, or its primary's."""
        return self.table.get(self.own.primary or self.id, self.own)

    def _follows_who_took_all(self, held: int, taker: str) -> None:
        """Become a replica of *taker*, where that has now what this shard had, and only that."""
        lost = held & self.table[taker].slots
        if (
            lost
            and not self._primary.slots
            and lost == self.table[taker].slots
            and taker != self.own.primary
        ):
            self.change(self.id, primary=taker)

    def _hears_claims(self, sender: "Valkey", said: Peer) -> None:
        self.denied[sender.id] = self.table[sender.id].slots & ~said.slots
        newer = 0
        for peer_id, peer in [*self.table.items()]:
            claimed = peer.slots & said.slots
            if peer_id == sender.id or not claimed:
                continue
            if peer.epoch < said.epoch:
                newer |= claimed
            else:
                newer |= claimed & self.denied.get(peer_id, 0)
                if peer.epoch > said.epoch:
                    sender.learns(peer_id, peer)
        free = said.slots & ~self.bound()
        self.bind((newer | free) & said.slots, sender.id)
        if said.epoch == self.own.epoch and sender.id > self.id:
            self.change(self.id, epoch=1 + max(peer.epoch for peer in self.table.values()))

    def learns(self, owner: str, peer: Peer) -> None:
        """An UPDATE arrives: *owner* has these slots, under a newer epoch."""
        if owner == self.id or owner not in self.table or self.table[owner].epoch > peer.epoch:
            return
        held = self._primary.slots
        self.change(owner, epoch=peer.epoch, primary=None)
        older = 0
        for peer_id, known in self.table.items():
            if peer_id != owner and known.epoch < peer.epoch:
                older |= known.slots & peer.slots
        self.bind(older | (peer.slots & ~self.bound()), owner)
        self._follows_who_took_all(held, owner)

    def takes_over(self) -> None:
        """From its primary, under a new epoch."""
        lost = self.own.primary
        assert lost is not None
        epoch = 1 + max(peer.epoch for peer in self.table.values())
        self.change(self.id, primary=None, epoch=epoch)
        self.follows = False
        self.bind(self.table[lost].slots if lost in self.table else 0, self.id)


@dataclass
class Bus:
    """Valkeys by name, and the links between them."""

    valkeys: dict[str, Valkey]

    def at(self, endpoint: Endpoint) -> Valkey | None:
        return next((each for each in self.valkeys.values() if each.endpoint == endpoint), None)

    def gossip(self, order: Iterable[tuple[str, str]]) -> None:
        """One ping over each link, in this order."""
        for one in self.valkeys.values():
            for peer_id, peer in [*one.table.items()]:
                there = self.at(peer.endpoint)
                if peer_id != one.id and (there is None or there.id != peer_id):
                    one.change(peer_id, well=False)
        for sender, receiver in order:
            one, other = self.valkeys[sender], self.valkeys[receiver]
            known = one.table.get(other.id)
            if known is not None and known.endpoint == other.endpoint:
                other.hears(one)
        self._copy()

    def _copy(self) -> None:
        """Replicas get what is at their primary's address, whoever answers there."""
        for one in self.valkeys.values():
            primary = one.table.get(one.own.primary or "")
            there = self.at(primary.endpoint) if primary is not None else None
            one.follows = there is not None and there is not one and there.admits
            if there is not None and one.follows:
                one.data = there.data

    def elect(self, name: str) -> None:
        """Have a replica take over by a vote, if its primary is away and most others can vote."""
        one = self.valkeys[name]
        lost = one.own.primary
        living = {each.id for each in self.valkeys.values()}
        if lost is None or lost in living or lost not in one.table:
            return
        voters = {peer_id for peer_id, peer in one.table.items() if peer.slots}
        if 2 * len(voters & living) > len(voters):
            one.takes_over()

    def take(self, step: Step) -> None:  # noqa: C901, PLR0912  # one case for each kind of step
        """Do it as a Valkey would.

        Raises:
            Refused: It answers with an error.
        """
        valkey = self.valkeys[step.at]
        match step:
            case SetEpoch(epoch=epoch):
                if len(valkey.table) > 1 or valkey.own.epoch:
                    raise Refused(step)
                valkey.change(valkey.id, epoch=epoch)
            case Meet(whom=whom):
                if (other := self.at(whom)) is not None:
                    _meet(valkey, other)
                    _meet(other, valkey)
            case Forget(id=gone):
                if gone == valkey.id or valkey.table.pop(gone, None) is None:
                    raise Refused(step)
            case Unbind(slots=wrong):
                if wrong & ~valkey.bound():
                    raise Refused(step)
                for peer_id, peer in valkey.table.items():
                    valkey.change(peer_id, slots=peer.slots & ~wrong)
            case Assign(slots=share):
                if share & valkey.bound():
                    raise Refused(step)
                valkey.bind(share, valkey.id)
            case Replicate(primary=primary):
                known = valkey.table.get(primary)
                idle = valkey.own.primary is not None or not (valkey.own.slots or valkey.data)
                if not idle or known is None or known.primary is not None or not known.met:
                    raise Refused(step)
                valkey.change(valkey.id, primary=primary, epoch=known.epoch, slots=0)
            case TakeOver():
                if valkey.own.primary is None:
                    raise Refused(step)
                valkey.takes_over()
            case Admit():
                valkey.admits = True
            case Clear():
                valkey.data = frozenset()
            case Reset():
                if valkey.own.primary is None:
                    raise Refused(step)
                own = replace(valkey.own, primary=None, slots=0)
                valkey.table, valkey.data, valkey.follows = {valkey.id: own}, frozenset(), False
            case _:
                raise AssertionError(step)

    def claims(self) -> dict[str, int]:
        """What each says that it has."""
        return {name: valkey.own.slots for name, valkey in self.valkeys.items()}


def _meet(one: Valkey, other: Valkey) -> None:
    known = one.table.get(other.id, Peer(endpoint=other.endpoint, epoch=other.own.epoch))
    one.table[other.id] = replace(known, endpoint=other.endpoint, well=True, met=True)


BLOCKS = tuple(
    slots.from_ranges([(first, min(first + 2_730, slots.COUNT - 1))])
    for first in range(0, slots.COUNT, 2_731)
)
"""Six parts that cover all slots, for states that are drawn."""
