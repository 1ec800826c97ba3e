"""Takes out of objects and logs what a stranger must not read: secrets, keys, texts. Pure.

Two ways, for what is known to be dangerous by its place, and by its looks. A Secret is never read
in the first place. What is taken out leaves a mark: a reader knows that there was something.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Final

MARK: Final = "(redacted)"
DROPPED: Final = frozenset({"managedFields", "kubectl.kubernetes.io/last-applied-configuration"})
"""Fields that repeat the object, in a form in which nothing else would find what is in it."""
TEXTS: Final = frozenset({"prompts", "canaries"})
"""Fields whose values are what people or the admin wrote."""
SECRET_FIELD: Final = re.compile(
    r"(password|passwd|secret|token|api[-_]?key|credential|private[-_]?key|authorization)s?$",
    re.IGNORECASE,
)
REFERENCE: Final = re.compile(r"(ref|name|file|path|claim)$", re.IGNORECASE)
"""Fields that say where something secret lies, which is no secret."""
CONFIG: Final = re.compile(
    r"^\s*(requirepass|masterauth|primaryauth|masteruser|user)\s", re.IGNORECASE
)
"""Lines of valkey.conf that hold passwords."""

LOOKS: Final = (
    # A block of a key or certificate.
    re.compile(r"-----BEGIN [A-Z ]+-----.*?(-----END [A-Z ]+-----|\Z)", re.DOTALL),
    # JSON Web Tokens, of service accounts too.
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(\.[A-Za-z0-9_-]*)?"),
    # Keys of hubs and vendors, by their prefixes.
    re.compile(r"\b(hf_|sk-|gsk_|ghp_|gho_|github_pat_|xox[abprs]-|AKIA|AIza)[A-Za-z0-9_-]{8,}"),
)
AFTER: Final = (
    # What follows these words. The word stays.
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}"),
    re.compile(
        r"(?i)((?:password|passwd|secret|token|api[-_]?key|authorization)\\*['\"]?\s*[:=]\s*)"
        r"(\\*\"[^\"]*\"|'[^']*'|[^\s'\",;}]+)"
    ),
    # Names and passwords in a URL.
    re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^/@\s]+(?=@)"),
)


def scrubbed(said: str) -> str:
    """*said* without what looks like a secret."""
    for look in LOOKS:
        said = look.sub(MARK, said)
    for look in AFTER:
        said = look.sub(lambda found: f"{found[1]}{MARK}", said)
    return said


def redacted(value: object) -> object:
    """An object of the API without secrets, keys and texts."""
    if isinstance(value, dict):
        if value.get("kind") == "Secret":
            return {"kind": "Secret", "metadata": redacted(value.get("metadata")), "data": MARK}
        if value.get("kind") == "ConfigMap":
            value = {**value, "data": _files(value.get("data"))}
            value.pop("binaryData", None)
        return {name: _field(name, each) for name, each in value.items() if name not in DROPPED}
    if isinstance(value, list | tuple):
        return [redacted(each) for each in value]
    return scrubbed(value) if isinstance(value, str) else value


def _field(name: str, value: object) -> object:
    if name in TEXTS:
        return _every_text(value)
    if name == "env" and isinstance(value, list):
        return [_variable(each) for each in value]
    if isinstance(value, str) and SECRET_FIELD.search(name) and not REFERENCE.search(name):
        return MARK
    return redacted(value)


def _variable(value: object) -> object:
    """A container's variable: its value may be a proxy's password, its name is none."""
    if not isinstance(value, dict) or "value" not in value:
        return redacted(value)
    return {**value, "value": MARK}


def _every_text(value: object) -> object:
    """*value* with every text in it gone, its shape kept."""
    if isinstance(value, dict):
        return {name: _every_text(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_every_text(each) for each in value]
    return MARK if isinstance(value, str) and value else value


def _files(data: object) -> object:
    """A ConfigMap's files: those of which nothing is known are told by their size alone."""
    if not isinstance(data, Mapping):
        return data
    return {name: _file(str(name), str(content)) for name, content in data.items()}


def _file(name: str, content: str) -> str:
    for suffix, read in FILES.items():
        if name.endswith(suffix):
            return read(content)
    return f"({len(content)} characters)"


def _json(content: str) -> str:
    try:
        return json.dumps(redacted(json.loads(content)), indent=2)
    except ValueError:
        return f"({len(content)} characters that are no JSON)"


def _lines(content: str) -> str:
    return "\n".join(
        f"{found[0].rstrip()} {MARK}" if (found := CONFIG.match(line)) else scrubbed(line)
        for line in content.splitlines()
    )


FILES: Final[Mapping[str, Callable[[str], str]]] = {
    ".json": _json,
    ".conf": _lines,
    ".sh": _lines,
}
"""How files are read, by the end of their names."""
