"""What GitOps tools say of an object: the libraries that they use, in a small program in Go."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
HEALTH = Path(__file__).parents[3] / "deploy" / "argocd" / "health.lua"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the tools say."""

    kstatus: str
    """InProgress, Current, Failed, Terminating."""
    argocd: str
    """Healthy, Progressing, Degraded, Suspended."""
    message: str
    """Argo CD's."""


def build(folder: Path) -> Path:
    """The program, made in *folder*; without Go, or its modules, the test is skipped."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not there, which kstatus and Argo CD's Lua need")
    program = folder / "gitops"
    done = subprocess.run(
        [go, "build", "-o", program, "."],
        check=False,
        cwd=HERE,
        capture_output=True,
        text=True,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
    )
    if done.returncode:
        pytest.skip(f"tests/support/gitops cannot be built: {done.stderr[-500:]}")
    return program


def judge(program: Path, objects: Iterable[dict[str, Any]]) -> list[Verdict]:
    """What is said of each of *objects*."""
    asked = json.dumps({"health": HEALTH.read_text(), "objects": [*objects]})
    done = subprocess.run(
        [program], check=True, input=asked, stdout=subprocess.PIPE, text=True, timeout=30
    )
    return [Verdict(**each) for each in json.loads(done.stdout)]
