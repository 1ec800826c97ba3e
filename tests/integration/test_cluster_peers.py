"""Peers that do not answer as they should are no reason to answer wrongly, or not at all."""

from pathlib import Path

import grpc
import pytest

from embedkeep.config import Listen, NodeConfig
from embedkeep.refusal import Context
from embedkeep.v1 import cache_pb2, peers_pb2, peers_pb2_grpc
from support.cluster import Nodes, Valkeys, cluster_config, running_nodes
from support.line import line_to
from support.node import node_config, rows, running, sources, until
from support.tap import Tap, serve_tap

pytestmark = pytest.mark.timeout(90)


class Liar(peers_pb2_grpc.PeersServicer):
    """A peer that answers something else."""

    def __init__(self, answer: peers_pb2.Carried | None) -> None:
        self.answer = answer

    async def Carry(  # type: ignore[override]  # noqa: N802 - the wire's name; gRPC also takes a coroutine that writes
        self, request: peers_pb2.CarryRequest, context: Context
    ) -> None:
        """Answer."""
        answer = self.answer if request.inputs else peers_pb2.Carried()
        if answer is not None:
            await context.write(peers_pb2.CarryReply(carried=answer))

    async def Withdraw(  # noqa: N802 - the wire's name
        self, _request: peers_pb2.WithdrawRequest, _context: Context
    ) -> peers_pb2.WithdrawResponse:
        """Agree."""
        return peers_pb2.WithdrawResponse()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        pytest.param(None, "unanswered", id="no answer"),
        pytest.param(peers_pb2.Carried(), "answered", id="nothing"),
        pytest.param(
            peers_pb2.Carried(records=[b""] * 3, sources=[cache_pb2.SOURCE_L1] * 3),
            "answered",
            id="too much",
        ),
        pytest.param(
            peers_pb2.Carried(records=[b"x" * 64], sources=[cache_pb2.SOURCE_L1]),
            "answered",
            id="no record",
        ),
    ],
)
async def test_what_a_peer_answers_nonsense_for_is_computed_by_who_was_asked(
    whole: Valkeys, tap: Tap, tmp_path: Path, answer: peers_pb2.Carried | None, outcome: str
) -> None:
    (text,) = Nodes(whole, tap, {}, {}, {}).texts("b", 1)
    server = grpc.aio.server()
    peers_pb2_grpc.add_PeersServicer_to_server(Liar(answer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with (
            serve_tap(tap) as tap_port,
            running(a_config(whole, tap_port, tmp_path, port)) as a,
        ):

            async def greeted() -> bool:  # b; there is no c
                return await a.metric("embedkeep_breaker_open", tier="peers") == 1

            await until(greeted)
            await a.until_tier("valkey", serving=True)

            told = await a.embed(text)

            assert sources(told) == ["embedder"]
            assert rows(told) == tap.computed[text]
            assert await a.metric("embedkeep_hops_total", outcome=outcome) == 1
    finally:
        await server.stop(None)


def a_config(valkeys: Valkeys, tap_port: int, folder: Path, liar_port: int) -> NodeConfig:
    """Of the node a, to which the node b is the liar."""
    secret = folder / "secret"
    secret.write_text("0123456789abcdef")
    patient = {"first_sign_s": 5.0, "silence_s": 10.0}
    return node_config(
        folder,
        tap_port,
        valkey={"port": valkeys["a"].port, "read_timeout_s": 1.0},
        cluster=cluster_config(valkeys, "a", {"b": liar_port}, **patient),
        cluster_secret_file=secret,
    )


async def test_a_text_that_fits_no_message_between_nodes_shuts_nobody_out(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    """Around it a peer is told more than a service tells."""
    async with running_nodes(whole, tap, tmp_path, limits={"max_message_bytes": 1 << 16}) as nodes:
        (long,) = nodes.texts("b", 1, length=(1 << 16) - 6)
        (short,) = nodes.texts("b", 1)

        answer = await nodes["a"].embed(long)
        await nodes["a"].embed(short)

        assert sources(answer) == ["embedder"]
        assert await nodes.hops("a") == {"refused": 1, "answered": 1}


async def test_a_peer_that_is_far_away_is_asked_all_the_same(
    whole: Valkeys, tap: Tap, tmp_path: Path
) -> None:
    """A bound that fits one machine is not taken for the time that a way takes."""
    async with running_nodes(whole, tap, tmp_path) as nodes, line_to(nodes["b"].port) as line:
        line.delay_s = 0.15
        folder = tmp_path / "far"
        folder.mkdir()
        near = {"first_sign_s": 0.1, "silence_s": 10.0}
        config = nodes.configs["a"]
        cluster = cluster_config(whole, "a", {"b": line.port, "c": nodes["c"].port}, **near)
        far = config.model_copy(
            update={
                "cluster": cluster,
                "grpc": Listen(host="127.0.0.1"),
                "announce_file": folder / "node.json",
            }
        )
        async with running(far) as a:

            async def greeted() -> bool:
                return await a.metric("embedkeep_breaker_open", tier="peers") == 0

            await until(greeted)
            await a.until_tier("valkey", serving=True)
            texts = nodes.texts("b", 6)
            for text in texts:
                await a.embed(text)

            assert await a.metric("embedkeep_hops_total", outcome="answered") == len(texts)
