"""What a hit costs a node in CPU, beside a server that only sends the same bytes back.

    python benchmarks/node_cpu.py

The floor is a bare grpc.aio server on uvloop, with the node's options: it takes the same request
bytes, decodes nothing, and sends the same answer bytes. Both run as processes of their own and are
called in turns with the same raw bytes, by one and by sixteen connections, the node over gRPC and
over HTTP/1.1. CPU is what the kernel says the server's threads have run.

Writes benchmarks/results/node_cpu.json and the table in docs/benchmarks.md.
"""

import asyncio
import pickle
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import uvloop

from embedkeep.runs import NodePorts
from embedkeep.serving import server_options
from embedkeep.v1 import cache_pb2
from embedkeep_operator.local.replay import sample
from embedkeep_operator.local.runner import Local
from report import ROOT, keep

SIZES: Final = (1, 8, 32, 128)
CLIENTS: Final = (1, 16)
ROUNDS: Final = 5
ROUND_S: Final = 0.4
HEAD: Final = (
    b"POST /embedkeep.v1.EmbeddingCache/Embed HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    b"content-type: application/proto\r\nconnect-protocol-version: 1\r\n"
    b"connect-timeout-ms: 10000\r\ncontent-length: %d\r\n\r\n"
)
EMBED: Final = "/embedkeep.v1.EmbeddingCache/Embed"
MAX_MESSAGE_BYTES: Final = 4 << 20

Call = Callable[[bytes], Awaitable[bytes]]
"""One request over one connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What is called."""

    name: str
    pid: int
    calls: list[Call]
    """One for each connection."""

    def cpu_s(self) -> float:
        """Run by all its threads so far."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@dataclass(slots=True, kw_only=True)
class Cell:
    """One server at one size, by so many clients; of all rounds."""

    cpu_us: list[float]
    """A request, by round."""
    a_second: list[float]
    """Requests, by round."""
    seconds: list[float]
    """Of each call."""


async def load(server: Server, request: bytes, clients: int, cell: Cell) -> None:
    """One round."""
    seconds: list[float] = []
    until = time.perf_counter() + ROUND_S

    async def ask(call: Call) -> None:
        while (started := time.perf_counter()) < until:
            await call(request)
            seconds.append(time.perf_counter() - started)

    began, cpu_s = time.perf_counter(), server.cpu_s()
    await asyncio.gather(*(ask(call) for call in server.calls[:clients]))
    cell.cpu_us.append((server.cpu_s() - cpu_s) / len(seconds) * 1e6)
    cell.a_second.append(len(seconds) / (time.perf_counter() - began))
    cell.seconds += seconds


async def measured(servers: list[Server], requests: dict[int, bytes]) -> list[dict[str, object]]:
    """All cells, in turns."""
    cells = {
        (server.name, size, clients): Cell(cpu_us=[], a_second=[], seconds=[])
        for size in SIZES
        for clients in CLIENTS
        for server in servers
    }
    for number in range(-1, ROUNDS):
        for size in SIZES:
            for clients in CLIENTS:
                for server in servers:
                    cell = cells[server.name, size, clients]
                    await load(server, requests[size], clients, cell)
                    if number < 0:  # connects and warms up
                        cells[server.name, size, clients] = Cell(cpu_us=[], a_second=[], seconds=[])
    rows: list[dict[str, object]] = []
    for (name, size, clients), cell in cells.items():
        cpu_us = float(np.median(cell.cpu_us))
        floor = float(np.median(cells["echo", size, clients].cpu_us))
        rows.append(
            {
                "server": name,
                "texts": size,
                "clients": clients,
                "cpu_us": round(cpu_us),
                "cpu_to_echo": round(cpu_us / floor, 2),
                "p50_us": round(float(np.median(cell.seconds)) * 1e6),
                "p99_us": round(float(np.quantile(cell.seconds, 0.99)) * 1e6),
                "requests_per_s": round(float(np.median(cell.a_second))),
            }
        )
    return rows


async def connect(stack: AsyncExitStack, port: int, path: str = EMBED) -> list[Call]:
    """A connection for each client."""
    calls = []
    for _ in range(max(CLIENTS)):
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
        )
        calls.append(await stack.enter_async_context(channel))
    return [partial(_call, channel.unary_unary(path)) for channel in calls]


async def _call(method: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]", request: bytes) -> bytes:
    return await method(request)


async def connect_http(stack: AsyncExitStack, port: int) -> list[Call]:
    """The same over HTTP/1.1."""

    async def one() -> Call:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        stack.callback(writer.close)

        async def call(request: bytes) -> bytes:
            writer.write(HEAD % len(request) + request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            return await reader.readexactly(int(length))

        return call

    return [await one() for _ in range(max(CLIENTS))]


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[tuple[NodePorts, int]]:
    """The quickstart's node: its ports and its process."""
    quickstart = ROOT / "examples" / "quickstart.yaml"
    async with Local(quickstart, state_dir=folder, free_ports=True) as running:
        name = next(name for name in running.processes if name.startswith("node"))
        yield running.ports.nodes[0], running.pid(name)


@asynccontextmanager
async def echo(folder: Path, answers: dict[bytes, bytes]) -> AsyncIterator[tuple[int, int]]:
    """The floor, answering each request with what the node has: its port and its process."""
    (folder / "answers").write_bytes(pickle.dumps(answers))
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, str(folder / "answers"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        yield int(await process.stdout.readline()), process.pid
    finally:
        process.kill()
        await process.wait()


async def serve_echo(answers: dict[bytes, bytes]) -> None:
    """Serve until killed; says its port first."""

    async def answer(request: bytes, _context: object) -> bytes:
        return answers[request]

    server = grpc.aio.server(
        options=server_options(max_message_bytes=MAX_MESSAGE_BYTES, drain_s=1.0)
    )
    service, _, method = EMBED[1:].partition("/")
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                service, {method: grpc.unary_unary_rpc_method_handler(answer)}
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


def requests() -> Iterator[tuple[int, bytes]]:
    """One request of each size."""
    texts = list(dict.fromkeys(sample()))
    for size in SIZES:
        yield size, cache_pb2.EmbedRequest(inputs=texts[:size]).SerializeToString()


async def all_measured(folder: Path) -> list[dict[str, object]]:
    """Start both, fill the node, measure."""
    asked = dict(requests())
    async with AsyncExitStack() as stack:
        ports, pid = await stack.enter_async_context(node(folder))
        calls = await connect(stack, ports.grpc)
        for request in asked.values():
            await calls[0](request)
        answers = {request: await calls[0](request) for request in asked.values()}
        for answer in answers.values():
            if set(cache_pb2.EmbedResponse.FromString(answer).sources) != {cache_pb2.SOURCE_L1}:
                raise SystemExit("not all texts are answered by L1")
        echo_port, echo_pid = await stack.enter_async_context(echo(folder, answers))
        servers = [
            Server(name="node, HTTP", pid=pid, calls=await connect_http(stack, ports.http)),
            Server(name="node, gRPC", pid=pid, calls=calls),
            Server(name="echo", pid=echo_pid, calls=await connect(stack, echo_port)),
        ]
        return await measured(servers, asked)


def main() -> None:
    """Measure, keep the result, print it."""
    with (
        tempfile.TemporaryDirectory(prefix="embedkeep-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        if sys.argv[1:]:  # as `echo` starts it
            runner.run(serve_echo(pickle.loads(Path(sys.argv[1]).read_bytes())))  # noqa: S301  # own
            return
        found = runner.run(all_measured(Path(folder)))
    head = [
        "server", "texts a call", "clients", "CPU us a call", "CPU to echo's",
        "p50, us", "p99, us", "calls a second",
    ]  # fmt: skip
    rows = [[str(value) for value in row.values()] for row in found]
    print(keep("node_cpu", found, head=head, rows=rows))


if __name__ == "__main__":
    main()
