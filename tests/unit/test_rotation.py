"""Going over to another password: nobody is ever without one that is accepted."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.rotation import (
    SETTLE_S,
    Access,
    Allow,
    Refuse,
    Reload,
    Show,
    digest,
    next_lines,
    renewals,
)


def access(*allowed: str, shown: str = "old", certificate: str | None = None) -> Access:
    return Access(allowed=frozenset(map(digest, allowed)), shown=shown, certificate=certificate)


def everywhere(each: Access) -> dict[str, Access]:
    return {"a": each, "b": each}


@pytest.mark.parametrize(
    ("lines", "new", "each", "age_s", "missing", "expected"),
    [
        (["old"], None, access("old"), 9e9, 0, ("old",)),
        (["old"], "new", access("old"), 0, 0, ("old", "new")),
        (["old", "new"], "new", access("old"), 9e9, 0, ("old", "new")),
        (["old", "new"], "new", access("old", "new"), 0, 1, ("old", "new")),
        (["old", "new"], "new", access("old", "new"), 0, 0, ("new", "old")),
        (["new", "old"], "new", access("old", "new"), 9e9, 0, ("new", "old")),
        (["new", "old"], "new", access("old", "new", shown="new"), 0, 0, ("new", "old")),
        (["new", "old"], "new", access("old", "new", shown="new"), SETTLE_S, 0, ("new",)),
        (["old", "new"], "other", access("old", "new"), 0, 0, ("old", "other")),
        (["old", "new"], None, access("old", "new"), 9e9, 0, ("old",)),
    ],
    ids=[
        "nothing to do", "begin", "not accepted yet", "one is missing", "show it first",
        "not shown everywhere", "not mounted everywhere", "end", "another one", "given up",
    ],
)  # fmt: skip
def test_the_file_goes_from_one_password_to_the_other_by_way_of_both(  # noqa: PLR0917 - pytest gives them by name
    lines: list[str],
    new: str | None,
    each: Access,
    age_s: float,
    missing: int,
    expected: tuple[str, ...],
) -> None:
    assert next_lines(lines, new, everywhere(each), age_s=age_s, missing=missing) == expected


def test_a_password_is_shown_once_all_accept_it() -> None:
    seen = {"a": access("old", "new"), "b": access("old")}

    assert renewals(["new", "old"], seen, missing=0) == (Allow(at="b", password="new"),)


def test_a_password_is_refused_once_nobody_shows_it() -> None:
    seen = {"a": access("old", "new", shown="new"), "b": access("old", "new")}
    shown = {"a": seen["a"], "b": seen["a"]}

    assert renewals(["new"], seen, missing=0) == (Show(at="b", password="new"),)
    assert renewals(["new"], shown, missing=0) == tuple(
        Refuse(at=name, digest=digest("old")) for name in "ab"
    )
    assert renewals(["new"], shown, missing=1) == (), "one that does not answer may show it"


def test_a_certificate_is_read_again_until_it_is_the_right_one() -> None:
    seen = {"a": access("old", certificate="1"), "b": access("old", certificate="2")}

    assert renewals(["old"], seen, certificate="2", missing=0) == (Reload(at="a"),)
    assert renewals(["old"], everywhere(access("old")), missing=0) == ()


@dataclass
class Valkey:
    """As far as passwords go."""

    allowed: set[str]
    shown: str

    def access(self) -> Access:
        return access(*self.allowed, shown=self.shown)


@dataclass
class World:
    """A file of passwords, and how each process has it mounted, now or some time ago."""

    files: list[tuple[str, ...]] = field(default_factory=lambda: [("old",)])
    valkeys: dict[str, Valkey] = field(
        default_factory=lambda: {name: Valkey({"old"}, "old") for name in "abc"}
    )

    def mounted(self, chance: random.Random, settled: int) -> tuple[str, ...]:
        """One that is not older than the newest that everybody has."""
        return self.files[chance.randrange(settled, len(self.files))]

    def look(self) -> Mapping[str, Access]:
        return {name: each.access() for name, each in self.valkeys.items()}

    def take(self, todo: object) -> None:
        match todo:
            case Allow(at=at, password=password):
                self.valkeys[at].allowed.add(password)
            case Show(at=at, password=password):
                self.valkeys[at].shown = password
            case Refuse(at=at, digest=gone):
                allowed = self.valkeys[at].allowed
                self.valkeys[at].allowed = {each for each in allowed if digest(each) != gone}
            case _:
                raise AssertionError(todo)


@given(st.integers(0, 2**32))
def test_whatever_a_process_has_read_last_each_valkey_accepts_one_of_it(seed: int) -> None:
    """Valkeys are restarted or not reached, and mounts lag for less than 300 s."""
    chance = random.Random(seed)
    world = World()
    settled, age_s = 0, 0.0
    for _ in range(40):
        age_s += chance.choice([1.0, 60.0, 200.0])
        if age_s >= SETTLE_S:
            settled = len(world.files) - 1
        if chance.random() < 0.2:
            lines = world.mounted(chance, settled)
            world.valkeys[chance.choice("abc")] = Valkey({*lines}, lines[0])
        hidden = set(chance.sample("abc", chance.choice([0, 0, 1])))
        seen = {name: each for name, each in world.look().items() if name not in hidden}
        lines = next_lines(world.files[-1], "new", seen, age_s=age_s, missing=len(hidden))
        if lines != world.files[-1]:
            world.files.append(lines)
            age_s = 0.0
        for step in renewals(world.files[-1], seen, missing=len(hidden)):
            world.take(step)
        for valkey in world.valkeys.values():
            assert any(each in valkey.allowed for each in world.mounted(chance, settled))
    for _ in range(4):
        lines = next_lines(world.files[-1], "new", world.look(), age_s=9e9, missing=0)
        world.files.append(lines)
        for _ in range(3):
            for step in renewals(lines, world.look(), missing=0):
                world.take(step)
    assert world.files[-1] == ("new",)
    assert world.look() == {name: access("new", shown="new") for name in "abc"}
