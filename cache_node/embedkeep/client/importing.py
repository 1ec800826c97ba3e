"""The call that imports pairs, as a state machine (see `exchange`).

It learns the node's limits where they are not known, cuts the pairs into requests, and adds up what
became of them. The first row that a node refuses ends the call.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedkeep.client.embedding import Setting, utf8_bytes
from embedkeep.client.exchange import (
    Exchange,
    Letter,
    Patience,
    Request,
    Response,
    expected,
)
from embedkeep.client.options import ImportAsk
from embedkeep.client.results import CacheInfo, Imported
from embedkeep.client.splitting import PartLimits, split
from embedkeep.client.wire import at_index, info_of
from embedkeep.errors import (
    EmbedderUnavailable,
    EmbedKeepError,
    InvalidInput,
    InvalidRequest,
    InvalidResponse,
    from_wire,
)
from embedkeep.v1 import cache_pb2

ROW_BYTES: Final = 16
"""What a row adds to a request beside its text and vector: tokens, truncated, at most."""


class ImportExchange(Exchange):
    """One call of `import_pairs`.

    Args:
        texts: Already checked to be strings.
        vectors: Shape [n, d].

    Raises:
        InvalidRequest: Columns that do not fit the texts.
    """

    def __init__(
        self,
        texts: Sequence[str],
        vectors: NDArray[np.float32],
        ask: ImportAsk,
        *,
        patience: Patience,
        setting: Setting,
    ) -> None:
        super().__init__(patience, caller=setting.caller, window=setting.parallel)
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        if rows.ndim != 2 or len(rows) != len(texts) or rows.shape[1] == 0:
            raise InvalidRequest(
                f"vectors has shape {np.shape(vectors)}; [{len(texts)}, d] is needed for "
                f"{len(texts)} texts"
            )
        if ask.tokens is not None and len(ask.tokens) != len(texts):
            raise InvalidRequest(f"tokens has {len(ask.tokens)} counts for {len(texts)} texts")
        self._texts, self._rows, self._ask, self._learned = texts, rows, ask, setting.learned
        self._truncated = frozenset(ask.truncated)
        self._responses: list[cache_pb2.ImportResponse] = []
        if (info := setting.learned.info) is None:
            self._waiting.append(Letter())
        else:
            self._cut(info)

    def result(self) -> Imported:
        """Once done."""
        answers = self._responses
        checked = [answer.worst_cosine for answer in answers if answer.sampled]
        return Imported(
            stored=sum(answer.stored for answer in answers),
            present=sum(answer.present for answer in answers),
            withdrawn=sum(answer.withdrawn for answer in answers),
            sampled=sum(answer.sampled for answer in answers),
            worst_cosine=min(checked, default=1.0),
            spent_device_s=sum(answer.spent_device_seconds for answer in answers),
            fingerprint=answers[-1].fingerprint,
            epoch=max(answer.epoch for answer in answers),
        )

    def failed(self, ticket: int, error: EmbedKeepError, now: float) -> None:
        """As for any call; limits that may have changed are asked for again by the next one."""
        if type(error) is InvalidRequest and (info := self._learned.info) is not None:
            self._learned.forget(info)
        super().failed(ticket, error, now)

    def _cut(self, info: CacheInfo) -> None:
        base = self._message((), ()).ByteSize()
        row = self._rows.shape[1] * 4 + ROW_BYTES
        limits = PartLimits(
            max_inputs=info.max_inputs, max_bytes=info.max_message_bytes - 1024, base_bytes=base
        )
        sizes = [utf8_bytes(text) + row for text in self._texts]
        for index, size in enumerate(sizes):
            if size - row > info.max_input_bytes or size > limits.max_input_bytes:
                raise InvalidInput(
                    f"input {index} has {size - row} bytes of UTF-8; at most "
                    f"{info.max_input_bytes} are taken here",
                    index=index,
                )
        parts = split(range(len(self._texts)), sizes, limits)
        self._waiting.extend(Letter(inputs=part) for part in parts)

    def _request(self, letter: Letter) -> Request:
        if letter.inputs is None:
            return cache_pb2.InfoRequest()
        ask = self._ask
        request = self._message(
            [self._texts[index] for index in letter.inputs],
            [place for place, index in enumerate(letter.inputs) if index in self._truncated],
        )
        request.vectors = self._rows[letter.inputs].tobytes()
        if ask.tokens is not None:
            request.tokens.extend(ask.tokens[index] for index in letter.inputs)
        return request

    def _message(self, texts: Sequence[str], truncated: Sequence[int]) -> cache_pb2.ImportRequest:
        ask = self._ask
        return cache_pb2.ImportRequest(
            inputs=texts,
            model=ask.model or "",
            prompt=ask.prompt or "",
            dimensions=self._rows.shape[1],
            truncated=truncated,
            fingerprint=ask.fingerprint or "",
            overwrite=ask.overwrite,
            dry_run=ask.dry_run,
        )

    def _accept(self, letter: Letter, response: Response, now: float) -> None:
        if letter.inputs is None:
            info = info_of(expected(response, cache_pb2.InfoResponse))
            self._learned.take(info)
            if info.dimensions:
                self._cut(info)
                return
            error = EmbedderUnavailable(
                "no embedder was seen yet, so there is nothing to compare with", retry_after_s=1.0
            )
            if not self._again(letter, error, now):
                self._end(error)
            return
        answer = expected(response, cache_pb2.ImportResponse)
        if not answer.errors:
            if answer.stored + answer.present + answer.withdrawn != len(letter.inputs):
                raise InvalidResponse("the node's answer does not fit the number of pairs sent")
            self._responses.append(answer)
            return
        first = answer.errors[0]
        index = letter.inputs[min(first.index, len(letter.inputs) - 1)]
        refusal = from_wire(first.code, first.reason, f"input {index}: {first.message}")
        self._end(at_index(refusal, index))
