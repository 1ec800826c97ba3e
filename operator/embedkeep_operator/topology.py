"""From what the Valkeys of one cache say to the next safe steps towards one whole cluster. Pure.

`embedkeep up` and the operator look (`valkeys.look`), ask `plan`, take its steps, and look again.
Nothing is remembered between two looks, so it does not matter how a cluster came to be as it is: it
may be new, half formed, two halves that do not know each other, or in the middle of a failover.
Whatever the state,

- a step never takes a slot from a primary that answers and holds anything its replicas lack, and
  never gives one to two of them;
- an id is forgotten, and its slots are given away, only while every wanted Valkey answers or is
  known not to run: else it might be one that is just being started again;
- addresses are set right before anything is forgotten, slots are given last, and nobody is
  forgotten whose replica still stands for it.

Whoever of a shard is its primary stays it; which of them that is changes with each failover. Two
primaries that claim the same slot, or have the same config epoch, settle that among themselves
as soon as they have met (Valkey's own rules: the higher epoch wins; of two equal ones the smaller
id takes a new one). `plan` waits for it. It makes a cluster whole, not balanced: slots that an
answering primary holds are moved by migration, or not at all.

**What the empty do to the full.** A replica copies whatever answers at its primary's address,
under that id or another. One that was killed and is started again there is empty, and the replica
would drop all that it holds. So Valkeys start with copying forbidden (`render_valkey.own_lines`),
and `Admit` allows it only where no replica holds more.

**Who takes over.** Valkey's replicas elect a successor while most of the primaries that have slots
live. `TakeOver` is for where they cannot (two shards, one dead), or never begin (the dead one's
address answers again, so nobody misses it): it is safe where the old primary certainly does not run
any more, since it is known of every Valkey of its shard where it is, and none is the one; or where
most of the wanted Valkeys answer, and all of those miss it. If in that case it does live, out of
everybody's reach, it goes on until it meets the others, and then becomes a replica: the entries
that it got meanwhile are lost, and an invalidation says on either side that not all were told.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from heapq import heapify, heapreplace

from embedkeep_operator import slots
from embedkeep_operator.cluster import (
    Admit,
    Assign,
    Clear,
    Forget,
    Meet,
    Replicate,
    Reset,
    SetEpoch,
    Step,
    TakeOver,
    Unbind,
    View,
    Wanted,
)


class Reason(StrEnum):
    """Why these steps, or why none."""

    SETTLED = "settled"
    """Every slot has one owner, all know it, and every replica holds what its primary does."""
    MISSING = "not all answer"
    """What is safe meanwhile is done; all else waits for the others."""
    MEETING = "meeting"
    TAKING_OVER = "a replica takes over"
    FORGETTING = "forgetting ids that are gone"
    ASSIGNING = "assigning slots"
    COPYING = "filling replicas"
    SPREADING = "telling each other"
    """Nothing to do but to wait until they have told each other what is so already."""
    OPENING = "not taking writes yet"
    """Whole, but not all take writes."""
    STRANGERS = "others are in the cluster"
    """Whole, but some answer, or are not yet known not to, that are none of the wanted."""
    SPLIT = "a shard has several primaries"
    """Whole, but the slots of one of them must be moved before it can become a replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now. Take the steps in order, stop at one that is refused, and look again."""

    reason: Reason
    steps: tuple[Step, ...] = ()


def plan(wanted: Mapping[str, Wanted], seen: Mapping[str, View]) -> Plan:
    """The next safe steps towards one whole cluster of the *wanted* Valkeys.

    Args:
        wanted: By name, in the order in which they get slots.
        seen: Those that answered just now, by name.
    """
    world = _World(wanted=wanted, seen={name: seen[name] for name in wanted if name in seen})
    meeting = (*world.first_epochs(), *world.introductions())
    rescues = tuple(world.takeovers())
    copies = tuple(world.copies())
    always = meeting + rescues + copies
    if world.silent:
        return Plan(reason=Reason.MISSING, steps=always)
    if meeting:
        return Plan(reason=Reason.MEETING, steps=always)
    if rescues:
        return Plan(reason=Reason.TAKING_OVER, steps=always)
    if farewells := tuple(world.farewells()):
        return Plan(reason=Reason.FORGETTING, steps=farewells + copies)
    return _given(world, copies)


def _given(  # noqa: PLR0911  # one for each reason
    world: "_World", copies: tuple[Step, ...]
) -> Plan:
    """What is left where all know each other, and nobody takes over or is forgotten."""
    if world.contested():
        return Plan(reason=Reason.SPREADING, steps=copies)
    if assignments := tuple(world.assignments()):
        return Plan(reason=Reason.ASSIGNING, steps=assignments + copies)
    if copies:
        return Plan(reason=Reason.COPYING, steps=copies)
    if not world.agrees():
        return Plan(reason=Reason.SPREADING)
    if world.has_strangers():
        return Plan(reason=Reason.STRANGERS)
    if world.is_split():
        return Plan(reason=Reason.SPLIT)
    if not world.copied():
        return Plan(reason=Reason.COPYING)
    opened = all(view.takes_writes for view in world.seen.values())
    return Plan(reason=Reason.SETTLED if opened else Reason.OPENING)


@dataclass(frozen=True, kw_only=True)
class _World:
    """The wanted Valkeys that answer, in order, and what follows from what they say."""

    wanted: Mapping[str, Wanted]
    seen: Mapping[str, View]
    names: Mapping[str, str] = field(init=False)
    """Of those who answer, by id."""
    shards: Mapping[int, Sequence[str]] = field(init=False)
    """Names of those who answer, by shard, which may have none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", {view.id: name for name, view in self.seen.items()})
        shards: dict[int, list[str]] = {each.shard: [] for each in self.wanted.values()}
        for name in self.seen:
            shards[self.wanted[name].shard].append(name)
        object.__setattr__(self, "shards", shards)

    @cached_property
    def silent(self) -> frozenset[str]:
        """Who may run, and does not answer."""
        running = {name for name, each in self.wanted.items() if each.endpoint is not None}
        return frozenset(running - self.seen.keys())

    @cached_property
    def claimed(self) -> int:
        """Slots that those who answer say are theirs."""
        return slots.union(view.own.slots for view in self.seen.values())

    # Getting to know each other.

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
        names = [name for name in self.seen if self.wanted[name].endpoint is not None]
        for place, one in enumerate(names):
            for other in names[place + 1 :]:
                if not self._knows(one, other):
                    yield self._meeting(one, other)
                elif not self._knows(other, one):
                    yield self._meeting(other, one)

    def _meeting(self, one: str, other: str) -> Step:
        endpoint = self.wanted[other].endpoint
        assert endpoint is not None  # noqa: S101  # `introductions` has seen to it
        return Meet(at=one, whom=endpoint)

    def _knows(self, one: str, other: str) -> bool:
        peer = self.seen[one].peers.get(self.seen[other].id)
        return peer is not None and peer.met and peer.endpoint == self.wanted[other].endpoint

    # Primaries and their replicas.

    @cached_property
    def leads(self) -> Mapping[int, str | None]:
        """By shard, who is its primary, or shall be. None: nobody is yet, or can be."""
        return {shard: self._lead(here) for shard, here in self.shards.items()}

    def _lead(self, here: Sequence[str]) -> str | None:
        primaries = [name for name in here if self.seen[name].own.primary is None]
        if holders := [name for name in primaries if self.seen[name].own.slots]:
            return max(holders, key=lambda name: self.seen[name].own.epoch)
        if self._heirs(here):
            return None
        followed = {self.seen[name].own.primary for name in here}
        return next((name for name in primaries if self.seen[name].id in followed),
                    next(iter(primaries), None))  # fmt: skip

    def _heirs(self, here: Sequence[str]) -> list[str]:
        """Replicas of one that does not answer and has slots that nobody else claims."""
        return [name for name in here if self._inheritance(self.seen[name])]

    def _inheritance(self, view: View) -> int:
        primary = view.own.primary
        if primary is None or primary in self.names or primary not in view.peers:
            return 0
        return view.peers[primary].slots & ~self.claimed

    def takeovers(self) -> Iterator[Step]:
        """One replica of each shard that has lost its primary, or has it back empty."""
        for shard, here in self.shards.items():
            lead = self.leads[shard]
            if lead is None:
                ready = [name for name in self._heirs(here) if self._may_take_over(name)]
            else:
                ready = self._fuller(lead, here)
            if ready:
                best = max(ready, key=lambda name: (self.seen[name].offset, self.seen[name].keys))
                yield TakeOver(at=best)

    def _fuller(self, lead: str, here: Sequence[str]) -> list[str]:
        """Replicas of *lead* that hold more than it does, since it has just started."""
        view = self.seen[lead]
        return [
            name
            for name in here
            if self.seen[name].own.primary == view.id
            and not (view.admits or self.seen[name].follows)
            and self.seen[name].keys > view.keys
        ]

    def _may_take_over(self, name: str) -> bool:
        view, shard = self.seen[name], self.wanted[name].shard
        lost = view.own.primary
        assert lost is not None  # noqa: S101  # an heir has one
        if view.peers[lost].well:
            return False
        if not any(self.wanted[each].shard == shard for each in self.silent):
            return True
        where = view.peers[lost].endpoint
        if any(self.wanted[each].endpoint == where for each in self.seen):
            return True
        return not view.follows and self._is_missed_by_most(lost) and not self._elects(view, lost)

    def _is_missed_by_most(self, lost: str) -> bool:
        if any(lost in view.peers and view.peers[lost].well for view in self.seen.values()):
            return False
        return len(self.seen) > len(self.silent)

    def _elects(self, view: View, lost: str) -> bool:
        """Enough primaries are left to vote for a successor."""
        voters = {peer_id for peer_id, peer in view.peers.items() if peer.slots}
        here = sum(peer_id in self.names for peer_id in voters - {lost})
        return 2 * here > len(voters)

    def copies(self) -> Iterator[Step]:
        """What makes all others of a shard hold what its primary does."""
        for shard, here in self.shards.items():
            accounted = not any(self.wanted[each].shard == shard for each in self.silent)
            lead = self.leads[shard]
            if lead is not None:
                yield from self._admissions(lead, here, accounted=accounted)
                for name in here:
                    if name != lead:
                        yield from self._joining(name, lead)
            elif here and accounted and not self._heirs(here):
                yield Reset(at=here[0])  # all follow primaries of other shards

    def _admissions(self, lead: str, here: Sequence[str], *, accounted: bool) -> Iterator[Step]:
        """Copies of *lead* may be made by all; and of those who may have to take over from it."""
        several = sum(each.shard == self.wanted[lead].shard for each in self.wanted.values()) > 1
        if not several:
            return
        view = self.seen[lead]
        # One that does not answer now may hold more.
        if not view.admits and accounted and not self._fuller(lead, here):
            yield Admit(at=lead)
        for name in here:
            replica = self.seen[name]
            if replica.own.primary == view.id and replica.follows and not replica.admits:
                yield Admit(at=name)

    def _joining(self, name: str, lead: str) -> Iterator[Step]:
        view, primary = self.seen[name], self.seen[lead].id
        known = view.peers.get(primary)
        if view.own.primary == primary or view.own.slots:
            return
        if known is None or not known.met or known.primary is not None:
            return  # it has not heard yet who that is
        if self._inheritance(view) and not self._may_take_over(name):
            return  # it follows one that may live, somewhere
        if view.own.primary is None and view.keys:
            yield Clear(at=name)
        yield Replicate(at=name, primary=primary)

    def is_split(self) -> bool:
        """Several of one shard hold slots."""
        return any(
            self.seen[name].own.slots and name != self.leads[shard]
            for shard, here in self.shards.items()
            for name in here
        )

    def copied(self) -> bool:
        """All others of each shard hold what its primary does."""
        return all(
            name == lead
            or (self.seen[name].own.primary == self.seen[lead].id and self.seen[name].follows)
            for shard, lead in self.leads.items()
            if lead is not None
            for name in self.shards[shard]
        )

    # Slots.

    def farewells(self) -> Iterator[Step]:
        """Ids that no wanted Valkey has, and that nobody reaches. Needs all to be accounted for."""
        followed = {view.own.primary for view in self.seen.values()}
        for name, view in self.seen.items():
            for peer_id, peer in view.peers.items():
                stays = peer_id in self.names or peer_id in followed
                if peer.met and not stays and self._is_gone(peer_id):
                    yield Forget(at=name, id=peer_id)

    def _is_gone(self, peer_id: str) -> bool:
        known = [view.peers[peer_id] for view in self.seen.values() if peer_id in view.peers]
        taken = [each.endpoint for each in self.wanted.values()]
        return any(peer.endpoint in taken for peer in known) or not any(p.well for p in known)

    def contested(self) -> bool:
        """Two claim the same slot, or two primaries have the same epoch."""
        primaries = [view for view in self.seen.values() if view.own.primary is None]
        counted = sum(view.own.slots.bit_count() for view in primaries)
        same = len({view.own.epoch for view in primaries}) < len(primaries)
        return same or counted > self.claimed.bit_count()

    def assignments(self) -> Iterator[Step]:
        """Slots that nobody claims, to those who are believed to have them, else evenly."""
        leads = [lead for lead in self.leads.values() if lead is not None]
        if len(leads) < len(self.leads):
            return  # its part must be left to a shard that has no primary yet
        unclaimed = slots.ALL & ~self.claimed
        for view in self.seen.values():
            for peer_id, peer in view.peers.items():
                if peer_id not in self.names:  # alive, and not for us to take from
                    unclaimed &= ~peer.slots
        shares = dict.fromkeys(leads, 0)
        for view in self.seen.values():
            for peer_id, peer in view.peers.items():
                name = self.names.get(peer_id)
                if name in shares and peer_id != view.id:
                    believed = peer.slots & unclaimed
                    shares[name] |= believed
                    unclaimed &= ~believed
        held = [self.seen[name].own.slots | shares[name] for name in leads]
        quotas = evened([each.bit_count() for each in held], unclaimed.bit_count())
        for name, quota in zip(leads, quotas, strict=True):
            part = slots.lowest(unclaimed, quota)
            unclaimed &= ~part
            yield from self._assignment(name, shares[name] | part)

    def _assignment(self, name: str, share: int) -> Iterator[Step]:
        if not share:
            return
        if wrong := share & slots.union(peer.slots for peer in self.seen[name].peers.values()):
            yield Unbind(at=name, slots=wrong)
        yield Assign(at=name, slots=share)

    def agrees(self) -> bool:
        """All believe of each other what each says of itself."""
        return all(
            (known.slots, known.primary) == (other.own.slots, other.own.primary)
            for view in self.seen.values()
            for other in self.seen.values()
            for known in [view.peers[other.id]]
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
