"""How the cache behaves: near misses, warming up, tuning, who may call, who watches."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from embedkeep_operator import cron
from embedkeep_operator.fields import (
    Key,
    Label,
    ObjectName,
    Part,
    Seconds,
    each_name_once,
    exactly_one,
    ordered,
)


class SimilarityMode(StrEnum):
    """Whether near misses are answered."""

    OFF = "Off"
    SHADOW = "Shadow"
    SERVE = "Serve"


Cosine = Annotated[float, Field(ge=0, le=1)]
Budget = Annotated[float, Field(ge=0, le=360_000)]


class Threshold(Part):
    """Cosine from which a near hit is let through; the tuning moves it within min and max."""

    initial: Cosine = 0.95
    """Where it starts: as strict as minCosine is by default, until answers were compared."""
    min: Cosine = 0.9
    """Never lower."""
    max: Cosine = 0.999
    """Never higher."""

    rules = (ordered("min", "initial", "max"),)


class Similarity(Part):
    """Answers for texts that are close to one seen before. Marked, and only where callers agree."""

    mode: SimilarityMode = SimilarityMode.OFF
    """Shadow measures what Serve would answer. Off, because exact answers are never wrong."""
    min_cosine: Cosine = 0.95
    """True cosine that a served answer must keep to the real one."""
    error_budget: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of served answers that may miss minCosine."""
    threshold: Threshold | None = None
    """Of the gate. Absent: its defaults."""


class Predictor(StrEnum):
    """Chooses texts to warm."""

    POPULARITY = "Popularity"
    MARKOV = "Markov"
    NEIGHBOURS = "Neighbours"


class History(Part):
    """Texts kept on purpose, to predict from."""

    enabled: bool = False
    """Off, because it keeps what people typed."""
    retention: Seconds = 30 * 86_400
    """How long a text is kept."""


class WarmupBudget(Part):
    """Device-seconds an hour; the tuning moves it within min and max."""

    initial: Budget = 60
    """Where it starts: one minute of a device an hour."""
    min: Budget = 0
    """Never lower."""
    max: Budget = 600
    """Never higher."""

    rules = (ordered("min", "initial", "max"),)


def _cron(text: str) -> str:
    """*text*, if it is a schedule."""
    cron.parse(text)
    return text


class Warmup(Part):
    """Embeds texts before they are asked for."""

    schedule: Annotated[
        str,
        Field(pattern=r"^\S+\s+\S+\s+\S+\s+\S+\s+\S+$", max_length=100),
        AfterValidator(_cron),
    ] = "*/30 * * * *"
    """When plans are made, as five cron fields, in UTC."""
    predictor: Predictor = Predictor.POPULARITY
    """Popularity is the baseline that the others must beat."""
    history: History | None = None
    """Absent: no texts are kept."""
    budget: WarmupBudget | None = None
    """Absent: its defaults."""


class TuningMode(StrEnum):
    """What becomes of the tuning's decisions."""

    AUTO = "Auto"
    RECOMMEND = "Recommend"
    OFF = "Off"


class Tuning(Part):
    """Moves the threshold and the warm-up budget by what is observed."""

    mode: TuningMode = TuningMode.OFF
    """Recommend only writes to status. Off, because it needs something to observe."""
    prometheus: Label | None = None
    """Name of one that the operator was given. Null: its default one."""
    interval: Seconds = 60
    """Time between two looks."""


class IssuerKind(StrEnum):
    """Kind of a cert-manager issuer."""

    ISSUER = "Issuer"
    CLUSTER_ISSUER = "ClusterIssuer"


class IssuerRef(Part):
    """A cert-manager issuer."""

    name: ObjectName
    """Name of the issuer."""
    kind: IssuerKind = IssuerKind.ISSUER
    """Issuer or ClusterIssuer."""
    group: ObjectName = "cert-manager.io"
    """API group of the issuer."""


class ClientAuth(StrEnum):
    """Whether clients must show a certificate."""

    NONE = "None"
    REQUIRED = "Required"


class Tls(Part):
    """Certificates of the nodes."""

    secret_name: ObjectName | None = None
    """Secret with tls.crt and tls.key, and ca.crt for clientAuth; re-read when it changes."""
    issuer_ref: IssuerRef | None = None
    """Issuer that certificates are asked from."""
    client_auth: ClientAuth = ClientAuth.NONE
    """Required: clients show a certificate signed by ca.crt."""

    rules = (exactly_one("secret_name", "issuer_ref"),)


class ApiKeyRef(Part):
    """A Secret's key that holds API keys, one a line."""

    name: ObjectName
    """Name of the Secret."""
    key: Key = "apiKey"
    """Key in it."""


class Tenant(Part):
    """Who may call, with entries of its own."""

    name: Label
    """Part of every key: a renamed tenant starts empty."""
    api_key_secret_ref: ApiKeyRef
    """Its API keys, one a line; several are valid at once, so that they can be rotated."""


class Security(Part):
    """Who may call, and how."""

    tls: Tls | None = None
    """Absent: plain text."""
    tenants: Annotated[
        tuple[Tenant, ...],
        Field(
            max_length=1000,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """Empty: everybody may call, and all share one partition."""
    imports: bool = False
    """Callers may import vectors that the model has returned elsewhere, for their own tenant; each
    batch is checked against the model by a sample, and hits on them are marked. Off: none are
    taken, and those taken before are not answered, since only a sample speaks for them."""

    rules = (each_name_once("tenants"),)


class Monitoring(Part):
    """Objects for a monitoring stack; each is skipped with a condition where its CRD is missing."""

    service_monitor: bool = False
    """A ServiceMonitor. Off: opt-in."""
    rules_: Annotated[bool, Field(alias="rules")] = False
    """A PrometheusRule. Off: opt-in."""
    dashboard: bool = False
    """A ConfigMap with a dashboard. Off: opt-in."""
