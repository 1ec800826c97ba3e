"""How the Valkeys of a cache get another password or certificate, without a restart. Pure.

The Secret's file of passwords has one a line: each is accepted, the first is shown. A rotation goes
through three files: `old`, then `old new`, then `new old`, then `new`. `next_lines` says when the
next may be written, and `renewals` what the Valkeys are told meanwhile. Whatever of the two a
process has read last, and whenever it was started, it shows a password that is accepted: nodes try
the lines in their order, Valkeys are told at once, and mounted files follow within minutes.

Nothing is remembered: both follow from what each Valkey accepts and shows now.
"""

import hashlib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from embedkeep_operator.cluster import Step

SETTLE_S: Final = 300.0
"""How old a file must be before what it does not begin with is dropped, seconds: by then the
kubelet has mounted it everywhere (its sync period and its cache's age, a minute each)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What one Valkey accepts and shows."""

    allowed: frozenset[str]
    """Digests of the passwords of the default user."""
    shown: str = field(repr=False)
    """Password that it shows to its primary."""
    certificate: str | None = None
    """Digest of what it shows to clients. None: it speaks plain TCP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow(Step):
    """ACL SETUSER: accept a password beside the others."""

    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Step):
    """ACL SETUSER: accept a password no longer. Connections that were opened with it stay."""

    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Show(Step):
    """CONFIG SET masterauth: what to show to a primary from now on."""

    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload(Step):
    """CONFIG SET: read certificate, key and authority again, from the files that they come from."""


def digest(password: str) -> str:
    """As Valkey shows a password."""
    return hashlib.sha256(password.encode()).hexdigest()


def shown_by(pem: str) -> str:
    """Digest of the first certificate in *pem*, as `Access` has it.

    Raises:
        ValueError: There is none.
    """
    end = pem.find(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[:end])).hexdigest()


def next_lines(
    lines: Sequence[str], new: str | None, seen: Mapping[str, Access], *, age_s: float, missing: int
) -> tuple[str, ...]:
    """What the file of passwords should hold now; *lines* where it is right as it is.

    Args:
        lines: What it holds, at least one.
        new: A password to go over to. None: none was asked for, and what was begun is ended.
        seen: The Valkeys that answer, by name.
        age_s: Since the file was written.
        missing: How many Valkeys do not answer.
    """
    first, *others = lines
    if new is not None and new not in lines:
        return first, new  # one that was begun and is not ended yet is given up
    if missing or not others:
        return tuple(lines)
    wanted = new if new is not None else first
    if first != wanted:
        accepted = all(digest(wanted) in access.allowed for access in seen.values())
        return (wanted, first) if accepted else tuple(lines)
    done = all(access.shown == first for access in seen.values())
    return (first,) if done and age_s >= SETTLE_S else tuple(lines)


def renewals(
    lines: Sequence[str],
    seen: Mapping[str, Access],
    *,
    certificate: str | None = None,
    missing: int,
) -> tuple[Step, ...]:
    """What the Valkeys are to be told, so that they accept *lines* and show the first.

    Args:
        certificate: Digest of the one that they should show. None: they speak plain TCP.
        missing: How many Valkeys do not answer. They may show anything, so nothing is refused.
    """
    return (
        *_allowed(lines, seen),
        *_shown(lines[0], seen, missing),
        *_refused(lines, seen, missing),
        *(
            Reload(at=name)
            for name, access in seen.items()
            if certificate is not None and access.certificate != certificate
        ),
    )


def _allowed(lines: Sequence[str], seen: Mapping[str, Access]) -> Iterator[Step]:
    for name, access in seen.items():
        for password in lines:
            if digest(password) not in access.allowed:
                yield Allow(at=name, password=password)


def _shown(first: str, seen: Mapping[str, Access], missing: int) -> Iterator[Step]:
    """Only what every primary accepts; whoever will be one is not known."""
    if missing or not all(digest(first) in access.allowed for access in seen.values()):
        return
    for name, access in seen.items():
        if access.shown != first:
            yield Show(at=name, password=first)


def _refused(lines: Sequence[str], seen: Mapping[str, Access], missing: int) -> Iterator[Step]:
    if missing or any(access.shown != lines[0] for access in seen.values()):
        return
    wanted = frozenset(map(digest, lines))
    for name, access in seen.items():
        if wanted <= access.allowed:
            for old in sorted(access.allowed - wanted):
                yield Refuse(at=name, digest=old)
