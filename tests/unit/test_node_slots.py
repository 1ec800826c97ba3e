from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.config import Member
from embedkeep.errors import InvalidResponse
from embedkeep.keys import TAG_BYTES, space_tag, tenant_tag
from embedkeep.node.slots import SLOTS, Range, SlotMap, View, read_view, slot_of

NAMES = ("a", "b", "c")
MEMBERS = [
    Member(name=name, address=f"{name}:1", valkey_host=f"{name}.example", valkey_port=7000 + at)
    for at, name in enumerate(NAMES)
]


def primary(name: str, *, endpoint: object = "", **metadata: str) -> list[object]:
    member = next(each for each in MEMBERS if each.name == name)
    shown = member.valkey_host if endpoint == "" else endpoint
    more = [part.encode() for pair in metadata.items() for part in pair]
    return [
        shown.encode() if isinstance(shown, str) else shown,
        member.valkey_port,
        b"id-" + name.encode(),
        more,
    ]


PRIMARY: list[object] = [b"master", 77, []]
"""What ROLE is answered with."""


def said(*ranges: list[object], epoch: int = 1, role: Sequence[object] = PRIMARY) -> list[object]:
    """Replies to `LOOK`."""
    return [list(ranges), b"cluster_state:ok\r\ncluster_my_epoch:%d\r\n" % epoch, list(role)]


def a_range(first: int, last: int, owner: str | None) -> Range:
    return Range(first=first, last=last, owner=owner)


@st.composite
def partitions(draw: st.DrawFn) -> list[Range]:
    """All slots, cut anywhere, each part somebody's or nobody's."""
    cuts = sorted(draw(st.sets(st.integers(1, SLOTS - 1), max_size=12)))
    edges = [0, *cuts, SLOTS]
    return [
        a_range(first, last - 1, draw(st.sampled_from([*NAMES, None])))
        for first, last in pairwise(edges)
    ]


def told_of(slot: int, ranges: list[Range]) -> str | None:
    (told,) = [each.owner for each in ranges if each.first <= slot <= each.last]
    return told


def key_in(slot: int) -> bytes:
    """A key of that slot."""
    return KEYS[slot]


KEYS: dict[int, bytes] = {}
for number in range(400_000):
    KEYS.setdefault(slot_of(name := b"%d" % number), name)


@given(partitions(), st.integers(0, SLOTS - 1))
def test_every_slot_has_the_owner_that_was_told(ranges: list[Range], slot: int) -> None:
    view = View(teller="a", ranges=tuple(ranges))

    assert SlotMap(NAMES, [view]).owner(key_in(slot)) == told_of(slot, ranges)


@given(mine=partitions(), theirs=partitions(), slot=st.integers(0, SLOTS - 1))
def test_what_a_valkey_says_of_itself_counts_more_than_what_others_have_heard(
    mine: list[Range], theirs: list[Range], slot: int
) -> None:
    views = [View(teller="a", ranges=tuple(mine)), View(teller="b", ranges=tuple(theirs))]
    own = slot in views[0].own, slot in views[1].own

    owner = SlotMap(NAMES, views).owner(key_in(slot))

    match own:
        case (True, False):
            assert owner == "a"
        case (False, True):
            assert owner == "b"
        case (True, True):
            assert owner == "b"  # the newer
        case _:
            assert owner == told_of(slot, theirs)  # the newer has heard better


@given(mine=partitions(), theirs=partitions(), slot=st.integers(0, SLOTS - 1))
def test_of_two_that_claim_a_slot_the_one_with_the_later_epoch_has_it(
    mine: list[Range], theirs: list[Range], slot: int
) -> None:
    """However new the view of one is that a replica has taken over from, and that goes on."""
    views = [
        View(teller="a", ranges=tuple(mine), epoch=7),
        View(teller="b", ranges=tuple(theirs), epoch=3),
    ]

    owner = SlotMap(NAMES, views).owner(key_in(slot))

    if slot in views[0].own:
        assert owner == "a"
    elif slot in views[1].own:
        assert owner == "b"


@pytest.mark.parametrize(
    ("role", "is_replica", "replicas"),
    [
        (PRIMARY, False, 0),
        ([b"master", 9, [[b"10.0.0.1", b"6379", b"9"], [b"10.0.0.2", b"6379", b"9"]]], False, 2),
        ([b"slave", b"10.0.0.1", 6379, b"connected", 9], True, 0),
    ],
)
def test_a_view_tells_whose_copies_there_are(
    role: list[object],
    is_replica: bool,  # noqa: FBT001 - pytest gives it by name
    replicas: int,
) -> None:
    told = said([0, 5, primary("b"), primary("c")], epoch=4, role=role)

    view = read_view(told, teller="b", members=MEMBERS)

    assert (view.epoch, view.is_replica, view.replicas) == (4, is_replica, replicas)


@given(partitions())
def test_a_copy_lies_in_a_slot_of_its_own_valkey_wherever_that_has_one(
    ranges: list[Range],
) -> None:
    view = View(teller="a", ranges=tuple(ranges))

    name = view.name_here(b"embedkeep:epochs")

    if name is None:
        assert not view.own
    else:
        assert slot_of(name) in view.own
        assert name.startswith(b"embedkeep:epochs")


def test_a_copy_is_found_where_a_valkey_has_a_single_slot() -> None:
    view = View(teller="a", ranges=(a_range(77, 77, "a"), a_range(78, SLOTS - 1, "b")))

    assert slot_of(view.name_here(b"embedkeep:forgotten") or b"") == 77


def test_a_name_that_is_at_home_needs_no_tag() -> None:
    whole = View(teller="a", ranges=(a_range(0, SLOTS - 1, "a"),))

    assert whole.name_here(b"embedkeep:epochs") == b"embedkeep:epochs"


@pytest.mark.parametrize(
    "told",
    [
        pytest.param(primary("b"), id="by host"),
        pytest.param(primary("b", endpoint="10.0.0.7", hostname="b.example"), id="by name"),
        pytest.param(primary("b", endpoint=None, ip="b.example"), id="by address"),
        pytest.param(primary("b")[:3], id="as old servers do"),
    ],
)
def test_a_primary_is_known_by_any_of_its_addresses(told: Sequence[object]) -> None:
    view = read_view(
        said([0, 5, told, primary("c")], [6, 9, primary("a")]), teller="a", members=MEMBERS
    )

    assert view.ranges == (a_range(0, 5, "b"), a_range(6, 9, "a"))
    assert not view.strangers


@pytest.mark.parametrize("endpoint", [None, "?", b""])
def test_a_valkey_that_does_not_know_its_own_address_is_the_one_that_was_asked(
    endpoint: object,
) -> None:
    view = read_view(said([0, 5, primary("b", endpoint=endpoint)]), teller="b", members=MEMBERS)

    assert view.ranges == (a_range(0, 5, "b"),)


def test_slots_of_a_stranger_belong_to_no_member() -> None:
    view = read_view(said([3, 5, [b"10.9.9.9", 7000, b"id"]]), teller="a", members=MEMBERS)

    assert view.strangers == {"10.9.9.9:7000"}
    assert SlotMap(NAMES, [view]).owner(key_in(4)) is None


ANYTHING = st.recursive(
    st.none() | st.integers() | st.binary(max_size=5), lambda inner: st.lists(inner, max_size=4)
)


@given(st.tuples(ANYTHING, ANYTHING, ANYTHING | st.just(PRIMARY)))
def test_any_other_answer_is_told_from_a_view(replies: tuple[object, ...]) -> None:
    try:
        view = read_view(replies, teller="a", members=MEMBERS)
    except InvalidResponse:
        return
    assert all(0 <= each.first <= each.last < SLOTS for each in view.ranges)


@given(st.text(), st.binary(min_size=1))
def test_no_tag_of_a_model_or_tenant_opens_a_brace(fingerprint: str, salt: bytes) -> None:
    """Else all entries of one could share a slot."""
    tags = space_tag(fingerprint) + tenant_tag(salt)

    assert len(tags) == 2 * TAG_BYTES
    assert b"{" not in tags


def test_a_tag_that_would_open_a_brace_is_another_one() -> None:
    tags = [space_tag(str(number)) for number in range(2000)]

    assert not any(b"{" in tag for tag in tags)
    assert len(set(tags)) == len(tags)
