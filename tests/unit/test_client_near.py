from hypothesis import given
from hypothesis import strategies as st

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


def test_answers_asked_for_before_it_was_emptied_are_not_kept() -> None:
    store = a_store()
    generation, _, _ = store.look_up(SCOPE, ["text"])
    store.empty()

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
