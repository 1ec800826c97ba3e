"""A Valkey Cluster as it is seen, and what its members can be told: facts and steps, all frozen.

`valkeys` gathers the facts and takes the steps; `topology` goes from the ones to the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
class Wanted:
    """A Valkey that belongs to the cache."""

    shard: int
    """Those of one shard hold the same: one is the primary, the others its replicas. Which of them
    it is does not matter, and changes."""
    endpoint: Endpoint | None
    """None: it does not run, for certain. For one, its pod has no address."""
    hostname: str | None = None
    """That its certificate carries. None: the address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A Valkey as one of them, or it itself, knows it: a line of CLUSTER NODES."""

    endpoint: Endpoint
    epoch: int
    """Config epoch; of a replica its primary's."""
    slots: int = field(default=0, repr=False)  # thousands of digits
    """See `embedkeep_operator.slots`. A replica has none."""
    primary: str | None = None
    """Id of whose replica it is. None: it is a primary."""
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
    keys: int = 0
    """How many it holds."""
    follows: bool = False
    """A replica's link to its primary is up, and it holds what that does."""
    offset: int = 0
    """How far a replica has followed its primary, bytes."""
    admits: bool = True
    """It gives copies of what it holds to whoever asks as a replica. False: it has just started,
    and was not told that it may."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicate(Step):
    """CLUSTER REPLICATE: become a replica."""

    primary: str
    """Its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeOver(Step):
    """CLUSTER FAILOVER TAKEOVER: a replica becomes the primary of its shard, without a vote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit(Step):
    """ACL SETUSER: from now on give copies to replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear(Step):
    """FLUSHALL: drop keys of slots that are another's. Only who holds none becomes a replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(Step):
    """CLUSTER RESET: a replica that is in the wrong shard becomes a primary that knows nobody."""
