"""What response headers say of where answers came from."""

from collections.abc import Sequence

import numpy as np
import pytest

from embedkeep.node.exchange import Answer
from embedkeep.node.http.headers import CACHE_STATUS, SOURCES, of, read
from embedkeep.node.metrics import Result
from embedkeep.node.space import Space

SPACE = Space(
    fingerprint="f",
    dimensions=2,
    max_tokens=8,
    normalized=True,
    min_canary_cosine=0.9999,
    canaries=np.zeros((1, 2), np.float32),
)
L1, VALKEY, PEER = Result.L1, Result.VALKEY, Result.PEER
EMBEDDER, COALESCED = Result.EMBEDDER, Result.COALESCED


def said(results: Sequence[Result], *, fresh: bool = False) -> tuple[str, str]:
    answer = Answer.empty(len(results), SPACE, 1)
    answer.results = list(results)
    headers = of(answer, name="docs", fresh=fresh)
    return headers[SOURCES], headers[CACHE_STATUS].removeprefix("docs; ")


@pytest.mark.parametrize(
    ("results", "sources", "status"),
    [
        ([L1], "l1=1", "hit; detail=l1"),
        ([L1, VALKEY, L1], "l1=2, valkey=1", "hit; detail=valkey"),
        ([PEER, L1], "l1=1, peer=1", "hit; detail=peer"),
        ([EMBEDDER], "embedder=1", "fwd=miss"),
        ([COALESCED], "coalesced=1", "fwd=miss; collapsed"),
        ([EMBEDDER, COALESCED], "embedder=1, coalesced=1", "fwd=miss"),
        ([VALKEY, EMBEDDER], "valkey=1, embedder=1", "fwd=partial"),
        ([L1, COALESCED], "l1=1, coalesced=1", "fwd=partial; collapsed"),
    ],
)
def test_sources_are_counted_and_summed_up_in_the_words_of_rfc_9211(
    results: list[Result], sources: str, status: str
) -> None:
    assert said(results) == (sources, status)


def test_what_was_wanted_fresh_was_no_miss() -> None:
    assert said([EMBEDDER], fresh=True)[1] == "fwd=request"


@pytest.mark.parametrize("result", sorted({*Result} - {Result.NOT_CACHED, Result.ERROR}))
def test_every_way_to_an_answer_is_shown(result: Result) -> None:
    assert said([result])[0] == f"{result}=1"


def test_without_headers_nothing_is_wished_for() -> None:
    wishes = read({})

    assert (wishes.store, wishes.fresh, wishes.cached_only) == (True, False, False)
    assert (wishes.timeout_s, wishes.trace) == (None, None)
