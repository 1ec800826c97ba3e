"""The chart, rendered by a real helm: from HELM, or PATH."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

Json = dict[str, Any]

CHART = Path(__file__).parents[2] / "charts" / "embedkeep"
NAMESPACE = "embedkeep-system"


def helm() -> str:
    """Where helm is; without one the test is skipped."""
    found = shutil.which(os.environ.get("HELM", "helm"))
    if found is None:
        pytest.skip("helm is not there: install it, or name it in HELM")
    return found


def run(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """What helm prints.

    Raises:
        RuntimeError: It fails; the message is what it says.
    """
    done = subprocess.run(
        [helm(), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=90,
    )
    if done.returncode:
        raise RuntimeError(done.stderr or done.stdout)
    return done.stdout


def template(
    *arguments: str, release: str = "embedkeep", namespace: str = NAMESPACE, **values: object
) -> list[Json]:
    """The objects that the chart makes of *values*, in helm's order.

    Args:
        arguments: More of helm's, such as --skip-tests.
        values: By top-level name.
    """
    printed = run(
        "template",
        release,
        str(CHART),
        f"--namespace={namespace}",
        "--kube-version=1.34",
        *arguments,
        *as_flags(values),
    )
    return [each for each in yaml.safe_load_all(printed) if each is not None]


def as_flags(values: dict[str, object]) -> list[str]:
    """*values* as helm takes them on its command line, types kept."""
    return [f"--set-json={name}={json.dumps(value)}" for name, value in values.items()]
