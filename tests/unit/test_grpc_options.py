import re
from pathlib import Path

from grpc._cython import cygrpc

SOURCES = Path(__file__).parent.parent.parent / "cache_node" / "embedkeep"


def test_grpc_knows_every_option_that_is_set() -> None:
    """It ignores a name that it does not know: clients once pinged more often than allowed."""
    known = Path(cygrpc.__file__).read_bytes()

    set_here = {
        name
        for source in SOURCES.rglob("*.py")
        for name in re.findall(r'\("(grpc\.[a-z0-9_.]+)",', source.read_text())
    }

    assert len(set_here) > 10
    assert [name for name in sorted(set_here) if name.encode() not in known] == []
