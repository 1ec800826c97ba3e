"""When a process that ended is started again. Pure: chance and time are arguments."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Pauses that double, with chance in them so that several do not start at once."""

    first_s: float = 0.5
    """The first pause, seconds: shorter than a model takes to load."""
    most_s: float = 30.0
    """The longest pause, seconds."""
    jitter: float = 0.2
    """Share of a pause that chance adds or takes."""
    calm_s: float = 60.0
    """Having run this long, a process counts as sound, and the pauses start over."""
    first_tries: int = 3
    """Ends before it was ever ready; then it is given up, because its reason is there to stay."""

    def pause_s(self, ends: int, chance: float) -> float:
        """Seconds to wait after the *ends*-th end in a row.

        Args:
            ends: 1 or more.
            chance: 0 <= chance < 1.
        """
        whole = min(self.most_s, self.first_s * 2.0 ** min(ends - 1, 32))
        return whole * (1 + self.jitter * (2 * chance - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a process has fared so far."""

    ends: int = 0
    """Ends in a row, none of them after a calm run."""
    was_ready: bool = False
    """It was ready at least once since `embedkeep up` began."""

    def after_end(self, *, ready: bool, ran_s: float, policy: Backoff) -> "Record":
        """The record once another run has ended.

        Args:
            ready: It was ready during that run.
            ran_s: How long it ran, seconds.
        """
        calm = ready and ran_s >= policy.calm_s
        return Record(ends=1 if calm else self.ends + 1, was_ready=self.was_ready or ready)

    def hopeless(self, policy: Backoff) -> bool:
        """It never was ready and has had its tries."""
        return not self.was_ready and self.ends >= policy.first_tries
