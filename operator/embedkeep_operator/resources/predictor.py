"""The predictor: a job that plans, from what was asked for, what to compute ahead of time."""

from typing import Final

from lightkube.models.batch_v1 import CronJobSpec, JobSpec, JobTemplateSpec
from lightkube.models.core_v1 import Container, EnvVar
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.batch_v1 import CronJob

from embedkeep_operator.api import EmbeddingCache
from embedkeep_operator.api_nodes import Nodes
from embedkeep_operator.api_pods import PodTemplate
from embedkeep_operator.resources.amounts import predictor_resources
from embedkeep_operator.resources.configs import PREDICTOR_FILE, predictor_files
from embedkeep_operator.resources.context import Context
from embedkeep_operator.resources.names import Component, labels, meta, of
from embedkeep_operator.resources.pods import (
    CONFIG,
    SCRATCH,
    SECRETS,
    config_volume,
    environment,
    mounted,
    pod,
    restricted,
    scratch_volume,
    secrets_volume,
    template,
)
from embedkeep_operator.resources.security import keys_of_predictor

PREDICTOR: Final = "predictor"
"""Name of the container."""
LATE_S: Final = 300
"""How late a job may start; later the next one is waited for."""
DONE_WITHIN_S: Final = 1200
"""A job that takes longer is ended: a Valkey has half a minute to answer, and there may be many."""
KEPT_S: Final = 86_400
"""How long a job that has ended can be looked at."""


def build_predictor(resource: EmbeddingCache, context: Context) -> CronJob | None:
    """None: no history is kept, so there is nothing to predict from."""
    warmup = resource.spec.warmup
    files = predictor_files(resource, context)
    if warmup is None or files is None:
        return None
    # Set up as the nodes' pods are, whose image it runs.
    nodes = resource.spec.nodes or Nodes()
    chosen = nodes.pod_template or PodTemplate()
    spec = pod(
        resource,
        context,
        nodes,
        containers=[
            Container(
                name=PREDICTOR,
                image=nodes.image or context.images.node,
                args=["predictor", "--config", str(CONFIG / PREDICTOR_FILE)],
                env=environment(chosen, [EnvVar(name="HOME", value=str(SCRATCH))]),
                resources=predictor_resources(),
                securityContext=restricted(),
                terminationMessagePolicy="FallbackToLogsOnError",
                volumeMounts=[
                    mounted("config", CONFIG),
                    mounted("secrets", SECRETS),
                    mounted("tmp", SCRATCH, writable=True),
                ],
            )
        ],
        volumes=[
            config_volume("config", of(resource, "predictor")),
            secrets_volume("secrets", keys_of_predictor(resource)),
            scratch_volume("tmp"),
        ],
        restart="Never",
    )
    return CronJob(
        metadata=meta(resource, context, of(resource, "predictor"), Component.PREDICTOR),
        spec=CronJobSpec(
            schedule=" ".join(warmup.schedule.split()),
            concurrencyPolicy="Forbid",
            startingDeadlineSeconds=LATE_S,
            successfulJobsHistoryLimit=1,
            failedJobsHistoryLimit=1,
            jobTemplate=JobTemplateSpec(
                metadata=ObjectMeta(labels=labels(resource, Component.PREDICTOR)),
                spec=JobSpec(
                    backoffLimit=2,
                    activeDeadlineSeconds=DONE_WITHIN_S,
                    ttlSecondsAfterFinished=KEPT_S,
                    template=template(resource, spec, Component.PREDICTOR, chosen, read_once=files),
                ),
            ),
        ),
    )
