import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.client.gathering import near_answer
from embedkeep.client.near import Identity, NearRow, NearStore, Scope
from embedkeep.client.options import NearCache
from embedkeep.views import View

A = Identity(fingerprint="a", epoch=1)
SCOPE = Scope(model=None, prompt=None, view=View())


def a_row(size: int = 8, tokens: int = 1) -> NearRow:
    return NearRow(vector=bytes(size), tokens=tokens, truncated=False)


def a_store(
    *, max_bytes: int = 1 << 20, max_age_s: float = 60, now: list[float] | None = None
) -> NearStore:
    time = now if now is not None else [0.0]
    return NearStore(NearCache(max_bytes=max_bytes, max_age_s=max_age_s), clock=lambda: time[0])


def keep(store: NearStore, *texts: str, identity: Identity = A, size: int = 8) -> None:
    generation, _, _ = store.look_up(SCOPE, [])
    store.keep(generation, identity, SCOPE, {text: a_row(size) for text in texts})


def found(store: NearStore, *texts: str, scope: Scope = SCOPE) -> set[str]:
    return set(store.look_up(scope, list(texts))[2])


@given(
    steps=st.lists(st.tuples(st.booleans(), st.text(max_size=3), st.integers(0, 4000)), max_size=60)
)
def test_it_never_holds_more_bytes_than_it_may(steps: list[tuple[bool, str, int]]) -> None:
    store = a_store(max_bytes=5000)

    for is_kept, text, size in steps:
        if is_kept:
            keep(store, text, size=size)
        else:
            found(store, text)

        assert store.nbytes <= 5000
        assert (store.nbytes == 0) == (len(store) == 0)


def test_the_least_recently_used_text_leaves_first() -> None:
    store = a_store(max_bytes=1100)  # two entries and a bit
    keep(store, "old")
    keep(store, "new")
    found(store, "old")

    keep(store, "newest")

    assert found(store, "old", "new", "newest") == {"old", "newest"}


def test_an_answer_is_used_until_its_age_and_not_beyond() -> None:
    now = [0.0]
    store = a_store(max_age_s=60, now=now)
    keep(store, "text")

    now[0] = 60.0
    young = found(store, "text")
    now[0] = 60.1

    assert young == {"text"}
    assert found(store, "text") == set()
    assert store.nbytes == 0


def test_reading_does_not_make_an_answer_younger() -> None:
    now = [0.0]
    store = a_store(max_age_s=60, now=now)
    keep(store, "text")
    now[0] = 50.0
    found(store, "text")
    now[0] = 61.0

    assert found(store, "text") == set()


def test_another_epoch_or_model_empties_it() -> None:
    for other in (Identity(fingerprint="a", epoch=2), Identity(fingerprint="b", epoch=1)):
        store = a_store()
        keep(store, "before")

        keep(store, "after", identity=other)

        assert found(store, "before", "after") == {"after"}


def test_answers_asked_for_before_a_forget_are_not_kept() -> None:
    store = a_store()
    generation, _, _ = store.look_up(SCOPE, ["text"])
    store.forget(b"", epoch=0)

    store.keep(generation, A, SCOPE, {"text": a_row()})

    assert found(store, "text") == set()


def test_prompts_models_and_views_are_kept_apart() -> None:
    store = a_store()
    keep(store, "text")

    for other in (
        Scope(model="docs", prompt=None, view=View()),
        Scope(model=None, prompt="query", view=View()),
        Scope(model=None, prompt=None, view=View(dimensions=4)),
        Scope(model=None, prompt=None, view=View(normalize=True)),
    ):
        assert found(store, "text", scope=other) == set()


def test_an_answer_that_alone_is_too_large_is_not_kept_and_costs_no_other() -> None:
    store = a_store(max_bytes=1000)
    keep(store, "small")

    keep(store, "large", size=2000)

    assert found(store, "small", "large") == {"small"}


def keep_as(store: NearStore, tenant: bytes, *texts: str, epoch: int = 1) -> None:
    scope = Scope(tenant=tenant, model=None, prompt=None, view=View())
    generation, _, _ = store.look_up(scope, [])
    identity = Identity(fingerprint="a", epoch=epoch)
    store.keep(generation, identity, scope, {text: a_row() for text in texts})


def found_by(store: NearStore, tenant: bytes, *texts: str) -> set[str]:
    return found(store, *texts, scope=Scope(tenant=tenant, model=None, prompt=None, view=View()))


def test_answers_of_an_epoch_before_the_one_an_invalidation_returned_are_not_kept() -> None:
    """They come from a node that has not heard of it yet."""
    store = a_store()
    store.forget(b"", epoch=2)

    keep(store, "lagging", identity=Identity(fingerprint="a", epoch=1))
    keep(store, "heard", identity=Identity(fingerprint="a", epoch=2))

    assert found(store, "lagging", "heard") == {"heard"}


def test_an_answer_of_an_earlier_epoch_takes_no_later_ones_away() -> None:
    store = a_store()
    keep(store, "later", identity=Identity(fingerprint="a", epoch=2))

    keep(store, "earlier", identity=Identity(fingerprint="a", epoch=1))

    assert found(store, "earlier", "later") == {"later"}


def test_a_cache_that_began_anew_with_lower_epochs_is_believed_in_the_end() -> None:
    now = [0.0]
    store = a_store(max_age_s=60, now=now)
    store.forget(b"", epoch=9)
    now[0] = 60.1

    keep(store, "a", "b", identity=Identity(fingerprint="a", epoch=1))

    assert found(store, "a", "b") == {"a", "b"}


def test_tenants_have_their_own_answers_and_epochs() -> None:
    store = a_store()
    keep_as(store, b"one", "text", epoch=7)
    keep_as(store, b"two", "other text", epoch=1)

    assert found_by(store, b"one", "text", "other text") == {"text"}
    assert found_by(store, b"two", "text", "other text") == {"other text"}
    store.forget(b"one", epoch=8)
    assert found_by(store, b"one", "text") == set()
    assert found_by(store, b"two", "other text") == {"other text"}


def test_it_remembers_so_many_tenants_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkeep.client.near.MAX_TENANTS", 2)
    store = a_store()
    keep_as(store, b"one", "text")
    keep_as(store, b"two", "text")
    found_by(store, b"one")

    keep_as(store, b"three", "text")

    assert [found_by(store, name, "text") for name in (b"one", b"three")] == [{"text"}] * 2
    assert len(store) == 2


def test_rows_come_all_together_in_their_order_or_not_at_all() -> None:
    now = [0.0]
    store = a_store(max_age_s=10, now=now)
    store.keep(store.look_up(SCOPE, [])[0], A, SCOPE, {"a": a_row(tokens=1), "b": a_row(tokens=2)})

    assert store.all_of(SCOPE, ["b", "a", "b"]) == (A, [a_row(tokens=n) for n in (2, 1, 2)])
    assert store.all_of(SCOPE, ["a", "c"]) is None
    assert store.all_of(SCOPE, ["a", 7]) is None
    assert store.all_of(SCOPE, []) is None
    now[0] = 11.0
    assert store.all_of(SCOPE, ["a"]) is None


def test_what_was_answered_last_goes_last() -> None:
    store = a_store(max_bytes=2000)  # room for four
    keep(store, "a", "b", "c", "d")

    store.all_of(SCOPE, ["a"])
    keep(store, "e")

    assert found(store, "a", "b") == {"a"}


def test_a_near_answer_is_the_callers_own_to_write_to() -> None:
    rows = [NearRow(vector=bytes(8), tokens=1, truncated=True)]
    first = near_answer(A, rows)

    first.vectors[:] = 1.0

    assert near_answer(A, rows).vectors.tolist() == [[0.0, 0.0]]
    assert first.truncated == (0,)
