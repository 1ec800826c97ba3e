"""Valkeys of a cluster as far as forming it goes: what each believes, and how they tell each other.

A model of Valkey's own rules (cluster_legacy.c), for property tests; that the real ones behave the
same is shown by the integration tests.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from embedkeep_operator import slots
from embedkeep_operator.topology import (
    Assign,
    Endpoint,
    Forget,
    Meet,
    Peer,
    SetEpoch,
    Step,
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

    def __post_init__(self) -> None:
        self.table.setdefault(self.id, Peer(endpoint=self.endpoint, epoch=0))

    @property
    def own(self) -> Peer:
        return self.table[self.id]

    def view(self) -> View:
        return View(id=self.id, peers=dict(self.table))

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
        self.change(sender.id, endpoint=said.endpoint, epoch=said.epoch, well=True, met=True)
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
        self.change(owner, epoch=peer.epoch)
        older = 0
        for peer_id, known in self.table.items():
            if peer_id != owner and known.epoch < peer.epoch:
                older |= known.slots & peer.slots
        self.bind(older | (peer.slots & ~self.bound()), owner)


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

    def take(self, step: Step) -> None:  # noqa: C901  # one case for each kind of step
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
