"""Texts by which two embedders are told to compute the same.

Each is run alone; vectors are compared by cosine, never hashed, since kernels and devices change
low bits. Of different lengths and kinds, so that a wrong tokenizer, pooling or limit shows.
Changing them makes old and new embedders incomparable: do not.
"""

from types import MappingProxyType
from typing import Final

from embedkeep.config import Dtype, Quantization

TEXTS: Final = (
    "Where is my parcel?",
    "Naïve façade, 42 % off: ÅNGSTRÖM — „quoted“ 東京 🙂",
    "def add(a, b):\n    return a + b  # a comment, 0x1F, snake_case_name",
    (
        "Our office closes at six on weekdays and at noon on Saturdays. If you need help outside "
        "these hours, write to us and we will answer on the next working day; urgent matters "
        "concerning a lost key or a broken lock are taken by telephone at any time, at no extra "
        "cost to you."
    ),
)

_MIN_COSINE: Final = MappingProxyType(
    {Dtype.FLOAT32: 0.9999, Dtype.FLOAT16: 0.999, Dtype.BFLOAT16: 0.99}
)
_MIN_COSINE_INT8: Final = 0.995
"""A last bit that comes out otherwise, from another release of ONNX Runtime, makes other integers
further on, and so moves a vector: to cosine 0.998 at worst of 128 texts, as docs/decisions.md has
it. Weights of 7 bits instead of 8 moved some further than this."""

MIN_UPSTREAM_COSINE: Final = 0.999
"""Below it an upstream, which repeats itself with noise, does not compute the same.

Users of OpenAI's API report repeats that differ from 1e-8 to 1e-4 in each component
(openai-cookbook issue 223), and from the fourth decimal on (langchainjs issue 1246). Over 1,536
dimensions 1e-4 is a cosine of 0.99999, and 5e-4 is one of 0.9998.
"""


def min_cosine(dtype: Dtype, quantization: Quantization) -> float:
    """Below it two embedders do not compute the same."""
    return _MIN_COSINE_INT8 if quantization is Quantization.INT8 else _MIN_COSINE[dtype]
