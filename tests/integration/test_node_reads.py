"""What happens to a key while a request reads it from Valkey, before anything flies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from embedkeep import views
from embedkeep.config import NodeConfig
from embedkeep.node.agreement import Agreement
from embedkeep.node.cache import Cache
from embedkeep.node.embedders import Embedders
from embedkeep.node.exchange import Answer, Asked, Request
from embedkeep.node.flights import wait_for
from embedkeep.node.metrics import Metrics, Result
from embedkeep.node.space import agreement_key
from embedkeep.node.tenants import Partition, open_tenants
from embedkeep.node.tier import ValkeyTier
from support.line import Line, line_to
from support.node import node_config, until
from support.tap import Tap, serve_tap
from support.valkey import Valkey


class Parts:
    """A node's tiers without a way in, and a line to their Valkey that can be held."""

    def __init__(self, cache: Cache, tenant: Partition, line: Line, tap: Tap) -> None:
        self.cache = cache
        self.tenant = tenant
        self.line = line
        self.tap = tap

    async def answer(self, *texts: str, **fields: bool) -> Answer:
        request = Request(texts=texts, prompt="", view=views.View(), **fields)  # type: ignore[arg-type]  # flags alone
        return await self.cache.answer(request, self.tenant, timeout_s=30)

    async def reading(self, *texts: str) -> asyncio.Task[Answer]:
        """A request that Valkey has answered, and that hears of it when the line flows again."""
        self.line.withhold()
        task = asyncio.create_task(self.answer(*texts))

        async def answered() -> bool:
            return self.line.withheld > 0

        await until(answered)
        return task

    async def computed(self, text: str) -> None:
        """Some other request, whose read had missed already, computes *text* from first to last."""
        request = Request(texts=[text], prompt="", view=views.View())
        asked = Asked(
            request=request,
            tenant=self.tenant,
            epoch=self.tenant.epoch,
            space=self.cache.serving(),
        )
        (key,) = self.tenant.keys(fingerprint=asked.space.fingerprint, prompt="").keys([text])
        boardings = self.cache._trips.board(asked, [(key, text)])
        await wait_for(boardings, 30)
        for boarding in boardings:
            boarding.leave()


@asynccontextmanager
async def parts(store: Valkey, tap: Tap, folder: Path, *, l1_bytes: int) -> AsyncIterator[Parts]:
    async with line_to(store.port) as line, serve_tap(tap) as embedder:
        valkey = {"port": line.port, "read_timeout_s": 5.0}
        config: NodeConfig = node_config(folder, embedder, valkey=valkey, l1_bytes=l1_bytes)
        tenants, metrics = open_tenants(config), Metrics()
        async with Embedders(config.embedder, on_drift=lambda _why: None) as embedders:
            cache = Cache(
                tenants=tenants,
                embedders=embedders,
                metrics=metrics,
                config=config,
                clock_ms=lambda: 0,
            )
            agreement = Agreement(
                key=agreement_key(config),
                tenants=tenants,
                on_space=cache.adopt,
                on_epoch=cache.epoch_moved,
            )
            assert config.valkey is not None
            tier = ValkeyTier(config.valkey, shared=agreement, metrics=metrics, poll_s=600)
            cache.connect(tier, None)
            cache.adopt(await embedders.describe())
            running = asyncio.create_task(tier.run())
            await tier.tried.wait()
            try:
                yield Parts(cache, tenants.partitions[0], line, tap)
            finally:
                running.cancel()
                await asyncio.wait([running])
                await cache.close()


@pytest.fixture
async def node(store: Valkey, tap: Tap, tmp_path: Path) -> AsyncIterator[Parts]:
    async with parts(store, tap, tmp_path, l1_bytes=8 << 20) as made:
        yield made


@pytest.fixture
async def forgetful(store: Valkey, tap: Tap, tmp_path: Path) -> AsyncIterator[Parts]:
    """A node without L1."""
    async with parts(store, tap, tmp_path, l1_bytes=0) as made:
        yield made


async def results(node: Parts, *texts: str) -> list[Result]:
    return (await node.answer(*texts)).results


async def in_valkey(node: Parts, *texts: str) -> None:
    """Have *texts* computed and stored, and nothing of them in L1."""
    await node.answer(*texts)
    assert node.cache.tier is not None
    await node.cache.tier.settle()
    node.cache.epoch_moved(node.tenant)


async def test_what_is_read_from_valkey_is_in_memory_from_then_on(node: Parts) -> None:
    await in_valkey(node, "a", "b")

    first = await results(node, "a", "b", "a")

    assert first == [Result.VALKEY] * 3
    assert await results(node, "b", "a") == [Result.L1] * 2


async def test_what_was_forgotten_while_it_was_read_is_not_kept(node: Parts, store: Valkey) -> None:
    """The reply may have left Valkey before the entry did."""
    await in_valkey(node, "a", "b")
    late = await node.reading("a", "b")

    node.cache.epoch_moved(node.tenant)  # a peer is about to delete
    node.line.flow()

    assert (await late).results == [Result.VALKEY] * 2
    store.run(("FLUSHALL",))
    assert await results(node, "a", "b") == [Result.EMBEDDER] * 2


async def test_one_text_forgotten_while_a_batch_is_read_leaves_the_others_in_memory(
    node: Parts,
) -> None:
    await in_valkey(node, "a", "b")
    late = await node.reading("a", "b")

    node.cache._drop({node.tenant.keys(fingerprint=node.tap.fingerprint, prompt="").key("a")})
    node.line.flow()
    await late

    assert await results(node, "a", "b") == [Result.VALKEY, Result.L1]


async def test_a_caller_that_allows_no_keeping_leaves_nothing_in_memory(node: Parts) -> None:
    await in_valkey(node, "a")

    assert (await node.answer("a", store=False)).results == [Result.VALKEY]
    assert await results(node, "a") == [Result.VALKEY]


async def test_what_lands_while_it_is_read_is_not_computed_again(forgetful: Parts) -> None:
    """Its record had not reached Valkey when the read was answered, and no L1 holds it."""
    late = await forgetful.reading("a", "b")

    await forgetful.computed("a")
    forgetful.line.flow()

    answer = await late
    assert answer.results == [Result.COALESCED, Result.EMBEDDER]
    assert answer.rows[0].tobytes() == forgetful.tap.computed["a"][0]
    assert {text: len(vectors) for text, vectors in forgetful.tap.computed.items()} == {
        "a": 1,
        "b": 1,
    }


async def test_what_landed_and_was_forgotten_while_it_is_read_is_computed_anew(
    forgetful: Parts,
) -> None:
    late = await forgetful.reading("a")
    await forgetful.computed("a")

    forgetful.cache.epoch_moved(forgetful.tenant)
    forgetful.line.flow()

    answer = await late
    assert answer.rows[0].tobytes() == forgetful.tap.computed["a"][1]


async def test_rows_of_one_text_and_of_texts_that_valkey_lacks_stand_where_they_belong(
    forgetful: Parts,
) -> None:
    await in_valkey(forgetful, "a", "c")

    answer = await forgetful.answer("a", "b", "", "c", "a", "b")

    computed = forgetful.tap.computed
    assert [row.tobytes() for at, row in enumerate(answer.rows) if at != 2] == [
        computed[text][0] for text in ("a", "b", "c", "a", "b")
    ]
    assert list(answer.errors) == [2]
    assert answer.results == [
        Result.VALKEY, Result.EMBEDDER, Result.ERROR, Result.VALKEY, Result.VALKEY,
        Result.COALESCED,
    ]  # fmt: skip
