"""Reads a sentence-transformers folder: which modules, how pooled, how long, which files.

Only its description is read here; weights are read by backends. Source of the format: the
sentence-transformers library, releases 2 to 6.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from embedkeep.config import describe
from embedkeep.embedder.source import MODULES_FILE
from embedkeep.errors import InvalidConfig

FIELD = "model.source"
"""What an error here is about: the folder came from there."""


class Pooling(StrEnum):
    """From token vectors to one vector."""

    MEAN = "mean"
    CLS = "cls"
    MAX = "max"
    LAST = "lasttoken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A linear layer after pooling."""

    weights: Path
    """safetensors file: linear.weight (out, in), and linear.bias (out,) where there is one."""
    activation: str
    """Identity or Tanh."""


@dataclass(frozen=True, slots=True)
class Normalize:
    """Scaling to length 1."""


Step = Dense | Normalize


class Transformer(BaseModel):
    """config.json of the transformer: what decides how it is computed."""

    model_type: str
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    max_position_embeddings: int | None = None
    position_embedding_type: str | None = "absolute"
    pad_token_id: int | None = None
    is_decoder: bool = False
    # The names that DistilBERT has for some of these.
    dim: int = 0
    n_layers: int = 0
    n_heads: int = 0
    activation: str = "gelu"
    # MPNet only.
    relative_attention_num_buckets: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A model as its folder describes it."""

    root: Path
    transformer: Path
    """Folder with the transformer's config.json and weights."""
    config: Transformer
    pooling: Pooling
    steps: tuple[Step, ...]
    """What follows pooling, in order."""
    max_tokens: int
    lower_case: bool
    """Lower the text before the tokenizer sees it."""
    files: tuple[Path, ...]
    """All descriptions that were read, absolute; without weights and tokenizer."""

    @property
    def tokenizer(self) -> Path:
        """Its tokenizer.json."""
        return self.transformer / "tokenizer.json"

    @property
    def ready_onnx(self) -> Path | None:
        """An ONNX file that the model brings, or None."""
        for file in (self.transformer / "onnx/model.onnx", self.root / "onnx/model.onnx"):
            if file.is_file():
                return file
        return None

    @property
    def safetensors(self) -> tuple[Path, ...]:
        """Its weights: one file, or shards in order."""
        whole = self.transformer / "model.safetensors"
        return (whole,) if whole.is_file() else tuple(
            sorted(self.transformer.glob("model-*-of-*.safetensors"))
        )  # fmt: skip

    @property
    def normalized(self) -> bool:
        """Whether the last step scales to length 1."""
        return bool(self.steps) and isinstance(self.steps[-1], Normalize)


class _Module(BaseModel):
    path: str
    type: str


class _TransformerModule(BaseModel):
    """sentence_bert_config.json."""

    max_seq_length: int | None = None
    do_lower_case: bool = False


class _Tokenizer(BaseModel):
    """tokenizer_config.json."""

    model_max_length: float | None = None


class _PoolingModule(BaseModel):
    """1_Pooling/config.json, in its old form (one flag a mode) and its new one."""

    pooling_mode: str | tuple[str, ...] | None = None
    pooling_mode_cls_token: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False
    include_prompt: bool = True

    def modes(self) -> tuple[str, ...]:
        """The modes that are on."""
        if self.pooling_mode is not None:
            return (self.pooling_mode,) if isinstance(self.pooling_mode, str) else self.pooling_mode
        flags = {
            "cls": self.pooling_mode_cls_token,
            "max": self.pooling_mode_max_tokens,
            "mean": self.pooling_mode_mean_tokens,
            "mean_sqrt_len_tokens": self.pooling_mode_mean_sqrt_len_tokens,
            "weightedmean": self.pooling_mode_weightedmean_tokens,
            "lasttoken": self.pooling_mode_lasttoken,
        }
        return tuple(name for name, on in flags.items() if on) or ("mean",)


class _DenseModule(BaseModel):
    activation_function: str = "torch.nn.modules.activation.Tanh"
    module_input_name: str = "sentence_embedding"
    module_output_name: str | None = None
    use_residual: bool = False


def read(root: Path, *, max_tokens: int | None = None) -> Folder:
    """Read the folder *root*.

    Args:
        max_tokens: A shorter limit than the model's own. None: the model's own.

    Raises:
        InvalidConfig: A file is missing or broken, or the model has a part that is not known here;
            names the part and what works.
    """
    files = [root / MODULES_FILE]
    modules = _load(TypeAdapter(list[_Module]), files[0])
    kinds = [module.type.rsplit(".", 1)[-1] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise _unknown(root, f"its modules are {', '.join(kinds)}", "Transformer, Pooling first")
    transformer = _inside(root, modules[0].path)
    files.append(transformer / "config.json")
    config = _load(TypeAdapter(Transformer), files[-1])
    pooling = _pooling(root, _inside(root, modules[1].path), files)
    steps = tuple(
        _step(root, kind, _inside(root, module.path), files)
        for kind, module in zip(kinds[2:], modules[2:], strict=True)
    )
    module = _optional(_TransformerModule, transformer / "sentence_bert_config.json", files)
    if not (transformer / "tokenizer.json").is_file():
        raise _unknown(root, "it has no tokenizer.json", "models with a fast tokenizer")
    return Folder(
        root=root,
        transformer=transformer,
        config=config,
        pooling=pooling,
        steps=steps,
        max_tokens=_limit(root, transformer, config, module, max_tokens),
        lower_case=module.do_lower_case,
        files=tuple(files),
    )


def positions(config: Transformer) -> int | None:
    """How many tokens the transformer has positions for; None: any number."""
    if config.max_position_embeddings is None or config.max_position_embeddings < 0:
        return None
    # These count positions from behind the padding's id.
    offset = (
        (config.pad_token_id if config.pad_token_id is not None else 1) + 1
        if config.model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"}
        else 0
    )
    return config.max_position_embeddings - offset


def _limit(
    root: Path,
    transformer: Path,
    config: Transformer,
    module: _TransformerModule,
    asked: int | None,
) -> int:
    most = positions(config)
    own = module.max_seq_length
    if own is None:
        tokenizer = _optional(_Tokenizer, transformer / "tokenizer_config.json", [])
        # Libraries write 1e30 for "no limit".
        if tokenizer.model_max_length is not None and tokenizer.model_max_length < 1 << 20:
            own = int(tokenizer.model_max_length)
    known = [limit for limit in (own, most) if limit is not None]
    if not known and asked is None:
        raise InvalidConfig(
            f"{root} does not say how long a text may be; set it", field="model.max_tokens"
        )
    if asked is None:
        return min(known)
    if most is not None and asked > most:
        raise InvalidConfig(
            f"{asked} is more than the {most} tokens that {root} has positions for",
            field="model.max_tokens",
        )
    return asked


def _pooling(root: Path, path: Path, files: list[Path]) -> Pooling:
    files.append(path / "config.json")
    found = _load(TypeAdapter(_PoolingModule), files[-1])
    modes = found.modes()
    if len(modes) != 1 or modes[0] not in set(Pooling):
        raise _unknown(root, f"its pooling is {' + '.join(modes)}", f"one of {', '.join(Pooling)}")
    if not found.include_prompt:
        raise _unknown(root, "its pooling leaves the prompt out", "include_prompt: true")
    return Pooling(modes[0])


def _step(root: Path, kind: str, path: Path, files: list[Path]) -> Step:
    if kind == "Normalize":
        return Normalize()
    if kind != "Dense":
        raise _unknown(root, f"it has a module {kind}", "Dense and Normalize after Pooling")
    files.append(path / "config.json")
    dense = _load(TypeAdapter(_DenseModule), files[-1])
    activation = dense.activation_function.rsplit(".", 1)[-1]
    if activation not in {"Identity", "Tanh"} or dense.use_residual:
        raise _unknown(
            root,
            f"its module Dense has activation {activation}"
            + (" and a residual" if dense.use_residual else ""),
            "Identity and Tanh, without residual",
        )
    names = {dense.module_input_name, dense.module_output_name or dense.module_input_name}
    if names != {"sentence_embedding"}:
        raise _unknown(root, f"its module Dense works on {', '.join(names)}", "sentence_embedding")
    weights = path / "model.safetensors"
    if not weights.is_file():
        raise _unknown(root, f"its module Dense has no {weights.name}", "safetensors weights")
    return Dense(weights=weights, activation=activation)


_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)


def _load(kind: TypeAdapter[_T], file: Path) -> _T:
    try:
        return kind.validate_json(file.read_bytes())
    except OSError as error:
        raise InvalidConfig(f"{file} cannot be read: {error.strerror}", field=FIELD) from error
    except ValidationError as error:
        raise InvalidConfig(f"{file}: {describe(error)}", field=FIELD) from error


def _optional(kind: type[_M], file: Path, files: list[Path]) -> _M:
    if not file.is_file():
        return kind()
    files.append(file)
    return _load(TypeAdapter(kind), file)


def _inside(root: Path, path: str) -> Path:
    """A module's folder; one that points out of the model's folder is refused."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise InvalidConfig(f"{root / MODULES_FILE}: path {path!r} leaves the folder", field=FIELD)
    return root / path


def _unknown(root: Path, what: str, works: str) -> InvalidConfig:
    return InvalidConfig(f"{root} cannot be run here: {what}; works: {works}", field=FIELD)
