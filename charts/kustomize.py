"""Writes deploy/kustomize/operator.yaml from what the chart renders: `make kustomize`. Needs helm.

One source, the chart; who does not use helm gets the same, without helm's labels and tests. The
definition of EmbeddingCache is not copied: kustomization.yaml names crds/.
"""

import os
import subprocess
import sys
from pathlib import Path

import yaml

CHARTS = Path(__file__).parent
FILE = CHARTS.parent / "deploy" / "kustomize" / "operator.yaml"
HEADER = "# What charts/embedkeep renders with its defaults, by `make kustomize`. Do not edit.\n"
NAMESPACE = "embedkeep-system"
HELMS = ("helm.sh/chart", "app.kubernetes.io/managed-by")
"""Labels that speak of helm."""


def rendered(helm: str) -> str:
    """What FILE must hold.

    Raises:
        subprocess.CalledProcessError: The chart cannot be rendered; helm says why on stderr.
    """
    made = subprocess.run(
        [helm, "template", "embedkeep", CHARTS / "embedkeep", "--namespace", NAMESPACE,
         "--kube-version", "1.34", "--skip-tests"],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    objects = [
        each
        for each in yaml.safe_load_all(made)
        if each is not None and each["kind"] != "CustomResourceDefinition"
    ]
    for each in objects:
        for label in HELMS:
            del each["metadata"]["labels"][label]
    return HEADER + yaml.safe_dump_all(objects, sort_keys=False, width=100)


if __name__ == "__main__":
    try:
        FILE.write_text(rendered(os.environ.get("HELM", "helm")))
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is not there: install helm, or name it in HELM")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
