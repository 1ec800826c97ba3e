"""From what the Valkeys of one cache say to the next safe steps towards one whole cluster. Pure.

`embedkeep up` and the operator look (`valkeys.look`), ask `plan`, take its steps, and look again.
Nothing is remembered between two looks, so it does not matter how a cluster came to be as it is: it
may be new, half formed, two halves that do not know each other, or have a primary that came back
empty under another id. Whatever the state,

- a step never takes a slot from a primary that answers, and never gives one to two of them;
- an id is forgotten, and its slots are given away, only while every wanted Valkey answers: else it
  might be one that is just being started again;
- addresses are set right before anything is forgotten, and slots are given last.

Two primaries that claim the same slot, or have the same config epoch, settle that among themselves
as soon as they have met (Valkey's own rules: the higher epoch wins; of two equal ones the smaller
id takes a new one). `plan` waits for it. It makes a cluster whole, not balanced: slots that an
answering primary holds are moved by migration, or not at all. Every shard is one primary here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heapreplace

from embedkeep_operator import slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a Valkey listens."""

    host: str
    """An IP address, as the Valkeys announce it to each other."""
    port: int
    """For clients."""
    bus_port: int
    """For the other Valkeys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A Valkey as one of them, or it itself, knows it: a line of CLUSTER NODES."""

    endpoint: Endpoint
    epoch: int
    """Config epoch."""
    slots: int = field(default=0, repr=False)  # thousands of digits
    """See `embedkeep_operator.slots`."""
    met: bool = True
    """False: a handshake is under way, under an id that is none yet."""
    well: bool = True
    """False: whoever knows it cannot reach it (fail, fail?, noaddr)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one Valkey said when it was asked, over a connection that was authenticated."""

    id: str
    peers: Mapping[str, Peer]
    """By id; itself too."""
    takes_writes: bool = True
    """False: it says that the cluster is down. One that has just started says so for 2 s."""

    @property
    def own(self) -> Peer:
        """What it says of itself."""
        return self.peers[self.id]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something for one Valkey to do."""

    at: str
    """Name of the wanted Valkey that is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEpoch(Step):
    """CLUSTER SET-CONFIG-EPOCH: a first config epoch, for one that knows nobody yet."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Meet(Step):
    """CLUSTER MEET: get to know each other, or each other's new address."""

    whom: Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget(Step):
    """CLUSTER FORGET: an id that is gone."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unbind(Step):
    """CLUSTER DELSLOTSRANGE: stop believing that others have these slots, which they deny."""

    slots: int = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign(Step):
    """CLUSTER ADDSLOTSRANGE: take slots that nobody has."""

    slots: int = field(repr=False)


class Reason(StrEnum):
    """Why these steps, or why none."""

    SETTLED = "settled"
    """Every slot has one owner, and all know it."""
    MISSING = "not all answer"
    """Those who do are introduced to each other; all else waits for the others."""
    MEETING = "meeting"
    FORGETTING = "forgetting ids that are gone"
    ASSIGNING = "assigning slots"
    SPREADING = "telling each other"
    """Nothing to do but to wait until they have told each other what is so already."""
    OPENING = "not taking writes yet"
    """Whole, but not all take writes."""
    STRANGERS = "others are in the cluster"
    """Whole, but some answer, or are not yet known not to, that are none of the wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now. Take the steps in order, stop at one that is refused, and look again."""

    reason: Reason
    steps: tuple[Step, ...] = ()


def plan(  # noqa: PLR0911  # one for each reason
    wanted: Mapping[str, Endpoint], seen: Mapping[str, View]
) -> Plan:
    """The next safe steps towards one whole cluster of the *wanted* Valkeys.

    Args:
        wanted: By name, in the order in which they get slots.
        seen: Those that answered just now, by name.
    """
    world = _World(wanted=wanted, seen={name: seen[name] for name in wanted if name in seen})
    steps = [*world.first_epochs(), *world.introductions()]
    if len(world.seen) < len(wanted):
        return Plan(reason=Reason.MISSING, steps=tuple(steps))
    if steps:
        return Plan(reason=Reason.MEETING, steps=tuple(steps))
    if farewells := tuple(world.farewells()):
        return Plan(reason=Reason.FORGETTING, steps=farewells)
    if world.contested():
        return Plan(reason=Reason.SPREADING)
    if assignments := tuple(world.assignments()):
        return Plan(reason=Reason.ASSIGNING, steps=assignments)
    if not world.agrees():
        return Plan(reason=Reason.SPREADING)
    if world.has_strangers():
        return Plan(reason=Reason.STRANGERS)
    opened = all(view.takes_writes for view in world.seen.values())
    return Plan(reason=Reason.SETTLED if opened else Reason.OPENING)


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    """The wanted Valkeys that answer, in order, and what follows from what they say."""

    wanted: Mapping[str, Endpoint]
    seen: Mapping[str, View]
    names: Mapping[str, str] = field(init=False)
    """Of those who answer, by id."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", {view.id: name for name, view in self.seen.items()})

    def first_epochs(self) -> Iterator[Step]:
        """One above all that are known for each that is new, so that none are equal."""
        known = (peer.epoch for view in self.seen.values() for peer in view.peers.values())
        epoch = max(known, default=0)
        for name, view in self.seen.items():
            if len(view.peers) == 1 and view.own.epoch == 0:
                epoch += 1
                yield SetEpoch(at=name, epoch=epoch)

    def introductions(self) -> Iterator[Step]:
        """All pairs where one does not know the other, or not where it is."""
        names = [*self.seen]
        for place, one in enumerate(names):
            for other in names[place + 1 :]:
                if not self._knows(one, other):
                    yield Meet(at=one, whom=self.wanted[other])
                elif not self._knows(other, one):
                    yield Meet(at=other, whom=self.wanted[one])

    def _knows(self, one: str, other: str) -> bool:
        peer = self.seen[one].peers.get(self.seen[other].id)
        return peer is not None and peer.met and peer.endpoint == self.wanted[other]

    def farewells(self) -> Iterator[Step]:
        """Ids that no wanted Valkey has, and that nobody reaches. Needs all to answer."""
        for name, view in self.seen.items():
            for peer_id, peer in view.peers.items():
                if peer.met and peer_id not in self.names and self._is_gone(peer_id):
                    yield Forget(at=name, id=peer_id)

    def _is_gone(self, peer_id: str) -> bool:
        known = [view.peers[peer_id] for view in self.seen.values() if peer_id in view.peers]
        taken = self.wanted.values()
        return any(peer.endpoint in taken for peer in known) or not any(p.well for p in known)

    def contested(self) -> bool:
        """Two claim the same slot, or have the same epoch."""
        claimed = 0
        for view in self.seen.values():
            if claimed & view.own.slots:
                return True
            claimed |= view.own.slots
        return len({view.own.epoch for view in self.seen.values()}) < len(self.seen)

    def assignments(self) -> Iterator[Step]:
        """Slots that nobody claims, to those who are believed to have them, else evenly."""
        unclaimed = slots.ALL
        for view in self.seen.values():
            unclaimed &= ~view.own.slots
            for peer_id, peer in view.peers.items():
                if peer_id not in self.names:  # alive, and not for us to take from
                    unclaimed &= ~peer.slots
        shares = dict.fromkeys(self.seen, 0)
        for view in self.seen.values():
            for peer_id, peer in view.peers.items():
                if peer_id in self.names and peer_id != view.id:
                    believed = peer.slots & unclaimed
                    shares[self.names[peer_id]] |= believed
                    unclaimed &= ~believed
        held = [self.seen[name].own.slots | shares[name] for name in self.seen]
        quotas = evened([each.bit_count() for each in held], unclaimed.bit_count())
        for name, quota in zip(self.seen, quotas, strict=True):
            part = slots.lowest(unclaimed, quota)
            unclaimed &= ~part
            yield from self._assignment(name, shares[name] | part)

    def _assignment(self, name: str, share: int) -> Iterator[Step]:
        if not share:
            return
        believed = 0
        for peer in self.seen[name].peers.values():
            believed |= peer.slots
        if wrong := believed & share:
            yield Unbind(at=name, slots=wrong)
        yield Assign(at=name, slots=share)

    def agrees(self) -> bool:
        """All believe of each other what each says of itself."""
        return all(
            view.peers[other.id].slots == other.own.slots
            for view in self.seen.values()
            for other in self.seen.values()
        )

    def has_strangers(self) -> bool:
        """Some are known that are none of the wanted."""
        return any(
            peer.met and peer_id not in self.names
            for view in self.seen.values()
            for peer_id, peer in view.peers.items()
        )


def evened(counts: Sequence[int], more: int) -> list[int]:
    """How many of *more* each gets, so that the sums are as even as they can be.

    Where two have as many, the first gets one more.
    """
    heap = [(count, place) for place, count in enumerate(counts)]
    heapify(heap)
    quotas = [0] * len(counts)
    for _ in range(more):
        count, place = heap[0]
        quotas[place] += 1
        heapreplace(heap, (count + 1, place))
    return quotas
