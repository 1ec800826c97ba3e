"""Which of a CPU's instruction sets decide an int8 model's bits, and its weights' bits."""

import pytest

from embedkeep.embedder import cpu

EPYC = """\
processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu vme sse2 avx f16c avx2 fma avx512f avx512dq avx512bw avx512vl avx512_vnni
bugs\t\t: sysret_ss_attrs

processor\t: 1
flags\t\t: fpu
"""
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve\nCPU part\t: 0xd40\n"
APPLE = """\
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.arm.caps: 868050
"""


@pytest.mark.parametrize(
    ("found", "has", "lacks"),
    [
        (cpu.of_cpuinfo(EPYC), {"avx2", "avx512_vnni"}, {"amx_int8"}),
        (cpu.of_cpuinfo(GRAVITON), {"asimddp", "i8mm", "sve"}, {"sme"}),
        (cpu.of_cpuinfo(""), set(), {"avx2"}),
        (cpu.of_sysctl(APPLE), {"asimddp", "i8mm"}, {"sme"}),
        (cpu.of_sysctl(""), set(), {"asimddp"}),
    ],
    ids=["x86", "ARM", "nothing to read", "macOS", "no sysctl"],
)
def test_instruction_sets_are_read_where_the_system_says_them(
    found: frozenset[str], has: set[str], lacks: set[str]
) -> None:
    assert has <= found
    assert not lacks & found


def test_this_cpu_is_read_the_same_each_time() -> None:
    first = cpu.features()

    assert first == cpu.features()
    assert first[1] in {"x86_64", "aarch64"}
    assert len(first) > 2, "an instruction set of this machine is known"


@pytest.mark.parametrize(
    ("found", "bits"),
    [
        (("linux", "x86_64", "avx2", "avx512f", "avx512_vnni"), 8),
        (("linux", "x86_64", "avx2", "avx_vnni"), 8),
        (("linux", "x86_64", "avx2", "avx512f"), 7),
        (("linux", "x86_64"), 7),
        (("linux", "aarch64"), 8),
        (("darwin", "aarch64", "asimddp"), 8),
    ],
    ids=str,
)
def test_weights_have_as_many_bits_as_products_add_up_exactly_with(
    found: tuple[str, ...], bits: int
) -> None:
    assert cpu.weight_bits(found) == bits
