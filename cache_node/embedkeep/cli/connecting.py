"""How a command reaches a cache: the options that say whom to call and as whom, and the client."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar

import click

from embedkeep.cli.finding import Target, target_of
from embedkeep.client import Client, Retries
from embedkeep.client.options import ClientOptions
from embedkeep.config import ClientTls
from embedkeep.errors import InvalidConfig, Unauthenticated, Unavailable
from embedkeep.runs import default_root

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class Reach(TypedDict):
    """The options of `reaching`."""

    address: str | None
    state_dir: Path | None
    api_key_file: Path | None
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_name: str | None
    model: str | None
    prompt: str | None


PATIENCE_S: Final = 600.0
"""Longest wait for a call of a long run: a node that is overrun or restarts comes back before."""
_LONG: Final = Retries(max_attempts=1_000_000, max_pause_s=5.0)

_FLAGS: Final = {
    "target": "--address",
    "api_key": "--api-key-file",
    "tls.ca_file": "--tls-ca",
    "tls.cert_file": "--tls-cert",
    "tls.key_file": "--tls-key",
}
"""By the client's field."""

_CLOSED: Final = "Socket closed"
"""How gRPC says that the other side took the connection and then ended it."""
_LOST: Final = "the connection was lost"
"""The same over HTTP."""
_UNKNOWN_AUTHORITY: Final = "CERTIFICATE_VERIFY_FAILED"
"""How Python's TLS says that it does not know who has signed the node's certificate."""

_FILE = click.Path(path_type=Path, dir_okay=False)

_OPTIONS: Final = (
    click.option(
        "-a", "--address", envvar="EMBEDKEEP_ADDRESS", metavar="URL[,...]|NAME",
        help="A node (http://host:port, or host:port for gRPC), several with commas between them, "
        "or the name of a cache that `embedkeep up` runs here. "
        "[default: the only one that runs here]",
    ),
    click.option(
        "--state-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
        help="Where `embedkeep up` keeps its state.  [default: $XDG_STATE_HOME/embedkeep]",
    ),
    click.option(
        "--api-key-file", type=_FILE, envvar="EMBEDKEEP_API_KEY_FILE",
        help="The first word in it is your API key. Needed where the cache has tenants.",
    ),
    click.option("--tls-ca", type=_FILE, help="Authority to trust; turns TLS on."),
    click.option(
        "--tls-cert", type=_FILE, help="Certificate to show, with --tls-key; turns TLS on."
    ),
    click.option("--tls-key", type=_FILE, help="Its key."),
    click.option("--tls-name", help="Name in the node's certificate. [default: the host dialled]"),
    click.option("--model", help="The resource's name, name:prompt, or the model's full name."),
    click.option("--prompt", help="Name of one of the resource's prompts, put before each text."),
)  # fmt: skip


def reaching(command: CommandT) -> CommandT:
    """Give a command the options of `Reach`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@contextmanager
def connected(flags: Reach, *, patience_s: float | None = None) -> Iterator[Client]:
    """A client of the cache that is meant.

    Args:
        patience_s: Longest wait for a call of a long run, seconds, through whatever may pass by
            itself; the run has several calls under way. None: as the client does.

    Raises:
        InvalidConfig: It is not clear which is meant, or a file cannot be read.
    """
    target = target_of(flags["address"], flags["state_dir"] or default_root())
    tls = _tls(target, flags)
    options = ClientOptions(api_key=flags["api_key_file"], tls=tls)
    if patience_s is not None:
        options |= ClientOptions(timeout_s=patience_s, retries=_LONG, parallel=1)
    with naming(_FLAGS), _hinting(flags, tls), Client(target.address, **options) as client:
        yield client


@contextmanager
def naming(flags: Mapping[str, str]) -> Iterator[None]:
    """Name the flag that was given where the block's errors name something else.

    Args:
        flags: By the field that the errors name.
    """
    try:
        yield
    except InvalidConfig as error:
        if error.source or (flag := flags.get(error.field)) is None:
            raise
        raise InvalidConfig(str(error).removeprefix(f"{error.field}: "), field=flag) from error


@contextmanager
def _hinting(flags: Reach, tls: ClientTls | None) -> Iterator[None]:
    """Say which flag may help where a node wants an API key, or closes a plain connection."""
    try:
        yield
    except Unauthenticated as error:
        if flags["api_key_file"] is None:
            raise Unauthenticated(f"{error}; here: give --api-key-file FILE") from error
        raise
    except Unavailable as error:
        if tls is None and _CLOSED in str(error):
            raise Unavailable(f"{error}; if the node speaks TLS, give --tls-ca FILE") from error
        if str(error).startswith("http://") and _LOST in str(error):
            raise Unavailable(f"{error}; if the node speaks TLS, write https://") from error
        if _UNKNOWN_AUTHORITY in str(error):
            raise Unavailable(f"{error}; --tls-ca FILE names the authority to trust") from error
        raise


def _tls(target: Target, flags: Reach) -> ClientTls | None:
    if not any((flags["tls_ca"], flags["tls_cert"], flags["tls_key"], flags["tls_name"])):
        return target.tls
    if (flags["tls_cert"] is None) != (flags["tls_key"] is None):
        raise InvalidConfig("give both --tls-cert and --tls-key, or neither", field="--tls-cert")
    return ClientTls(
        ca_file=flags["tls_ca"],
        cert_file=flags["tls_cert"],
        key_file=flags["tls_key"],
        server_name=flags["tls_name"],
    )
