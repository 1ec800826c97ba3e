"""Leads the Valkeys of one cache towards one cluster: looks, takes what steps are safe, and says.

The decisions are `topology`'s, the talking is `valkeys`'.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from embedkeep_operator.cluster import View, Wanted
from embedkeep_operator.rotation import renewals
from embedkeep_operator.topology import Reason, plan
from embedkeep_operator.valkeys import Valkeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Led:
    """How it stood when it was looked at."""

    reason: Reason
    seen: Mapping[str, View]
    """Those that answered, by name."""
    detail: str = ""
    """Who stands in the way, and how; empty: nobody does."""

    @property
    def standing(self) -> str:
        """For people."""
        return f"{self.reason} ({self.detail})" if self.detail else str(self.reason)


async def lead_on(
    wanted: Mapping[str, Wanted],
    *passwords: str,
    tls: ssl.SSLContext | None = None,
    certificate: str | None = None,
) -> Led:
    """Look once at the *wanted* Valkeys, and take the steps that are safe now.

    Args:
        wanted: By name.
        passwords: Theirs, tried in this order; all are to be accepted, and the first shown.
        tls: Whom to trust. None: plain TCP.
        certificate: Digest of the one that they are to show. None: whatever they do.
    """
    async with Valkeys(wanted, *passwords, tls=tls) as valkeys:
        seen = await valkeys.look()
        todo = plan(wanted, seen)
        access = await valkeys.look_at_access()
        renewing = renewals(passwords, access, certificate=certificate, missing=len(valkeys.silent))
        refusals = [
            f"{step.at}: {refusal}"
            for step in renewing
            if (refusal := await valkeys.take(step)) is not None
        ]
        for step in todo.steps:
            if (refusal := await valkeys.take(step)) is not None:
                refusals.append(f"{step.at}: {refusal}")
                break
        silent = [f"{who}: {why}" for who, why in valkeys.silent.items()]
        return Led(reason=todo.reason, seen=seen, detail=", ".join(refusals or silent))
