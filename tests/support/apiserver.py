"""A real API server of the tests' own: kube-apiserver and etcd on free ports, and no kubelet.

Both come from the folder that KUBEBUILDER_ASSETS names, where tests of controllers find them
everywhere. Where it is not set, the official archive is fetched once into the user's cache folder.
With neither, the tests that ask for one skip and say why.
"""

import functools
import hashlib
import json
import os
import platform
import secrets
import shutil
import ssl
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import pytest
import yaml

from embedkeep_operator import crd
from support.certificates import Authority
from support.valkey import free_port

Json: TypeAlias = dict[str, object]

ASSETS: Final = "KUBEBUILDER_ASSETS"
NEEDED: Final = ("kube-apiserver", "etcd", "kubectl")
RELEASES: Final = (
    "https://raw.githubusercontent.com/kubernetes-sigs/controller-tools/HEAD/envtest-releases.yaml"
)
MINOR: Final = "v1.34."
"""Of Kubernetes: the oldest that the operator is built for."""
REACH_S: Final = 5.0
"""Longest wait for a sign of life of who has the archive, seconds."""
START_S: Final = 120.0
"""Longest wait for the server, seconds: a second alone, much more on a machine that is busy."""


class NoAssets(Exception):
    """There is nothing to start, and nothing can be fetched."""


class Refused(Exception):
    """What kubectl says of why it fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServer:
    """One that answers."""

    url: str
    ca_file: Path
    token: str
    """Of somebody who may do everything."""
    kubeconfig: Path
    """Says these three."""
    kubectl_binary: Path

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What it writes.

        Raises:
            Refused: It fails, and why.
        """
        # What it remembers of a server, it remembers by its port.
        cache = self.kubeconfig.with_name("kubectl")
        done = subprocess.run(
            [
                str(self.kubectl_binary), "--kubeconfig", str(self.kubeconfig),
                "--cache-dir", str(cache), *arguments,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout

    def define(self) -> None:
        """Have it know EmbeddingCaches, so that they can be applied and explained."""
        self.apply(crd.definition())
        until = time.monotonic() + START_S
        while True:
            try:
                self.kubectl("explain", "embeddingcache.spec")
            except Refused:
                assert time.monotonic() < until, "the definition was never published"
                time.sleep(0.1)
            else:
                return

    def apply(self, *objects: Json, dry_run: bool = False) -> list[Json]:
        """Apply on the server's side, as `kubectl apply --server-side` does; what became of them.

        Raises:
            Refused: One is, and why. Those before it were applied.
        """
        several = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        more = ("--dry-run=server",) if dry_run else ()
        found = json.loads(
            self.kubectl(
                "apply", "--server-side", "--force-conflicts", *more, "-f", "-", "-o", "json",
                stdin=json.dumps(several),
            )
        )  # fmt: skip
        return list(found["items"]) if found["kind"] == "List" else [found]


def binaries() -> Path:
    """The folder with what is needed.

    Raises:
        NoAssets: There is none, and why.
    """
    if named := os.environ.get(ASSETS):
        folder = Path(named)
        missing = [name for name in NEEDED if not (folder / name).is_file()]
        if missing:
            raise NoAssets(f"{ASSETS} names {folder}, where there is no {', no '.join(missing)}")
        return folder
    try:
        return _fetched()
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        raise NoAssets(
            f"set {ASSETS} to a folder with {', '.join(NEEDED)}: it is not set, and the official"
            f" archive cannot be fetched ({error})"
        ) from error


@functools.cache
def _fetched() -> Path:
    """The newest of the archives of `MINOR`, checked, unpacked and kept.

    Raises:
        OSError, ValueError, KeyError, TarError: It cannot be had, or is not what it should be.
    """
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    home = Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache")
    kept = home / "embedkeep-envtest" / f"{MINOR}{platform.system().lower()}-{machine}"
    if all((kept / name).is_file() for name in NEEDED):
        return kept
    with urllib.request.urlopen(RELEASES, timeout=REACH_S) as answer:
        releases: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(answer)["releases"]
    versions = [version for version in releases if version.startswith(MINOR)]
    newest = max(versions, key=lambda version: int(version.removeprefix(MINOR)))
    name = f"envtest-{newest}-{platform.system().lower()}-{machine}.tar.gz"
    wanted = releases[newest][name]
    with urllib.request.urlopen(wanted["selfLink"], timeout=REACH_S) as answer:  # noqa: S310  # its index says where
        archive = answer.read()
    if hashlib.sha512(archive).hexdigest() != wanted["hash"]:
        raise ValueError(f"{name} is not what its index says")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        packed = Path(scratch) / name
        packed.write_bytes(archive)
        with tarfile.open(packed) as whole:
            whole.extractall(scratch, filter="data")
        made = Path(scratch) / "bin"
        made.mkdir()
        for each in NEEDED:
            shutil.move(next(Path(scratch).rglob(each)), made / each)
        if not kept.exists():  # else another worker was quicker
            made.rename(kept)
    return kept


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """One of its own; without anything in it but what it makes itself.

    Raises:
        NoAssets: There is nothing to start.
    """
    assets = binaries()
    certificates = Authority(folder / "certificates")
    shown = certificates.issue(into="server")
    signing = certificates.issue("service-accounts")
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
    store, peers, port = free_port(), free_port(), free_port()
    with ExitStack() as stack:
        etcd = stack.enter_context(
            _running(
                folder / "etcd.log",
                str(assets / "etcd"),
                f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls=http://127.0.0.1:{store}",
                f"--advertise-client-urls=http://127.0.0.1:{store}",
                f"--listen-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
                f"--initial-cluster=default=http://127.0.0.1:{peers}",
                "--unsafe-no-fsync",
            )
        )
        server = stack.enter_context(
            _running(
                folder / "apiserver.log",
                str(assets / "kube-apiserver"),
                f"--etcd-servers=http://127.0.0.1:{store}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--secure-port={port}",
                f"--cert-dir={folder / 'certificates'}",
                f"--tls-cert-file={shown.cert_file}",
                f"--tls-private-key-file={shown.key_file}",
                f"--token-auth-file={folder / 'tokens.csv'}",
                f"--service-account-key-file={signing.cert_file}",
                f"--service-account-signing-key-file={signing.key_file}",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--authorization-mode=RBAC",
                # What controllers would have to do first, and none is here.
                "--disable-admission-plugins=ServiceAccount",
            )
        )
        url = f"https://127.0.0.1:{port}"
        _until_ready(url, certificates.ca_file, token, (etcd, server), folder)
        yield ApiServer(
            url=url,
            ca_file=certificates.ca_file,
            token=token,
            kubeconfig=_kubeconfig(folder, url, certificates.ca_file, token),
            kubectl_binary=assets / "kubectl",
        )


@contextmanager
def _running(log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process while the block runs; what it says is in *log*."""
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_ready(
    url: str, ca_file: Path, token: str, processes: tuple[subprocess.Popen[bytes], ...], logs: Path
) -> None:
    trusting = ssl.create_default_context(cafile=str(ca_file))
    asking = urllib.request.Request(  # noqa: S310  # our own server's
        f"{url}/readyz", headers={"Authorization": f"Bearer {token}"}
    )
    until = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(asking, timeout=REACH_S, context=trusting):  # noqa: S310
                return
        except OSError as error:
            ended = any(process.poll() is not None for process in processes)
            if ended or time.monotonic() > until:
                tails = [log.read_text()[-2000:] for log in sorted(logs.glob("*.log"))]
                pytest.fail("\n".join((f"no API server: {error}", *tails)))
            time.sleep(0.1)


def _kubeconfig(folder: Path, url: str, ca_file: Path, token: str) -> Path:
    file = folder / "kubeconfig"
    cluster = {"server": url, "certificate-authority": str(ca_file)}
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "admin", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            }
        )
    )
    return file
