"""An ingest and its queries through LangChain, with and without a cache: the way a user decides.

    make .venv-peers/ready
    EMBEDKEEP_DATA=<folder with ir_xquad_en_a> .venv-peers/bin/python benchmarks/end_to_end.py

The 240 passages of XQuAD are embedded, and embedded again, as pipelines do that run every night;
then its questions are asked 3,000 times, as often each as a popular page is looked up, and the ten
nearest passages are found by a product of matrices in numpy. All ways use the same embedder process
with the real all-MiniLM-L6-v2 on the CPU; each begins with an empty cache, and they take turns.

Counted at the model: what was embedded. Compared with the way without a cache: every question's ten
passages, and every vector bit by bit. Writes benchmarks/results/end_to_end.json and its table.
"""

import csv
import gzip
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, cast

import grpc
import numpy as np
import redis
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_community.storage import RedisStore
from langchain_core.embeddings import Embeddings
from langchain_openai import OpenAIEmbeddings

import traces
from embedkeep import Client, NearCache
from embedkeep.adapters.langchain import EmbedKeepEmbeddings
from embedkeep.v1 import embedder_pb2, embedder_pb2_grpc
from report import COMMITTED, draft, made_on, table
from rig import Embedder, Rig
from turns import arguments, say

FOLDER: Final = "ir_xquad_en_a"
POPULARITY: Final = "popularity_wikipedia_2023-06.csv.gz"
REQUESTS: Final = 3000
ROUNDS: Final = 2
CHUNK: Final = 64
"""Passages a call while they are ingested."""
NEAREST: Final = 10
TIMEOUT_S: Final = 120.0
"""Of a call: a chunk of passages takes a busy machine longer than a person's patience."""
NO_CACHE: Final = "no cache"

Lists = list[list[float]]


class Direct(Embeddings):  # type: ignore[misc]  # its base ships no types here
    """The embedder's process itself, without a cache."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = embedder_pb2_grpc.EmbedderStub(channel)

    def embed_documents(self, texts: list[str]) -> Lists:
        """A vector for each text."""
        said = self._stub.Embed(embedder_pb2.ComputeRequest(inputs=texts))
        found = np.frombuffer(said.vectors, "<f4").reshape(len(texts), -1)
        return cast(Lists, found.tolist())

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query."""
        return self.embed_documents([text])[0]


@dataclass(slots=True)
class Run:
    """What one way did in one round."""

    ingest_s: float
    again_s: float
    queries_s: float
    query_s: list[float]
    """Of each call to embed a query, without the search."""
    computed: int
    nearest: dict[str, tuple[int, ...]]
    """Of each question: the passages found, the nearest first."""
    vectors: dict[str, bytes] = field(repr=False)
    """Of each text, as float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way; medians of the rounds."""

    way: str
    wall_s: float
    ingest_s: float
    again_s: float
    queries_s: float
    query_p50_ms: float
    computed: int
    """Texts that the model was run for."""
    same_top10: float
    """Share of the questions with the same ten passages in the same order as without a cache."""
    same_bits: float
    """Share of the texts whose vector is the same, bit for bit."""


Way = Callable[[ExitStack, Rig, Embedder], Embeddings]
"""Opens what a user would open; closed by the stack."""


def no_cache(stack: ExitStack, _rig: Rig, embedder: Embedder) -> Embeddings:
    """The model itself."""
    target = f"127.0.0.1:{embedder.grpc_port}"
    return Direct(stack.enter_context(grpc.insecure_channel(target)))


def cache_backed(stack: ExitStack, rig: Rig, embedder: Embedder) -> Embeddings:
    """LangChain's own cache on Redis, queries cached too."""
    valkey = rig.valkey()
    client = stack.enter_context(redis.Redis("127.0.0.1", valkey.port))
    return CacheBackedEmbeddings.from_bytes_store(
        no_cache(stack, rig, embedder),
        RedisStore(client=client),
        namespace="minilm:",
        query_embedding_cache=True,
        key_encoder="blake2b",
    )


def adapter(stack: ExitStack, rig: Rig, embedder: Embedder, *, near: bool = False) -> Embeddings:
    """The adapter for LangChain."""
    node = rig.node(embedder.grpc_port, rig.valkey())
    near_cache = NearCache(max_bytes=16 << 20) if near else None
    client = stack.enter_context(Client(node.url, near_cache=near_cache, timeout_s=TIMEOUT_S))
    return EmbedKeepEmbeddings(client)


def near_adapter(stack: ExitStack, rig: Rig, embedder: Embedder) -> Embeddings:
    """The same with the client's near cache."""
    return adapter(stack, rig, embedder, near=True)


def openai_endpoint(_stack: ExitStack, rig: Rig, embedder: Embedder) -> Embeddings:
    """langchain-openai, of which only the address was changed."""
    node = rig.node(embedder.grpc_port, rig.valkey(), http={"port": 0})
    return OpenAIEmbeddings(
        model="bench",
        base_url=f"http://127.0.0.1:{node.announced['http']}/v1",
        api_key="none",
        check_embedding_ctx_length=False,
    )


WAYS: Final[dict[str, Way]] = {
    NO_CACHE: no_cache,
    "CacheBackedEmbeddings on Valkey": cache_backed,
    "embedkeep, its adapter": adapter,
    "embedkeep, its adapter, near cache": near_adapter,
    "embedkeep, langchain-openai": openai_endpoint,
}


def read(folder: Path, requests: int) -> tuple[list[str], list[str]]:
    """Passages, and questions in the order in which they are asked."""

    def texts(name: str) -> list[str]:
        with gzip.open(folder / FOLDER / f"{name}.jsonl.gz", "rt") as lines:
            return [json.loads(line)["text"] for line in lines]

    questions = list(dict.fromkeys(texts("queries")))
    with gzip.open(folder / POPULARITY, "rt") as lines:
        weights = [float(row["probability"]) for row in csv.DictReader(lines)]
    draw = random.Random(1)
    draw.shuffle(questions)
    return texts("corpus"), draw.choices(questions, weights[: len(questions)], k=requests)


def run(embeddings: Embeddings, passages: list[str], asked: Sequence[str]) -> Run:
    """Ingest, ingest again, ask."""
    vectors: dict[str, bytes] = {}

    def ingest() -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        rows: Lists = []
        for at in range(0, len(passages), CHUNK):
            rows += embeddings.embed_documents(passages[at : at + CHUNK])
        return np.array(rows, np.float32), time.perf_counter() - began

    _, first_s = ingest()
    index, again_s = ingest()
    nearest: dict[str, tuple[int, ...]] = {}
    query_s: list[float] = []
    began = time.perf_counter()
    for question in asked:
        start = time.perf_counter()
        row = embeddings.embed_query(question)
        query_s.append(time.perf_counter() - start)
        vector = np.array(row, np.float32)
        nearest[question] = tuple(np.argsort(-(index @ vector), kind="stable")[:NEAREST].tolist())
        vectors[question] = vector.tobytes()
    queries_s = time.perf_counter() - began
    vectors |= {text: row.tobytes() for text, row in zip(passages, index, strict=True)}
    return Run(first_s, again_s, queries_s, query_s, 0, nearest, vectors)


@contextmanager
def opened(way: Way, embedder: Embedder) -> Iterator[Embeddings]:
    """With an empty cache and a node of its own, if it has any."""
    with Rig() as rig, ExitStack() as stack:
        yield way(stack, rig, embedder)


def measured(
    passages: list[str], asked: Sequence[str], *, rounds: int
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """All ways in turns. One that fails is left out, with its reason."""
    runs: dict[str, list[Run]] = {}
    left_out: dict[str, str] = {}
    with Rig() as rig:
        embedder = rig.minilm()
        for number in range(rounds):
            for name, way in WAYS.items():
                if name in left_out:
                    continue
                say(f"round {number + 1} of {rounds}: {name}")
                try:
                    with opened(way, embedder) as embeddings:
                        before = embedder.computed()
                        done = run(embeddings, passages, asked)
                        done.computed = embedder.computed() - before
                except Exception as error:  # noqa: BLE001  # a peer may raise anything
                    left_out[name] = f"{type(error).__name__}: {error}"
                    say(f"left out: {name}: {left_out[name]}")
                else:
                    runs.setdefault(name, []).append(done)
    return runs, left_out


def row(way: str, runs: Sequence[Run], plain: Run) -> Row:
    """What *runs* did, beside *plain*, which had no cache."""
    last = runs[-1]
    same_ids = sum(last.nearest[text] == ids for text, ids in plain.nearest.items())
    same_bits = sum(last.vectors[text] == bits for text, bits in plain.vectors.items())

    def median(of: Callable[[Run], float]) -> float:
        return round(statistics.median(map(of, runs)), 2)

    return Row(
        way=way,
        wall_s=median(lambda run: run.ingest_s + run.again_s + run.queries_s),
        ingest_s=median(lambda run: run.ingest_s),
        again_s=median(lambda run: run.again_s),
        queries_s=median(lambda run: run.queries_s),
        query_p50_ms=median(lambda run: statistics.median(run.query_s) * 1e3),
        computed=round(statistics.median(run.computed for run in runs)),
        same_top10=round(same_ids / len(plain.nearest), 4),
        same_bits=round(same_bits / len(plain.vectors), 4),
    )


def main() -> None:
    """Measure, keep, and print."""
    quick = arguments(__doc__).quick
    place = draft() if quick else COMMITTED
    passages, asked = read(traces.folder(), 300 if quick else REQUESTS)
    with Rig() as rig:
        server = rig.valkey().described()
    runs, left_out = measured(passages, asked, rounds=1 if quick else ROUNDS)
    rows = [row(way, done, runs[NO_CACHE][-1]) for way, done in runs.items()]
    place.save(
        "end_to_end",
        server,
        passages=len(passages),
        requests=len(asked),
        distinct_questions=len(set(asked)),
        rows=[asdict(each) for each in rows],
        left_out=left_out,
    )
    head = (
        "way", "whole, s", "ingest, s", "ingest again, s", f"{len(asked):,} queries, s",
        "p50 to embed one, ms", "texts computed", "same top 10", "same bits",
    )  # fmt: skip
    lines = (
        [
            each.way,
            f"{each.wall_s:.1f}",
            f"{each.ingest_s:.2f}",
            f"{each.again_s:.2f}",
            f"{each.queries_s:.2f}",
            f"{each.query_p50_ms:.2f}",
            f"{each.computed:,}",
            f"{each.same_top10:.1%}",
            f"{each.same_bits:.1%}",
        ]
        for each in rows
    )
    out = [f"Left out: {name}: {why.splitlines()[0]}" for name, why in left_out.items()]
    text = "\n\n".join([table(head, lines), *out, made_on(server)])
    place.write("end_to_end", text)
    print(text)


if __name__ == "__main__":
    main()
