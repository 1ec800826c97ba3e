"""How much of whom may wait for the embedder. Pure counting; nothing here waits.

Each tenant may use as much of the bound as is free, so a tenant alone gets half of it, two get a
third each, and there is always room for one that comes new. A burst of one thus cannot fill the
queue for all.

Source: dynamic thresholds, Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998,
with alpha = 1.
"""

from collections.abc import Hashable

from embedkeep.errors import Overloaded


class Admission:
    """Inputs that wait for the embedder, by tenant, under one bound.

    Args:
        bound: Inputs of all tenants together.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._total = 0
        self._waiting: dict[Hashable, int] = {}

    @property
    def total(self) -> int:
        """Inputs waiting now."""
        return self._total

    def enter(self, tenant: Hashable, inputs: int) -> None:
        """Count *inputs* in.

        A request that alone is larger than its tenant's share is let in when nothing of the
        tenant waits and the bound has room: it could otherwise never be answered.

        Raises:
            Overloaded: No room; nothing was counted.
        """
        mine = self._waiting.get(tenant, 0)
        free = self._bound - self._total
        if inputs > free or (mine > 0 and mine + inputs > free - inputs):
            raise Overloaded(
                f"{self._total} inputs wait for the embedder, {mine} of them yours; "
                f"{inputs} more do not fit the bound of {self._bound}",
                retry_after_s=0.5,
            )
        self._waiting[tenant] = mine + inputs
        self._total += inputs

    def leave(self, tenant: Hashable, inputs: int) -> None:
        """Count *inputs* out."""
        self._total -= inputs
        if left := self._waiting[tenant] - inputs:
            self._waiting[tenant] = left
        else:
            del self._waiting[tenant]
