"""What of this CPU decides the bits of a quantized model.

ONNX Runtime picks its kernels by the CPU's instruction sets. Kernels for wider registers add in
another order, which moves a float32's last bit; where that number is then rounded to an integer,
it now and then becomes another one, and a whole vector moves (see docs/decisions.md).
"""

import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")

_DECIDING: Final = {
    "x86_64": ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl",
               "avx512_vnni", "avx_vnni"),
    "aarch64": ("asimddp", "i8mm", "sve", "sve2", "sme"),
}  # fmt: skip
"""Instruction sets that kernels are chosen by, as Linux names them. Not AMX: its products are
integers, which add up to the same in any order."""

_APPLE: Final = {"FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_SME": "sme"}
"""What macOS calls them."""


def features() -> tuple[str, ...]:
    """The system and the processor's kind, and which deciding instruction sets it has, in order."""
    kind = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    found = of_sysctl(_sysctl()) if sys.platform == "darwin" else of_cpuinfo(_cpuinfo())
    return (sys.platform, kind, *(name for name in _DECIDING.get(kind, ()) if name in found))


def of_cpuinfo(text: str) -> frozenset[str]:
    """Instruction sets in Linux's /proc/cpuinfo: "flags" on x86, "Features" on ARM."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


def of_sysctl(text: str) -> frozenset[str]:
    """Instruction sets in what `sysctl hw.optional.arm` prints on macOS."""
    lines = (line.partition(":") for line in text.splitlines())
    on = {name.rsplit(".", 1)[-1] for name, _, value in lines if value.strip() == "1"}
    return frozenset(ours for theirs, ours in _APPLE.items() if theirs in on)


def weight_bits(found: Iterable[str]) -> int:
    """How many bits an integer weight may have on a CPU with these `features`.

    Without VNNI, x86 adds pairs of products of 8 bits each in 16 bits, and what does not fit is
    cut off; with 7 bits a weight, all fits.
    """
    return 7 if "x86_64" in found and not {"avx512_vnni", "avx_vnni"} & {*found} else 8


def _cpuinfo() -> str:
    try:
        return _CPUINFO.read_text()
    except OSError:
        return ""


def _sysctl() -> str:
    try:
        return subprocess.run(
            ["/usr/sbin/sysctl", "hw.optional.arm"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return ""
