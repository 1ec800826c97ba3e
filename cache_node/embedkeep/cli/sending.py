"""Pairs on their way into a cache: which are sent, what became of them, and how that is counted."""

import json
from dataclasses import dataclass, field

import numpy as np

from embedkeep import pairs as rules
from embedkeep.cli.asking import said
from embedkeep.cli.journal import Journal, Json
from embedkeep.cli.longrun import FAILURES
from embedkeep.cli.pairs import Pair
from embedkeep.client import CacheInfo, Client, Imported
from embedkeep.client.options import ImportOptions
from embedkeep.errors import InvalidInput, InvalidVector


@dataclass(slots=True)
class Counts:
    """What became of the pairs so far."""

    stored: int = 0
    present: int = 0
    withdrawn: int = 0
    absent: int = 0
    failed: int = 0
    sampled: int = 0
    worst_cosine: float = 1.0
    spent_device_s: float = 0.0

    def __str__(self) -> str:
        """In a line, for people."""
        more = (
            (self.withdrawn, "invalidated meanwhile"),
            (self.absent, "not in the store"),
            (self.failed, "failed"),
        )
        checked = f", worst cosine {self.worst_cosine:.7f}" if self.sampled else ""
        return (
            f"{self.stored:,} stored, {self.present:,} there already"
            + "".join(f", {count:,} {what}" for count, what in more if count)
            + f"; {self.sampled:,} compared by the node{checked}, in {self.spent_device_s:.1f} "
            "device-seconds"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What became of a batch."""

    taken: Imported | None
    """None: no pair of it could be sent."""
    problems: dict[int, str] = field(default_factory=dict)
    """By place in the batch."""


class Sending:
    """Work of a long run: sends batches, counts, names what fails.

    Args:
        how: Of each call.
    """

    name = "import"

    def __init__(
        self, client: Client, info: CacheInfo, how: ImportOptions, journal: Journal
    ) -> None:
        self._client = client
        self._info = info
        self._failures = journal.file(FAILURES)
        self._how = how
        self.counts = _counts(journal.start.state)

    def call(self, batch: list[Pair]) -> _Outcome:
        """See `Work`.

        Raises:
            InvalidVector: The model does not return such a vector for its text.
            EmbedKeepError: The batch was not taken.
        """
        problems = {
            at: why for at, pair in enumerate(batch) if (why := problem_of(pair, self._info))
        }
        good = [at for at in range(len(batch)) if at not in problems]
        while good:
            sent = [batch[at] for at in good]
            how = self._how | ImportOptions(
                tokens=[pair.tokens for pair in sent],
                truncated=[at for at, pair in enumerate(sent) if pair.truncated],
            )
            vectors = np.stack([vector_in(pair) for pair in sent])
            try:
                taken = self._client.import_pairs([pair.text for pair in sent], vectors, **how)
            except InvalidVector as error:
                place = sent[error.index or 0].place
                raise InvalidVector(f"{place}: {said(error)}") from error
            except InvalidInput as error:  # a text: it alone is left out
                problems[good.pop(error.index or 0)] = said(error)
            else:
                return _Outcome(taken=taken, problems=problems)
        return _Outcome(taken=None, problems=problems)

    def take(self, batch: list[Pair], result: _Outcome) -> None:
        """See `Work`."""
        counts = self.counts
        for at, problem in sorted(result.problems.items()):
            if batch[at].absent:
                counts.absent += 1
                continue
            counts.failed += 1
            record = {"place": batch[at].place, "error": problem}
            self._failures.write(json.dumps(record).encode() + b"\n")
        if (taken := result.taken) is not None:
            counts.stored += taken.stored
            counts.present += taken.present
            counts.withdrawn += taken.withdrawn
            counts.sampled += taken.sampled
            counts.worst_cosine = min(counts.worst_cosine, taken.worst_cosine)
            counts.spent_device_s += taken.spent_device_s

    def finish(self) -> None:
        """See `Work`."""

    @property
    def state(self) -> dict[str, Json]:
        """See `Work`."""
        counts = self.counts
        return {
            "stored": counts.stored, "present": counts.present, "withdrawn": counts.withdrawn,
            "absent": counts.absent, "failed": counts.failed, "sampled": counts.sampled,
            "worst_cosine": counts.worst_cosine, "spent_device_s": counts.spent_device_s,
        }  # fmt: skip

    @property
    def note(self) -> str:
        """See `Work`."""
        counts = self.counts
        failed = f", {counts.failed:,} failed" if counts.failed else ""
        return f"{counts.stored:,} stored, {counts.present:,} there already{failed}"


def problem_of(pair: Pair, info: CacheInfo) -> str:
    """Why *pair* cannot be one of the model's, without asking it; empty: it may be."""
    if pair.problem:
        return pair.problem
    vector = vector_in(pair)
    if len(vector) != info.dimensions:
        return f"its vector has {len(vector)} dimensions; {info.model} has {info.dimensions}"
    return rules.faults(vector[None], normalized=False, min_cosine=info.min_cosine).get(0, "")


def vector_in(pair: Pair) -> rules.Rows:
    """The vector of a pair that has no problem."""
    assert pair.vector is not None  # noqa: S101  # it has no problem
    return pair.vector


def _counts(state: dict[str, Json]) -> Counts:
    names = ("stored", "present", "withdrawn", "absent", "failed", "sampled")
    counts = Counts(**{name: int(str(state.get(name, 0))) for name in names})
    counts.worst_cosine = float(str(state.get("worst_cosine", 1.0)))
    counts.spent_device_s = float(str(state.get("spent_device_s", 0.0)))
    return counts
