"""What every way into a node shares: who calls, what is meant, and how many calls there may be.

The gRPC service and the HTTP facades put their own words around it; nothing here knows either.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from embedkeep import views
from embedkeep.config import NodeConfig
from embedkeep.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    NotBuilt,
    UnknownModel,
)
from embedkeep.node.admission import Admission
from embedkeep.node.cache import Cache
from embedkeep.node.embedders import Embedders
from embedkeep.node.exchange import Answer, Request
from embedkeep.node.tenants import Partition, Tenants

TOKENS_ADVICE: Final = (
    "send texts instead (langchain-openai does so with check_embedding_ctx_length=False)"
)
ROW_BYTES: Final = 288
"""Of a row in a message beside its vector: source, status, tokens, and an error of full length."""


class Calls:
    """All calls to one node, whichever way they come.

    Args:
        config: Names, prompts and limits.
        cache: Answers.
        tenants: Who may call.
        embedders: Know the model's tokenizer.
    """

    def __init__(
        self, *, config: NodeConfig, cache: Cache, tenants: Tenants, embedders: Embedders
    ) -> None:
        self._config = config
        self._cache = cache
        self._embedders = embedders
        self._tenants = tenants
        self._calls = Admission(config.limits.max_concurrent_calls, what="calls", stay=cache.stay)

    def caller(self, metadata: Iterable[tuple[str, str | bytes]]) -> Partition:
        """Whose call this is.

        Args:
            metadata: Names in lower case, as gRPC has them, and values.

        Raises:
            Unauthenticated: No tenant's.
        """
        return self._tenants.authenticate(metadata)

    @contextmanager
    def entered(self, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[Partition]:
        """Count a call in, as its tenant's; strangers are refused before they hold anything.

        Raises:
            Unauthenticated: No tenant's.
            Overloaded: Too many calls, or too many of that tenant.
        """
        tenant = self.caller(metadata)
        self._calls.enter(tenant.tag, 1)
        try:
            yield tenant
        finally:
            self._calls.leave(tenant.tag, 1)

    def timeout_s(self, left_s: float | None) -> float:
        """How long a call may take.

        Args:
            left_s: Of the caller's time, seconds. None: it gave none.

        Raises:
            DeadlineExceeded: Nothing is left.
        """
        if left_s is None:
            return self._config.limits.default_timeout_s
        if left_s <= 0:
            raise DeadlineExceeded("time was up before the request was read")
        return left_s

    async def answer(self, request: Request, tenant: Partition, *, timeout_s: float) -> Answer:
        """Answer a request whose fields were translated and not yet judged.

        Raises:
            InvalidRequest: A field is wrong; names it.
            EmbedKeepError: As `Cache.answer`.
        """
        if request.fresh and request.cached_only:
            raise InvalidRequest(
                "cache_control: no_cache and only_if_cached exclude each other; give at most one"
            )
        if (space := self._cache.space) is not None:
            views.resolve(
                request.view, model_dimensions=space.dimensions, model_normalizes=space.normalized
            )
        return await self._cache.answer(request, tenant, timeout_s=timeout_s)

    async def texts_of(self, rows: Sequence[Sequence[int]], *, timeout_s: float) -> list[str]:
        """Texts of token ids, which no other tokenizer can have meant.

        Raises:
            InvalidInput: A row is not beyond doubt one of the model's tokenizer; says what to do.
            NotBuilt: The embedder has no tokenizer; as above.
            EmbedKeepError: As `Embedders.detokenize`.
        """
        try:
            texts = await self._embedders.detokenize(
                rows, self._cache.serving(), timeout_s=timeout_s
            )
        except NotBuilt as error:
            raise NotBuilt(
                f"token ids cannot be read, because this embedder has no tokenizer: {TOKENS_ADVICE}"
            ) from error
        for index, text in enumerate(texts):
            if not text:
                raise InvalidInput(
                    "these token ids are not beyond doubt what this model's tokenizer makes of a "
                    f"text, with its special tokens: {TOKENS_ADVICE}",
                    index=index,
                )
        return texts

    @property
    def aliases(self) -> list[str]:
        """What callers may say for the model, beside its full name."""
        config = self._config
        return [config.name, *(f"{config.name}:{prompt}" for prompt in config.model.prompts)]

    @property
    def max_message_inputs(self) -> int:
        """Inputs a request, so that any answer fits a message of gRPC."""
        limits, space = self._config.limits, self._cache.space
        row = ROW_BYTES + 4 * (space.dimensions if space else 0)
        return max(1, min(limits.max_inputs, (limits.max_message_bytes - 4096) // row))

    def prompt(self, model: str, name: str) -> str:
        """The prompt that a request asks for, by its name or by the model's alias.

        Raises:
            UnknownModel: No such model here.
            InvalidRequest: No such prompt, or two different ones.
        """
        config = self._config
        served, alias = _split(model, (config.name, config.model.name))
        if not served:
            raise UnknownModel(
                f"model: {model!r} is not served here; this cache has {config.name!r} "
                f"({config.model.name})"
            )
        if alias and name and alias != name:
            raise InvalidRequest(f"prompt: {name!r}, but model names {alias!r}; give one of them")
        if not (wanted := alias or name):
            return ""
        if wanted not in config.model.prompts:
            known = ", ".join(map(repr, config.model.prompts)) or "none"
            raise InvalidRequest(f"prompt: {wanted!r} is unknown; this cache has {known}")
        return config.model.prompts[wanted]


def check_count(count: int, *, most: int) -> None:
    """There is something to embed, and not too much at once.

    Raises:
        InvalidRequest: Says how many fit.
    """
    if count == 0:
        raise InvalidRequest("inputs: none were given; give at least one")
    if count > most:
        raise InvalidRequest(
            f"inputs: {count} were given; at most {most} fit a request: split them, "
            "as embedkeep's own clients do"
        )


def _split(model: str, names: tuple[str, ...]) -> tuple[bool, str]:
    """Whether *model* is one of *names*, and the prompt in it where it is ``name:prompt``."""
    if not model or model in names:
        return True, ""
    for name in names:
        if model.startswith(f"{name}:"):
            return True, model[len(name) + 1 :]
    return False, ""
