"""Which address is next."""

from hypothesis import given
from hypothesis import strategies as st

from embedkeep.client.transports.origins import Origin
from embedkeep.client.transports.rotation import (
    DOUBT_EVERY_S,
    FIRST_REST_S,
    LONGEST_REST_S,
    LOOK_UP_EVERY_S,
    MAX_LOOK_UPS,
    Address,
    Rotation,
)


def at(*hosts: str) -> list[Origin]:
    return [Origin(secure=False, host=host, port=80) for host in hosts]


def test_addresses_take_turns() -> None:
    rotation = Rotation(at("10.0.0.1", "10.0.0.2", "10.0.0.3"))

    first = [rotation.order(0.0)[0].ip for _ in range(6)]

    assert sorted(first[:3]) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert first[:3] == first[3:]


def test_one_that_failed_goes_last_until_its_rest_is_over() -> None:
    rotation = Rotation(at("10.0.0.1", "10.0.0.2"))
    bad = rotation.order(0.0)[0]
    rotation.failed(bad, 0.0)

    assert [rotation.order(FIRST_REST_S / 2)[-1] for _ in range(4)] == [bad] * 4
    assert bad in [rotation.order(FIRST_REST_S)[0] for _ in range(2)]


def test_rests_double_up_to_a_bound_and_end_with_a_success() -> None:
    rotation = Rotation(at("10.0.0.1", "10.0.0.2"))
    bad = rotation.order(0.0)[0]
    for _ in range(20):
        rotation.failed(bad, 0.0)

    assert rotation.order(LONGEST_REST_S - 0.01)[-1] == bad
    assert bad in [rotation.order(LONGEST_REST_S)[0] for _ in range(2)]
    rotation.worked(bad)
    rotation.failed(bad, 0.0)
    assert bad in [rotation.order(FIRST_REST_S)[0] for _ in range(2)]


@given(
    failures=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100)), max_size=30),
    now=st.floats(0, 200),
)
def test_every_address_is_tried_once_whatever_failed(
    failures: list[tuple[int, float]], now: float
) -> None:
    hosts = [f"10.0.0.{number}" for number in range(4)]
    rotation = Rotation(at(*hosts))
    known = sorted(rotation.order(0.0), key=lambda each: each.ip)
    for which, when in failures:
        rotation.failed(known[which], when)

    assert sorted(each.ip for each in rotation.order(now)) == hosts


def test_a_name_is_looked_up_first_and_then_now_and_again() -> None:
    (origin,) = at("docs.test")
    rotation = Rotation([origin])

    assert rotation.order(0.0) == []
    assert [rotation.due(0.0), rotation.due(0.0)] == [[origin], ()]
    rotation.found(origin, ["10.0.0.1", "10.0.0.2", "10.0.0.1"])
    assert {each.ip for each in rotation.order(0.0)} == {"10.0.0.1", "10.0.0.2"}
    assert not rotation.due(LOOK_UP_EVERY_S - 1)
    assert rotation.due(LOOK_UP_EVERY_S)


def test_after_a_failure_a_name_is_looked_up_soon_but_not_for_each() -> None:
    (origin,) = at("docs.test")
    rotation = Rotation([origin])
    rotation.due(0.0)
    rotation.found(origin, ["10.0.0.1"])
    bad = Address(origin, "10.0.0.1")

    rotation.failed(bad, 0.1)
    assert not rotation.due(0.1)
    assert rotation.due(DOUBT_EVERY_S)
    rotation.found(origin, ["10.0.0.1"])
    rotation.failed(bad, DOUBT_EVERY_S)
    assert not rotation.due(DOUBT_EVERY_S)


def test_a_name_that_cannot_be_looked_up_stands_for_what_it_did() -> None:
    (origin,) = at("docs.test")
    rotation = Rotation([origin])
    rotation.due(0.0)
    rotation.found(origin, ["10.0.0.1"])
    rotation.due(LOOK_UP_EVERY_S)
    rotation.unknown(origin, LOOK_UP_EVERY_S)

    assert [each.ip for each in rotation.order(LOOK_UP_EVERY_S)] == ["10.0.0.1"]
    assert rotation.due(LOOK_UP_EVERY_S + DOUBT_EVERY_S)


def test_a_name_that_hangs_does_not_keep_the_others_from_being_looked_up_again() -> None:
    hangs, quick = at("hangs.test", "quick.test")
    rotation = Rotation([hangs, quick])
    assert rotation.due(0.0) == [hangs, quick]
    rotation.found(quick, ["10.0.0.1"])

    assert rotation.due(LOOK_UP_EVERY_S) == [quick]
    rotation.found(hangs, ["10.0.0.2"])
    assert rotation.due(LOOK_UP_EVERY_S) == [hangs]


def test_only_so_many_names_are_looked_up_at_once_and_all_in_the_end() -> None:
    origins = at(*(f"{number}.test" for number in range(3 * MAX_LOOK_UPS)))
    rotation = Rotation(origins)
    under_way = list(rotation.due(0.0))
    seen: list[Origin] = []
    while under_way:
        assert len(under_way) <= MAX_LOOK_UPS
        seen.append(under_way.pop(0))
        rotation.found(seen[-1], [])
        under_way += rotation.due(0.0)

    assert seen == origins
    assert not rotation.looking


def test_an_ip_address_is_never_looked_up() -> None:
    rotation = Rotation(at("10.0.0.1", "::1"))
    rotation.failed(rotation.order(0.0)[0], 0.0)

    assert not rotation.due(1e9)
