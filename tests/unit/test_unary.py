"""An answer for the wire."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedkeep import views
from embedkeep.errors import InvalidInput
from embedkeep.node.exchange import Answer
from embedkeep.node.metrics import Result
from embedkeep.node.space import Space
from embedkeep.node.unary import encode, render
from embedkeep.v1 import cache_pb2

DIMENSIONS = 40
SPACE = Space(
    fingerprint="f" * 16,
    dimensions=DIMENSIONS,
    max_tokens=256,
    normalized=False,
    min_canary_cosine=0.9999,
    canaries=np.ones((1, DIMENSIONS), np.float32),
)


@given(
    count=st.integers(1, 60),
    failed=st.sets(st.integers(0, 59), max_size=4),
    view=st.builds(
        views.View,
        dimensions=st.integers(0, DIMENSIONS),
        normalize=st.none() | st.booleans(),
        encoding=st.sampled_from(views.Encoding),
    ),
)
def test_what_is_put_together_by_hand_is_the_same_message(
    count: int, failed: set[int], view: views.View
) -> None:
    answer = Answer.empty(count, SPACE, epoch=7)
    answer.rows[:] = np.random.default_rng(count).standard_normal((count, DIMENSIONS))
    answer.results = [Result.L1] * count
    for index in failed & set(range(count)):
        answer.fail(index, InvalidInput("no"))

    message = cache_pb2.EmbedResponse.FromString(encode(answer, view))

    assert message == render(answer, view)
    itemsize = np.dtype(view.encoding.value).itemsize
    assert len(message.vectors) == count * message.dimensions * itemsize
