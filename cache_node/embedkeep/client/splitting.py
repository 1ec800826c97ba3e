"""Which inputs go into which request. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embedkeep.client.wire import INPUT_OVERHEAD_BYTES, ROW_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class PartLimits:
    """What one request may hold."""

    max_inputs: int
    max_bytes: int
    """Of the whole message."""
    base_bytes: int = 0
    """Of the message without its inputs."""

    @property
    def max_input_bytes(self) -> int:
        """The longest input that fits alone, UTF-8 bytes."""
        return max(self.max_bytes - self.base_bytes - INPUT_OVERHEAD_BYTES, 0)


def inputs_an_answer_holds(*, dimensions: int, itemsize: int, max_bytes: int) -> int:
    """How many rows an answer can have, at least 1."""
    return max(max_bytes // (dimensions * itemsize + ROW_OVERHEAD_BYTES) - 1, 1)


def split(indices: Sequence[int], sizes: Sequence[int], limits: PartLimits) -> Iterator[list[int]]:
    """Cut *indices* into requests, in order, each as full as it may be.

    Args:
        indices: Inputs to send.
        sizes: UTF-8 bytes of each input of the call, by index; those in *indices* must fit alone.
    """
    part: list[int] = []
    room = limits.max_bytes - limits.base_bytes
    for index in indices:
        cost = sizes[index] + INPUT_OVERHEAD_BYTES
        if part and (cost > room or len(part) == limits.max_inputs):
            yield part
            part, room = [], limits.max_bytes - limits.base_bytes
        part.append(index)
        room -= cost
    if part:
        yield part
