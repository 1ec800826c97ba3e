from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from embedkeep.node.breaker import MAX_BACKOFF, TIMEOUTS_TO_OPEN, Breaker

PAUSE_S = 0.5
CLOSED = Breaker(pause_s=PAUSE_S).close()


def test_a_breaker_starts_open_and_may_be_probed_at_once() -> None:
    breaker = Breaker(pause_s=PAUSE_S)

    assert not breaker.closed
    assert breaker.retry_at == 0.0


def test_a_successful_probe_closes_it() -> None:
    assert Breaker(pause_s=PAUSE_S).open(now=7.0).close() == CLOSED


def test_pauses_double_up_to_the_longest() -> None:
    breaker, pauses = CLOSED, []
    for now in range(100, 108):
        breaker = breaker.open(float(now))
        pauses.append((breaker.retry_at - now) / PAUSE_S)

    assert pauses == [1, 2, 4, 8, 16, 16, 16, 16]
    assert pauses[-1] == MAX_BACKOFF


def test_years_of_failures_do_not_grow_into_an_overflow() -> None:
    breaker = CLOSED
    for _ in range(5_000):
        breaker = breaker.open(now=0.0)

    assert breaker.retry_at == PAUSE_S * MAX_BACKOFF


def test_after_a_success_the_first_pause_is_short_again() -> None:
    worn = CLOSED.open(1.0).open(2.0).open(3.0)

    assert worn.close().open(now=10.0).retry_at == 10.0 + PAUSE_S


def test_it_opens_at_the_third_timeout_in_a_row() -> None:
    first = CLOSED.timeout(1.0, began=0.9)
    second = first.timeout(2.0, began=1.9)
    third = second.timeout(3.0, began=2.9)

    assert (first.closed, second.closed, third.closed) == (True, True, False)
    assert third == CLOSED.open(3.0)


def test_a_reply_between_timeouts_starts_the_count_anew() -> None:
    breaker = CLOSED.timeout(1.0, began=0.9).timeout(2.0, began=1.9).success()

    assert breaker.timeouts == 0
    assert breaker.timeout(3.0, began=2.9).timeout(4.0, began=3.9).closed


def test_a_probe_that_times_out_lengthens_the_pause() -> None:
    breaker = CLOSED.open(now=10.0).timeout(now=20.0, began=19.9)

    assert breaker.retry_at == 20.0 + 2 * PAUSE_S


class BreakerInAnyOrder(RuleBasedStateMachine):
    """Whatever happens: closed only while things work, and a pause that is never too long."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(pause_s=PAUSE_S)
        self.now = 0.0
        self.failed = 0
        """Timeouts since the last reply."""

    @rule(seconds=st.floats(0, 100))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def reply(self) -> None:
        if self.breaker.closed:
            self.breaker = self.breaker.success()
            self.failed = 0

    @rule()
    def probe_succeeds(self) -> None:
        self.breaker = self.breaker.close()
        self.failed = 0

    @rule()
    def time_out(self) -> None:
        self.failed += 1
        was_closed = self.breaker.closed
        self.breaker = self.breaker.timeout(self.now, began=self.now)
        assert self.breaker.closed is (was_closed and self.failed < TIMEOUTS_TO_OPEN)

    @rule()
    def lose(self) -> None:
        self.failed = TIMEOUTS_TO_OPEN
        self.breaker = self.breaker.open(self.now)
        assert not self.breaker.closed
        assert self.breaker.retry_at >= self.now + PAUSE_S

    @invariant()
    def no_pause_is_longer_than_the_longest(self) -> None:
        assert self.breaker.retry_at <= self.now + PAUSE_S * MAX_BACKOFF


TestBreakerInAnyOrder = BreakerInAnyOrder.TestCase


def test_reads_that_hang_together_count_once() -> None:
    """One hiccup with three callers is not three timeouts in a row."""
    breaker = CLOSED
    for _ in range(50):
        breaker = breaker.timeout(2.0, began=1.9)

    assert breaker.closed
    assert breaker.timeouts == 1
