import re
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent.parent.parent / "cache_node" / "embedkeep"


def test_grpc_knows_every_option_that_is_set() -> None:
    """It ignores a name that it does not know: clients once pinged more often than allowed."""
    library = find_spec("grpc._cython.cygrpc")
    assert library is not None
    assert library.origin is not None
    known = Path(library.origin).read_bytes()

    set_here = {
        name
        for source in SOURCES.rglob("*.py")
        for name in re.findall(r'\("(grpc\.[a-z0-9_.]+)",', source.read_text())
    }

    assert len(set_here) > 10
    assert [name for name in sorted(set_here) if name.encode() not in known] == []
