"""What makes two requests the same entry.

A key is 24 bytes: ``space tag (4) | tenant tag (4) | digest (16)``. The two tags tell
the keys of one model or tenant from all others in Valkey; the digest alone decides identity. It
is BLAKE2b keyed with the tenant's salt, so a tenant can neither guess nor build another's key, over
the whole fingerprint, the epoch, the resolved prompt and the exact text, each length-prefixed so
that no two field lists share a byte string.

Text is never normalized: to a model, a text with another "?" or space is another text.
"""

import hashlib
import hmac
import struct
from collections.abc import Iterable
from typing import Final, NewType, cast

Key = NewType("Key", bytes)
"""24 bytes; see the module's text."""

KEY_BYTES: Final = 24
TAG_BYTES: Final = 4
DIGEST_BYTES: Final = KEY_BYTES - 2 * TAG_BYTES

_length = struct.Struct("<Q").pack


def tenant_salt(cluster_secret: bytes, tenant: str) -> bytes:
    """A tenant's hashing key, 32 bytes, independent of its API keys so that these rotate freely.

    HKDF-SHA256 (RFC 5869) with the tenant's name as the info field; one block of output.

    Args:
        cluster_secret: At least 16 bytes, the same on all nodes of a cache; empty only for a cache
            without tenants.
    """
    pseudorandom = hmac.digest(b"embedkeep/tenant/v1", cluster_secret, "sha256")
    return hmac.digest(pseudorandom, tenant.encode() + b"\x01", "sha256")


def peer_token(cluster_secret: bytes) -> str:
    """What the nodes of a cache show one another, 64 hexadecimal digits. HKDF as above.

    Args:
        cluster_secret: As for `tenant_salt`; no tenant's salt follows from the token.
    """
    pseudorandom = hmac.digest(b"embedkeep/peer/v1", cluster_secret, "sha256")
    return hmac.digest(pseudorandom, b"token\x01", "sha256").hex()


def _tag(label: bytes, value: bytes) -> bytes:
    """4 bytes without an opening brace.

    What stands between two braces Valkey takes for the whole key when it chooses a slot, and all
    entries of a tenant could come to lie in one.
    """
    tag = value
    while True:
        tag = hashlib.blake2b(tag, digest_size=TAG_BYTES, person=label).digest()
        if b"{" not in tag:
            return tag


def space_tag(fingerprint: str) -> bytes:
    """First 4 bytes of all keys of one model."""
    return _tag(b"ek-space", fingerprint.encode())


def tenant_tag(salt: bytes) -> bytes:
    """Bytes 4 to 8 of all keys of one tenant. Made from its salt, so that it tells no name."""
    return _tag(b"ek-tenant", salt)


def tenant_tag_of(key: Key) -> bytes:
    """The tenant whose key it is, by its tag."""
    return key[TAG_BYTES : 2 * TAG_BYTES]


class KeySpace:
    """Makes the keys of one tenant under one model and epoch.

    The hash state up to the prompt is kept and copied, so a key costs one copy and the text.
    Immutable.

    Args:
        fingerprint: Of the model.
        salt: The tenant's, from `tenant_salt`.
        epoch: The tenant's; another one makes every key new.
        prompt: The resolved prompt, put before each text; not its name.
    """

    __slots__ = ("_base", "_prefix", "epoch", "fingerprint", "prompt")

    def __init__(self, *, fingerprint: str, salt: bytes, epoch: int, prompt: str) -> None:
        self.fingerprint = fingerprint
        self.epoch = epoch
        self.prompt = prompt
        self._prefix = space_tag(fingerprint) + tenant_tag(salt)
        base = hashlib.blake2b(digest_size=DIGEST_BYTES, key=salt, person=b"ek-entry")
        for field in (fingerprint.encode(), _length(epoch), prompt.encode()):
            base.update(_length(len(field)) + field)
        self._base = base

    def key(self, text: str) -> Key:
        """The key of *text*.

        Raises:
            UnicodeEncodeError: *text* holds a lone surrogate; callers check before.
        """
        (key,) = self.keys((text,))
        return key

    def keys(self, texts: Iterable[str]) -> list[Key]:
        """The key of each of *texts*; as `key`, and a quarter quicker for many."""
        prefix, begin = self._prefix, self._base.copy
        made: list[bytes] = []
        for text in texts:
            data = text.encode()
            state = begin()
            state.update(_length(len(data)) + data)
            made.append(prefix + state.digest())
        return cast("list[Key]", made)
