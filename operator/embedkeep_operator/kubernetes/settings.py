"""What an operator is told by whoever installs it: options, each also an environment variable.

Resources may only name what stands here: images that they leave out, and which Prometheus.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from types import MappingProxyType
from typing import Final

from embedkeep.errors import InvalidConfig
from embedkeep_operator.resources import Images
from embedkeep_operator.resources.names import NAME, OPERATOR

PREFIX: Final = "EMBEDKEEP"
"""Of environment variables: EMBEDKEEP_IMAGE_NODE is --image-node."""
_VERSION: Final = version("embedkeep")
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_URL: Final = re.compile(r"https?://[^\s/]+(/\S*)?")


IMAGES: Final = Images(
    node=f"embedkeep/node:{_VERSION}",
    embedder=f"embedkeep/embedder:{_VERSION}",
    embedder_cpu=f"embedkeep/embedder-cpu:{_VERSION}",
    valkey="valkey/valkey:9",
)
"""Of this release."""
OPERATOR_PODS: Final = MappingProxyType({NAME: OPERATOR})
"""Labels of the operator's own pods, by which network policies let them in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One operator."""

    namespaces: tuple[str, ...] = ()
    """Whose resources it looks after. Empty: all of the cluster's."""
    namespace: str = "default"
    """Where it runs, and keeps its Lease."""
    lease: str = "embedkeep-operator"
    instance: str = "embedkeep-operator"
    """Its own name among others that want the same Lease: the pod's."""
    images: Images = IMAGES
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in each resource's namespace, for pods that name none."""
    prometheus: Mapping[str, str] = field(default_factory=dict)
    """Base URLs by the names that resources may use; the first is the default."""
    cluster_domain: str = "cluster.local"
    metrics_port: int = 9090
    health_port: int = 8081
    workers: int = 8
    """Resources that are worked on at once."""


def prometheus_urls(given: Sequence[str]) -> dict[str, str]:
    """URLs by name, from NAME=URL.

    Raises:
        InvalidConfig: One is not that, or a name is given twice.
    """
    found: dict[str, str] = {}
    for each in given:
        name, _, url = each.partition("=")
        if not (_NAME.fullmatch(name) and _URL.fullmatch(url)):
            raise InvalidConfig(
                f"{each!r}: give NAME=URL, the name of lower-case letters, digits and -: "
                "main=http://prometheus.monitoring:9090",
                field="--prometheus",
            )
        if name in found:
            raise InvalidConfig(f"{name!r} is given twice", field="--prometheus")
        found[name] = url.rstrip("/")
    return found
