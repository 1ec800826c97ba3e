from hypothesis import given
from hypothesis import strategies as st

from embedkeep.client.embedding import utf8_bytes
from embedkeep.client.options import Ask
from embedkeep.client.splitting import PartLimits, inputs_an_answer_holds, split
from embedkeep.client.wire import request_of
from embedkeep.views import Encoding

TEXTS = st.lists(st.text(max_size=60), min_size=1, max_size=60)


@given(texts=TEXTS, max_inputs=st.integers(1, 20), room=st.integers(0, 500))
def test_every_input_is_in_one_part_in_order_and_each_part_fits(
    texts: list[str], max_inputs: int, room: int
) -> None:
    ask = Ask(model="docs", prompt="query", dimensions=4)
    base = request_of((), ask, Encoding.FLOAT32).ByteSize()
    sizes = [utf8_bytes(text) for text in texts]
    limits = PartLimits(
        max_inputs=max_inputs, max_bytes=base + max(sizes) + 6 + room, base_bytes=base
    )

    parts = list(split(range(len(texts)), sizes, limits))

    assert [index for part in parts for index in part] == list(range(len(texts)))
    for part in parts:
        message = request_of([texts[index] for index in part], ask, Encoding.FLOAT32)
        assert 0 < len(part) <= max_inputs
        assert message.ByteSize() <= limits.max_bytes


@given(texts=TEXTS)
def test_what_fits_one_request_is_one_request(texts: list[str]) -> None:
    sizes = [utf8_bytes(text) for text in texts]
    limits = PartLimits(max_inputs=len(texts), max_bytes=sum(sizes) + 6 * len(texts))

    assert [list(range(len(texts)))] == list(split(range(len(texts)), sizes, limits))


@given(text=st.text())
def test_utf8_bytes_are_those_of_the_encoding(text: str) -> None:
    assert utf8_bytes(text) == len(text.encode())


@given(
    dimensions=st.integers(1, 5000), itemsize=st.sampled_from([2, 4]),
    max_bytes=st.integers(64 << 10, 8 << 20),
)  # fmt: skip
def test_an_answer_of_that_many_rows_fits_a_message(
    dimensions: int, itemsize: int, max_bytes: int
) -> None:
    rows = inputs_an_answer_holds(dimensions=dimensions, itemsize=itemsize, max_bytes=max_bytes)

    assert rows >= 1
    assert rows == 1 or rows * (dimensions * itemsize + 20) + 100 <= max_bytes
