import grpc
import pytest

from embedkeep.channels import Lines
from embedkeep.errors import Unavailable


class Renewable:
    """Credentials that a test renews."""

    def __init__(self) -> None:
        self.now = grpc.ssl_channel_credentials()
        self.doubts = 0

    def newest(self) -> grpc.ChannelCredentials:
        return self.now

    def renew(self) -> None:
        self.now = grpc.ssl_channel_credentials()

    def doubt(self) -> None:
        self.doubts += 1


class Dialled:
    """Channels, by their number."""

    def __init__(self, credentials: Renewable | None) -> None:
        self.given: list[grpc.ChannelCredentials | None] = []
        self.lines = Lines(self._dial, credentials)

    def _dial(self, trusted: grpc.ChannelCredentials | None) -> tuple[int, str]:
        self.given.append(trusted)
        return len(self.given), f"stub {len(self.given)}"


def test_nothing_is_dialled_before_the_first_call_and_then_once() -> None:
    world = Dialled(None)
    assert not world.lines.dialled

    lines = [world.lines.take() for _ in range(3)]

    assert [line.stub for line in lines] == ["stub 1"] * 3
    assert world.given == [None]
    assert world.lines.dialled


def test_a_renewal_dials_anew_and_ends_no_call() -> None:
    credentials = Renewable()
    world = Dialled(credentials)
    first, second = world.lines.take(), world.lines.take()

    credentials.renew()
    third = world.lines.take()

    assert (second.channel, third.channel) == (1, 2)
    assert world.given == [first.credentials, credentials.now]
    assert world.lines.give_back(first) == []
    assert world.lines.give_back(second) == [1]
    assert world.lines.give_back(third) == []


def test_an_old_channel_that_no_call_has_is_closed_after_the_next_call() -> None:
    credentials = Renewable()
    world = Dialled(credentials)
    world.lines.give_back(world.lines.take())
    credentials.renew()

    assert world.lines.give_back(world.lines.take()) == [1]


def test_closing_closes_all_and_lends_no_more() -> None:
    credentials = Renewable()
    world = Dialled(credentials)
    held = world.lines.take()
    credentials.renew()
    world.lines.take()

    assert sorted(world.lines.close()) == [1, 2]
    assert world.lines.close() == []
    assert world.lines.give_back(held) == []
    assert not world.lines.dialled
    with pytest.raises(Unavailable, match="closed"):
        world.lines.take()


def test_doubts_reach_the_credentials() -> None:
    credentials = Renewable()

    Dialled(credentials).lines.doubt()
    Dialled(None).lines.doubt()

    assert credentials.doubts == 1
