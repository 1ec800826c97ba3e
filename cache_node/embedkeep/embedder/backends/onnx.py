"""ONNX Runtime on the CPU, float32 or int8: the default where there is no GPU.

A text's vector has the same bits whether it runs alone, batched or padded. ONNX Runtime does not
promise that, so it is tried at load on this very CPU: where padding changes bits, only texts of
one length share a run, and where batching does, each text runs alone. This holds for int8 as well,
because `embedkeep.embedder.quantize` rounds each token by itself.
"""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray

from embedkeep.config import Backend as BackendName
from embedkeep.config import Dtype, EmbedderConfig, Quantization
from embedkeep.embedder import cpu
from embedkeep.embedder.backends import CPU_RUN_TOKENS, About, Tokens, Vectors, runs
from embedkeep.embedder.fingerprint import fingerprint
from embedkeep.embedder.folder import FIELD, Folder
from embedkeep.embedder.onnx_bert import converted
from embedkeep.embedder.onnx_files import cache_folder, parts
from embedkeep.embedder.pooling import tail
from embedkeep.embedder.quantize import BITS_KEY, QUANTIZER, as_int8
from embedkeep.embedder.tokens import Tokenize
from embedkeep.errors import InvalidConfig

log = structlog.stdlib.get_logger()

_TRIAL_LENGTHS: Final = (3, 4, 5, 8, 9, 13, 16, 17, 23, 31, 32, 33, 47, 64, 65)
"""Tokens of the texts that bits are compared on: around the widths that kernels are made for."""

_WARNINGS_AND_WORSE: Final = 3
"""ONNX Runtime's scale; its warnings are about graphs, which users cannot change."""


class Grouping(StrEnum):
    """Which texts may share a run without changing each other's bits."""

    PADDED = "padded"
    EQUAL = "equal"
    ALONE = "alone"


class OnnxBackend:
    """A model in ONNX Runtime. Implements `embedkeep.embedder.backends.Backend`.

    Raises:
        InvalidConfig: Another dtype or device was asked for, or the model cannot be loaded.
    """

    def __init__(self, config: EmbedderConfig, folder: Folder) -> None:
        _check(config)
        self._tokenize = Tokenize(folder)
        self._tail = tail(folder)
        file, weights = _model(config, folder)
        self._session = _session(str(file), config.threads or _cores())
        int8 = _int8(self._session, str(file))
        self._inputs = {wanted.name for wanted in self._session.get_inputs()}
        self._output = _token_output(self._session, str(file))
        probe = self._run([[0, 1]])[0]
        self.about = About(
            fingerprint=fingerprint(
                folder,
                weights=weights,
                revision=config.model.revision,
                backend=BackendName.ONNX,
                dtype=Dtype.FLOAT32,
                int8=int8,
            ),
            dimensions=len(probe),
            max_tokens=folder.max_tokens,
            normalized=folder.normalized,
            backend=BackendName.ONNX,
            device="cpu",
            dtype=Dtype.FLOAT32,
            quantization=Quantization.INT8 if int8 else Quantization.NONE,
        )
        self.grouping = self._try_groupings()
        if self.grouping is not Grouping.PADDED:
            log.warning("slower batches on this CPU", grouping=self.grouping)

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """See `Backend.tokenize`."""
        return self._tokenize(texts)

    def detokenize(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """See `Backend.detokenize`."""
        return self._tokenize.texts_of(rows)

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """See `Backend.embed`."""
        return self._embed(rows, self.grouping)

    def _embed(self, rows: Sequence[Sequence[int]], grouping: Grouping) -> Vectors:
        vectors = np.empty((len(rows), self.about.dimensions), np.float32)
        if grouping is Grouping.ALONE:
            together = [[row] for row in range(len(rows))]
        else:
            padding = CPU_RUN_TOKENS if grouping is Grouping.PADDED else 0
            together = runs([len(row) for row in rows], run_tokens=padding)
        for run in together:
            vectors[run] = self._run([rows[row] for row in run])
        return vectors

    def _run(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """One run of the model, shorter rows padded on the right; a vector for each row."""
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run([self._output], {name: feeds[name] for name in self._inputs})
        return [self._tail(hidden[number, : len(row)]) for number, row in enumerate(rows)]

    def _try_groupings(self) -> Grouping:
        """The widest grouping that keeps the bits of made-up texts of many lengths."""
        lengths = [length for length in _TRIAL_LENGTHS if length <= self.about.max_tokens]
        draw = np.random.default_rng(0)  # any ids do; the same ones give the same answer each time
        rows = [draw.integers(5, 100, length).tolist() for length in lengths for _ in range(2)]
        alone = np.stack([self._run([row])[0] for row in rows])
        if alone.tobytes() == np.stack(self._run(rows)).tobytes():
            return Grouping.PADDED
        if alone.tobytes() == self._embed(rows, Grouping.EQUAL).tobytes():
            return Grouping.EQUAL
        return Grouping.ALONE


def _check(config: EmbedderConfig) -> None:
    if config.dtype is not Dtype.FLOAT32:
        raise InvalidConfig(
            f"{config.dtype} needs backend torch on a GPU; onnx computes in float32", field="dtype"
        )
    if config.device not in {None, "cpu"}:
        raise InvalidConfig(
            f"{config.device!r} needs backend torch; onnx runs on cpu", field="device"
        )


def _model(config: EmbedderConfig, folder: Folder) -> tuple[Path, list[Path]]:
    """The file to run, and the files that decide its weights."""
    work_dir = config.work_dir or cache_folder()
    ready = folder.ready_onnx
    weights = parts(ready) if ready else [*folder.safetensors]
    file = ready or converted(folder, work_dir)
    if config.quantization is Quantization.INT8:
        # Quantized files that hub models bring beside it are not looked for: each maker rounds in
        # another way, and this one keeps a text's bits in any batch.
        bits = cpu.weight_bits(cpu.features())
        file = as_int8(file, work_dir, made_of=parts(file), bits=bits)
    return file, weights


def _int8(session: onnxruntime.InferenceSession, file: str) -> tuple[str, ...]:
    """What decides the bits of a model that was quantized here; empty: it was not."""
    bits = session.get_modelmeta().custom_metadata_map.get(BITS_KEY)
    if bits is None:
        return ()
    found = cpu.features()
    if int(bits) > (most := cpu.weight_bits(found)):
        raise InvalidConfig(
            f"{file} has weights of {bits} bits, whose products this CPU ({' '.join(found)}) cuts "
            f"off; it takes {most}: export the model in float32, and set quantization here",
            field=FIELD,
        )
    return (str(QUANTIZER), bits, *found)


def _session(file: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _WARNINGS_AND_WORSE
    # Idle threads must not spin: they share their cores with a node and a Valkey.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's errors share no narrower base
        raise InvalidConfig(f"ONNX Runtime cannot load {file}: {error}", field=FIELD) from error


def _token_output(session: onnxruntime.InferenceSession, file: str) -> str:
    """The output with a vector for each token."""
    outputs = {found.name: found for found in session.get_outputs()}
    for name in ("last_hidden_state", "token_embeddings"):
        if name in outputs:
            return str(name)
    for name, found in outputs.items():
        if len(found.shape) == 3:  # batch, tokens, hidden
            return str(name)
    raise InvalidConfig(
        f"{file} gives no vectors of tokens, only {', '.join(outputs)}", field=FIELD
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
