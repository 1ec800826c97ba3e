"""Import, through a real node and a real Valkey: what it takes, what it refuses, what it undoes."""

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from embedkeep.v1 import cache_pb2, embedder_pb2
from support.node import WAIT_S, Node, floats, rows, sources, tapped, until
from support.tap import DEVICE_NS, DIMENSIONS, Tap
from support.valkey import Valkey

KEY = {"a": "key-a", "b": "key-b"}


@pytest.fixture
def tap() -> Tap:
    return Tap(steady=True)


@pytest.fixture
def node_fields() -> dict[str, object]:
    return {"imports": True}


def made(*texts: str, prompt: str = "") -> bytes:
    """What the model returns for *texts*, computed elsewhere."""
    elsewhere = Tap(steady=True)
    return b"".join(elsewhere.vector(prompt + text) for text in texts)


async def imported(
    node: Node, *texts: str, vectors: bytes | None = None, api_key: str = "", **fields: object
) -> cache_pb2.ImportResponse:
    """One Import call."""
    given = {"vectors": made(*texts) if vectors is None else vectors, "dimensions": DIMENSIONS}
    request = cache_pb2.ImportRequest(inputs=texts, **given | fields)  # type: ignore[arg-type]  # fields of the message
    metadata = [("authorization", f"Bearer {api_key}")] if api_key else None
    return await node.stub.Import(request, timeout=WAIT_S, metadata=metadata)


def numbered(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


async def test_what_is_imported_is_answered_bit_for_bit_and_marked(node: Node, tap: Tap) -> None:
    texts = numbered(100)
    near = np.frombuffer(made(*texts), np.float32) * np.float32(1 + 1e-6)  # other low bits

    taken = await imported(node, *texts, vectors=near.tobytes(), tokens=range(100), truncated=[7])
    sampled = len(tap.texts)
    answer = await node.embed(*texts)

    assert (taken.stored, taken.present, taken.withdrawn, taken.sampled) == (100, 0, 0, 4)
    assert taken.worst_cosine > 0.9999
    assert sampled == len(tap.texts) == 4
    assert answer.vectors == near.tobytes()
    assert list(answer.imported) == list(range(100))
    assert set(sources(answer)) == {"valkey"}
    own = [index for index, text in enumerate(texts) if text not in tap.texts]
    assert [answer.tokens[index] for index in own] == own
    assert 7 not in own or list(answer.truncated) == [7]


async def test_a_hit_on_an_imported_row_saves_what_the_sample_has_cost_by_length(
    node: Node,
) -> None:
    texts = [f"text {number:02}" for number in range(50)]  # all of one length

    taken = await imported(node, *texts)
    saved = (await node.embed(*texts)).saved_device_seconds

    assert taken.spent_device_seconds == pytest.approx(4 * DEVICE_NS / 1e9)
    assert saved == pytest.approx(50 * DEVICE_NS / 1e9)


async def test_a_row_marked_once_is_marked_from_memory_too(node: Node) -> None:
    await imported(node, "a")
    await node.embed("a", "b")

    again = await node.embed("b", "a")

    assert sources(again) == ["l1", "l1"]
    assert list(again.imported) == [1]


async def test_the_sample_is_drawn_over_the_whole_batch_and_booked_as_a_check(
    node: Node, tap: Tap
) -> None:
    """Nobody who sends a batch may know where it is looked at."""
    texts = numbered(1000)
    await imported(node, *texts[:500])
    await imported(node, *texts[500:])

    places = [texts.index(text) for text in tap.texts]
    assert len(places) == 10
    assert places != sorted(texts.index(text) for text in texts[:5] + texts[500:505])
    assert {call.purpose for call in tap.calls} == {embedder_pb2.PURPOSE_SHADOW}


async def test_a_batch_of_another_model_is_refused_and_nothing_of_it_is_kept(
    node: Node, tap: Tap
) -> None:
    texts = numbered(20)
    elsewhere = Tap(instance=b"another", steady=True)

    taken = await imported(node, *texts, vectors=b"".join(map(elsewhere.vector, texts)))

    assert taken.stored == 0
    assert {error.reason for error in taken.errors} == {"InvalidVector"}
    assert "cosine" in taken.errors[0].message
    assert {texts[error.index] for error in taken.errors} == set(tap.texts)
    tap.calls.clear()
    assert set(sources(await node.embed(*texts))) == {"embedder"}


async def test_vectors_of_another_length_are_refused(node: Node) -> None:
    doubled = np.frombuffer(made("a"), np.float32) * 2

    taken = await imported(node, "a", vectors=doubled.tobytes())

    assert "was it scaled?" in taken.errors[0].message


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("", 1.0, "the input is empty"),
        ("x" * (200 << 10), 1.0, "bytes of UTF-8"),
        ("nan", np.nan, "NaN or infinity"),
        ("inf", np.inf, "NaN or infinity"),
        ("zero", 0.0, "length 0"),
    ],
)
async def test_a_row_that_no_model_returned_refuses_its_batch_by_name(
    node: Node, tap: Tap, text: str, value: float, said: str
) -> None:
    row = np.full(DIMENSIONS, value, np.float32).tobytes()

    taken = await imported(node, "good", text, vectors=made("good") + row)

    assert [(error.index, said in error.message) for error in taken.errors] == [(1, True)]
    assert taken.stored == 0
    assert tap.calls == []


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"dimensions": 4}, grpc.StatusCode.INVALID_ARGUMENT, "dimensions: 4 were given"),
        ({"vectors": b"123"}, grpc.StatusCode.INVALID_ARGUMENT, "vectors: 3 bytes"),
        ({"tokens": [1, 2, 3]}, grpc.StatusCode.INVALID_ARGUMENT, "tokens: 3 counts"),
        ({"truncated": [2]}, grpc.StatusCode.INVALID_ARGUMENT, "truncated: an index"),
        ({"fingerprint": "x"}, grpc.StatusCode.FAILED_PRECONDITION, "fingerprint: the vectors"),
        ({"prompt": "none"}, grpc.StatusCode.INVALID_ARGUMENT, "prompt: 'none' is unknown"),
        ({"model": "none"}, grpc.StatusCode.NOT_FOUND, "model: 'none'"),
    ],
)
async def test_fields_that_do_not_fit_are_named(
    node: Node, fields: dict[str, object], code: grpc.StatusCode, said: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await imported(node, "a", "b", **fields)  # type: ignore[arg-type]  # vectors is among them

    assert caught.value.code() is code
    assert said in (caught.value.details() or "")


async def test_the_prompt_is_part_of_what_was_embedded(node: Node) -> None:
    taken = await imported(node, "a", vectors=made("a", prompt="query: "), prompt="query")

    assert taken.stored == 1
    assert sources(await node.embed("a", prompt="query")) == ["valkey"]
    assert sources(await node.embed("a")) == ["embedder"]
    assert (await imported(node, "b", prompt="query")).errors[0].reason == "InvalidVector"


async def test_what_is_cached_stays_unless_it_is_to_be_overwritten(node: Node, tap: Tap) -> None:
    await node.embed("a")
    near = (np.frombuffer(made("a", "b"), np.float32) * np.float32(1 + 1e-6)).tobytes()

    kept = await imported(node, "a", "b", "b", vectors=near + near[-4 * DIMENSIONS :])
    first = await node.embed("a", "b")
    replaced = await imported(node, "a", "b", vectors=near, overwrite=True)
    second = await node.embed("a", "b")

    assert (kept.stored, kept.present) == (1, 2)
    assert rows(first) == [*tap.computed["a"][:1], near[4 * DIMENSIONS :]]
    assert (replaced.stored, replaced.present) == (2, 0)
    assert second.vectors == near
    assert list(second.imported) == [0, 1]


async def test_what_is_there_already_costs_no_sample(node: Node, tap: Tap) -> None:
    """So an import that begins again is quick."""
    await imported(node, *numbered(50))
    computed = len(tap.texts)

    again = await imported(node, *numbered(50))

    assert (again.stored, again.present, again.sampled) == (0, 50, 0)
    assert len(tap.texts) == computed


async def test_a_dry_run_checks_and_keeps_nothing(node: Node) -> None:
    taken = await imported(node, *numbered(10), dry_run=True)

    assert (taken.stored, taken.sampled) == (10, 4)
    assert set(sources(await node.embed(*numbered(10)))) == {"embedder"}


@pytest.mark.parametrize("scope", ["everything", "some"])
async def test_what_is_invalidated_while_it_is_checked_is_not_kept(
    node: Node, tap: Tap, scope: str
) -> None:
    texts = numbered(4)
    tap.gate.clear()
    pending = asyncio.create_task(imported(node, *texts))
    await tap.entered.get()

    await node.invalidate(*texts[:3] if scope == "some" else ())
    tap.gate.set()
    taken = await pending

    gone = 4 if scope == "everything" else 3
    assert (taken.stored, taken.withdrawn) == (4 - gone, gone)
    answer = await node.embed(*texts)
    assert sources(answer) == ["embedder"] * gone + ["valkey"] * (4 - gone)


async def test_tenants_import_for_themselves_alone(tap: Tap, store: Valkey, tmp_path: Path) -> None:
    tenants = []
    for name, key in KEY.items():
        (tmp_path / name).write_text(key)
        tenants.append({"name": name, "api_key_file": str(tmp_path / name)})
    (tmp_path / "secret").write_text("s" * 32)
    config = {"tenants": tenants, "cluster_secret_file": str(tmp_path / "secret"), "imports": True}
    async with tapped(tap, tmp_path, valkey={"port": store.port}, **config) as node:
        await node.until_tier("valkey", serving=True, api_key="key-a")
        with pytest.raises(grpc.aio.AioRpcError) as stranger:
            await imported(node, "a", api_key="key-c")
        await imported(node, "a", api_key="key-a")

        assert stranger.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert sources(await node.embed("a", api_key="key-b")) == ["embedder"]
        assert sources(await node.embed("a", api_key="key-a")) == ["valkey"]


async def test_where_imports_are_off_none_are_taken_and_earlier_ones_are_not_answered(
    node: Node, tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    await imported(node, "a", "b")
    (tmp_path / "off").mkdir()
    async with tapped(tap, tmp_path / "off", store) as off:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await imported(off, "c")
        only = await off.embed("a", cache_control=cache_pb2.CacheControl(only_if_cached=True))

        assert "spec.security.imports: true allows them" in (caught.value.details() or "")
        assert not (await off.info()).imports
        assert list(only.statuses) == [grpc.StatusCode.NOT_FOUND.value[0]]
        assert sources(await off.embed("a")) == ["embedder"]


async def test_without_valkey_memory_takes_them(tap: Tap, tmp_path: Path) -> None:
    async with tapped(tap, tmp_path, imports=True) as node:
        taken = await imported(node, "a", "b")
        again = await imported(node, "a", "b")

        assert (taken.stored, again.present) == (2, 2)
        assert sources(await node.embed("a", "b")) == ["l1", "l1"]


async def test_nothing_is_said_to_be_stored_that_valkey_has_not_taken(
    node: Node, store: Valkey
) -> None:
    store.run(
        ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory-policy", "noeviction")
    )
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await imported(node, *numbered(10))
    finally:
        store.run(
            ("CONFIG", "SET", "maxmemory", "0"),
            ("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu"),
        )

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Valkey did not store" in (caught.value.details() or "")
    assert (await imported(node, *numbered(10))).stored == 10


async def test_an_import_larger_than_the_write_queue_loses_nothing(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    valkey = {"port": store.port, "write_queue_bytes": 1}
    async with tapped(tap, tmp_path, valkey=valkey, imports=True) as node:
        await node.until_tier("valkey", serving=True)
        texts = numbered(2000)

        taken = await imported(node, *texts)
        found = await node.embed(*texts)

        assert taken.stored == 2000
        assert found.vectors == made(*texts)
        assert set(sources(found)) == {"valkey"}


async def test_an_embedder_that_is_away_stops_the_import_and_not_the_hits(
    node: Node, tap: Tap
) -> None:
    await imported(node, "a")
    tap.overloaded = True

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await imported(node, "b")

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sources(await node.embed("a")) == ["valkey"]


async def test_rows_are_counted_by_what_became_of_them(node: Node) -> None:
    await imported(node, "a", "b")
    await imported(node, "a", "c")
    await imported(node, "", vectors=made("x"))

    async def counted() -> bool:
        names = {"stored": 3.0, "present": 1.0, "withdrawn": 0.0, "refused": 1.0}
        found = {name: await node.metric("embedkeep_imported_total", result=name) for name in names}
        return found == names

    await until(counted)
    assert floats(await node.embed("a")).shape == (1, DIMENSIONS)
