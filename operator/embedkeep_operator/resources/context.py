"""What the builders need to know and the resource does not say."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SERVICE_MONITORS = "servicemonitors.monitoring.coreos.com"
RULES = "prometheusrules.monitoring.coreos.com"
CERTIFICATES = "certificates.cert-manager.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What stands for an image that the resource leaves out. The operator resolves it once."""

    node: str
    """Of nodes, of the predictor, and of an embedder that only asks somebody else's."""
    embedder: str
    """With torch."""
    embedder_cpu: str
    """With ONNX Runtime."""
    valkey: str
    """With valkey-server on its PATH, and sh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """Pods of others, for the network policies."""

    namespace: str | None = None
    """None: every namespace."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """That they carry. Empty: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Around one resource: where it is, and what the cluster and the operator bring."""

    namespace: str
    """The resource's."""
    uid: str
    """The resource's: owner of all that is built."""
    images: Images
    pull_secrets: tuple[str, ...] = ()
    """Secrets with registry credentials, used beside those that the resource names."""
    kinds: frozenset[str] = frozenset()
    """Names of the CustomResourceDefinitions that the cluster has; what is of another optional kind
    is not built."""
    cluster_domain: str = "cluster.local"
    """Behind the names of Services."""
    operator: Pods | None = None
    """The operator's own pods, which talk to Valkeys. None: it runs outside of the cluster."""
    scrapers: tuple[Pods, ...] = ()
    """Whose Prometheus may read metrics. Empty: nobody's."""
    tuned: Mapping[str, float] = field(default_factory=dict)
    """Values that nodes take over while they run, by name, see `NodeConfig.tuned_file`. Empty: all
    stay as the resource says."""
