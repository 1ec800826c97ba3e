"""What the demo makes of what it measured."""

from collections import Counter
from dataclasses import replace

import pytest

from embedkeep import Source
from embedkeep_operator.local.demo import Held, Outcome, fact_rows, tier_rows
from embedkeep_operator.local.replay import Tally

TALLY = Tally(
    texts=Counter({Source.VALKEY: 3, Source.EMBEDDER: 1}),
    seconds={Source.EMBEDDER: [0.5]},
    saved_device_s=3,
    spent_device_s=1,
)


def an_outcome(l1: float | None = None, valkey: float | None = None) -> Outcome:
    return Outcome(
        cold=TALLY,
        restarted=TALLY,
        model="m",
        dimensions=384,
        l1_entry_bytes=l1,
        valkey_entry_bytes=valkey,
    )


@pytest.mark.parametrize(
    ("l1", "valkey", "said"),
    [
        (1600.0, 2100.0, "1,600 in L1, 2,100 in Valkey; its vector: 384 float32, 1,536 bytes"),
        (None, 2100.0, "2,100 in Valkey; its vector: 384 float32, 1,536 bytes"),
        (None, None, "none were kept; its vector: 384 float32, 1,536 bytes"),
    ],
)
def test_a_tier_that_holds_nothing_has_no_bytes_an_entry(
    l1: float | None, valkey: float | None, said: str
) -> None:
    outcome = an_outcome(l1, valkey)

    assert dict(fact_rows(outcome, TALLY))["bytes an entry"] == said


@pytest.mark.parametrize("answered", [0, 2])
def test_another_node_has_a_row_where_one_has_answered(answered: int) -> None:
    total = replace(TALLY, texts=TALLY.texts + Counter({Source.PEER: answered}))

    names = [name for name, *_ in tier_rows(an_outcome(), total)]

    assert ("another node" in names) is bool(answered)
    assert {"L1 (node memory)", "Valkey", "coalesced", "embedder"} < {*names, "more"}


def test_an_entry_takes_what_the_tier_grew_by() -> None:
    empty = Held(entries=0, nbytes=900)

    assert Held(entries=10, nbytes=2900).each(empty) == 200
    assert empty.each(empty) is None
    assert Held().each(Held()) is None
