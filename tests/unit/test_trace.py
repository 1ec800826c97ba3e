"""What of a trace is passed on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep.node.trace import MOST_STATE, Trace, trace_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("states", "passed"),
    [
        pytest.param([], "", id="none"),
        pytest.param(["a=1"], "a=1", id="one"),
        pytest.param(["a=1", "b@c=x y"], "a=1,b@c=x y", id="in two headers"),
        pytest.param(["a=1 ,\tb=2, ,"], "a=1,b=2", id="space and nothing between commas"),
        pytest.param(["a"], "", id="no value"),
        pytest.param(["A=1"], "", id="a capital letter"),
        pytest.param(["a=ä"], "", id="beyond ASCII"),
        pytest.param(["a=1,b"], "", id="one bad member spoils all"),
        pytest.param([",".join(f"k{n}=1" for n in range(33))], "", id="too many"),
        pytest.param([f"a={'x' * 256},b={'x' * 256}"], "", id="too long"),
    ],
)
def test_a_state_is_passed_on_as_a_whole_or_not_at_all(states: list[str], passed: str) -> None:
    found = trace_of([("traceparent", PARENT), *(("tracestate", each) for each in states)])

    assert found == Trace(parent=PARENT, state=passed)


@pytest.mark.parametrize(
    "parents",
    [
        pytest.param([], id="none"),
        pytest.param([PARENT, PARENT], id="two"),
        pytest.param([PARENT.upper()], id="capital letters"),
        pytest.param(["ff" + PARENT[2:]], id="a version that there is not"),
    ],
)
def test_without_a_parent_there_is_no_trace(parents: list[str]) -> None:
    metadata = [*(("traceparent", each) for each in parents), ("tracestate", "a=1")]

    assert trace_of(metadata) is None


@given(st.lists(st.text() | st.binary()))
def test_what_is_passed_on_fits_grpcs_metadata(states: list[str | bytes]) -> None:
    found = trace_of([("traceparent", PARENT), *(("tracestate", each) for each in states)])

    assert found is not None
    assert len(found.state) <= MOST_STATE
    assert all(" " <= each <= "~" for each in found.state)
    assert found.state == found.state.strip()
