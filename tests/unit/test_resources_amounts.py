"""Compute resources: as the API server writes them, and what is worked out from sizes."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkeep_operator.api_embedder import Gpu
from embedkeep_operator.api_nodes import Memory
from embedkeep_operator.api_pods import Resources
from embedkeep_operator.fields import parse_quantity
from embedkeep_operator.resources.amounts import (
    canonical,
    embedder_resources,
    node_resources,
    valkey_limit,
    valkey_resources,
    written,
)

MIB = 1 << 20


@pytest.mark.parametrize(
    ("given", "as_the_server_writes_it"),
    [
        ("1", "1"),
        ("1000m", "1"),
        ("1500m", "1500m"),
        ("0.5", "500m"),
        ("2.25", "2250m"),
        ("0", "0"),
        ("1024Mi", "1Gi"),
        ("1536Mi", "1536Mi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("1000M", "1G"),
        ("1000", "1k"),
        ("7T", "7T"),
        ("1024", "1024"),
        ("100Mi", "100Mi"),
    ],
)
def test_an_amount_is_written_as_the_server_does(given: str, as_the_server_writes_it: str) -> None:
    assert canonical(given) == as_the_server_writes_it


@given(st.integers(0, 1 << 45))
def test_bytes_keep_their_number(nbytes: int) -> None:
    assert parse_quantity(written(nbytes)) == nbytes


@given(
    st.decimals(0, 10_000, places=3),
    st.sampled_from(["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]),
)
def test_writing_it_again_changes_nothing(number: Decimal, suffix: str) -> None:
    once = canonical(f"{number:f}{suffix}")

    assert canonical(once) == once


@given(st.integers(4 * MIB, 1 << 40))
def test_a_valkey_fills_at_most_seven_tenths_of_its_container(maxmemory: int) -> None:
    limit = valkey_limit(Memory(l1=0, valkey=maxmemory))

    assert maxmemory <= 0.7 * limit
    assert maxmemory + 64 * MIB <= limit


def test_a_node_has_room_for_its_entries_and_for_what_is_in_flight() -> None:
    found = node_resources(Memory(l1=1 << 30, valkey=1 << 30), None)

    assert found.requests == {"cpu": "500m", "memory": "1216Mi"}
    assert found.limits == {"memory": "1588Mi"}, "and CPU has none: a throttled node is late"


def test_what_is_asked_for_is_taken_and_the_rest_worked_out() -> None:
    asked = Resources(requests={"cpu": "2000m"}, limits={"memory": "4096Mi"})
    found = node_resources(Memory(l1=1 << 30, valkey=1 << 30), asked)

    assert found.requests == {"cpu": "2", "memory": "1216Mi"}
    assert found.limits == {"memory": "4Gi"}


def test_a_limit_below_what_is_worked_out_lowers_the_request() -> None:
    """Or the API server would refuse the pod."""
    found = node_resources(Memory(), Resources(limits={"memory": "100Mi", "cpu": "100m"}))

    assert found.requests == {"cpu": "100m", "memory": "100Mi"}


def test_a_request_above_what_is_worked_out_raises_the_limit() -> None:
    found = valkey_resources(Memory(), Resources(requests={"memory": "8Gi"}))

    assert found.limits == {"memory": "8Gi"}


def test_devices_are_asked_for_and_limited_alike() -> None:
    found = embedder_resources(
        Gpu(resource="nvidia.com/gpu", count=2), Resources(limits={"memory": "8Gi"})
    )

    assert found.requests == {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "2"}
    assert found.limits == {"memory": "8Gi", "nvidia.com/gpu": "2"}


def test_a_model_of_unknown_size_has_no_limit() -> None:
    assert embedder_resources(None, None).limits is None
