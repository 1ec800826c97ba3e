"""What the processes of a cache are told: the files in its ConfigMaps.

All pods of a component read the same files. What differs from pod to pod they are told by the
kubelet: a node's name among the members by --member, a Valkey's address by its environment.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lightkube.resources.core_v1 import ConfigMap
from pydantic import BaseModel

from embedkeep.config import ClientTls, Cluster, Listen, Member, ValkeyTarget
from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.render import (
    Neighbours,
    Place,
    embedder_config,
    node_config,
    server_tls,
    tls_secret,
)
from embedkeep_operator.render_valkey import start_script, valkey_config
from embedkeep_operator.render_warming import predictor_config
from embedkeep_operator.resources import ports
from embedkeep_operator.resources.context import Context
from embedkeep_operator.resources.names import (
    Component,
    host_of,
    meta,
    of,
    pod_host_of,
    pods_of,
    shards,
)
from embedkeep_operator.resources.pods import CONFIG, SECRETS, TUNED
from embedkeep_operator.resources.security import (
    CLUSTER_SECRET_KEY,
    PASSWORD_KEY,
    auth_of,
    client_tls_in,
)

NODE_FILE: Final = "node.json"
TUNED_FILE: Final = "tuned.json"
PREDICTOR_FILE: Final = "predictor.json"
EMBEDDER_FILE: Final = "embedder.json"
VALKEY_FILE: Final = "valkey.conf"
VALKEY_START: Final = "start.sh"
VALKEY_DATA: Final = Path("/data")
MODEL_CACHE: Final = Path("/model-cache")
"""Where a claim for downloads is mounted, and for models that were converted."""
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  # a pod's own network


def node_files(resource: EmbeddingCache, context: Context) -> Mapping[str, str]:
    """Of the nodes."""
    at = ports.node_ports(resource)
    tls = client_tls_in(resource, context, SECRETS)
    members = tuple(
        Member(
            name=pod,
            address=f"{pod_host_of(resource, context, pod)}:{at.grpc}",
            valkey_host=pod_host_of(resource, context, pod),
            valkey_port=ports.VALKEY,
        )
        for shard in shards(resource)
        for pod in pods_of(resource, shard)
    )
    config = node_config(
        resource,
        Place(
            grpc=Listen(host=EVERYWHERE, port=at.grpc),
            http=Listen(host=EVERYWHERE, port=at.http),
            metrics=Listen(host=EVERYWHERE, port=at.metrics),
            secrets=SECRETS,
            tuned_file=TUNED / TUNED_FILE,
        ),
        Neighbours(
            embedder=f"dns:///{host_of(context, of(resource, 'embedder'))}:{ports.EMBEDDER}",
            embedder_tls=tls,
            valkey_host="127.0.0.1",
            valkey_port=ports.VALKEY,
            valkey_password_file=SECRETS / auth_of(resource) / PASSWORD_KEY,
            valkey_tls=tls,
            cluster_secret_file=SECRETS / auth_of(resource) / CLUSTER_SECRET_KEY,
            cluster=Cluster(members=members, tls=tls),
        ),
    )
    return {NODE_FILE: _written(config)}


def embedder_files(resource: EmbeddingCache) -> Mapping[str, str]:
    """Of the embedders."""
    source = resource.spec.model.source
    kept = source is not None and source.hub is not None and source.hub.cache_claim is not None
    config = embedder_config(
        resource,
        Place(
            grpc=Listen(host=EVERYWHERE, port=ports.EMBEDDER),
            metrics=Listen(host=EVERYWHERE, port=ports.METRICS),
            secrets=SECRETS,
            hub_cache=MODEL_CACHE / "hub" if kept else None,
            tls=server_tls(resource, SECRETS),
        ),
        work_dir=MODEL_CACHE / "converted" if kept else None,
    )
    return {EMBEDDER_FILE: _written(config)}


def predictor_files(resource: EmbeddingCache, context: Context) -> Mapping[str, str] | None:
    """Of the predictor. None: no history is kept to predict from."""
    tls = client_tls_in(resource, context, SECRETS)
    config = predictor_config(
        resource,
        [
            ValkeyTarget(
                host=pod_host_of(resource, context, pod),
                port=ports.VALKEY,
                password_file=SECRETS / auth_of(resource) / PASSWORD_KEY,
                tls=ClientTls(ca_file=tls.ca_file, server_name=tls.server_name) if tls else None,
            )
            for shard in shards(resource)
            for pod in pods_of(resource, shard)
        ],
        cluster_secret_file=SECRETS / auth_of(resource) / CLUSTER_SECRET_KEY,
    )
    return {PREDICTOR_FILE: _written(config)} if config is not None else None


def valkey_files(resource: EmbeddingCache) -> Mapping[str, str]:
    """Of the Valkeys. Each is a member of a cluster, so that there can be more of them one day."""
    name = tls_secret(resource)
    return {
        VALKEY_FILE: valkey_config(
            resource,
            host="*",
            port=ports.VALKEY,
            folder=VALKEY_DATA,
            bus_port=ports.VALKEY_BUS,
            tls=SECRETS / name if name is not None else None,
        ),
        VALKEY_START: start_script(
            config=CONFIG / VALKEY_FILE,
            password_file=SECRETS / auth_of(resource) / PASSWORD_KEY,
            clustered=True,
        ),
    }


def build_node_config(resource: EmbeddingCache, context: Context) -> ConfigMap:
    """What nodes are told."""
    return _map(resource, context, Component.NODE, "node", node_files(resource, context))


def build_valkey_config(resource: EmbeddingCache, context: Context) -> ConfigMap:
    """What Valkeys are told, and how they are started."""
    return _map(resource, context, Component.NODE, "valkey", valkey_files(resource))


def build_embedder_config(resource: EmbeddingCache, context: Context) -> ConfigMap:
    """What embedders are told."""
    return _map(resource, context, Component.EMBEDDER, "embedder", embedder_files(resource))


def build_tuned(resource: EmbeddingCache, context: Context) -> ConfigMap:
    """What nodes take over while they run."""
    said = json.dumps(dict(context.tuned), sort_keys=True) + "\n"
    return _map(resource, context, Component.NODE, "tuned", {TUNED_FILE: said})


def build_predictor_config(resource: EmbeddingCache, context: Context) -> ConfigMap | None:
    """What the predictor is told. None: there is none."""
    files = predictor_files(resource, context)
    if files is None:
        return None
    return _map(resource, context, Component.PREDICTOR, "predictor", files)


def _map(
    resource: EmbeddingCache,
    context: Context,
    component: Component,
    suffix: str,
    files: Mapping[str, str],
) -> ConfigMap:
    return ConfigMap(
        metadata=meta(resource, context, of(resource, suffix), component), data=dict(files)
    )


def _written(config: BaseModel) -> str:
    """Only what is not the default: a newer operator that knows more fields writes the same."""
    return config.model_dump_json(indent=1, exclude_defaults=True) + "\n"
