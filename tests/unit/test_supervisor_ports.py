"""Which ports a cache gets on this machine."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from embedkeep.errors import InvalidConfig
from embedkeep_operator.api_nodes import Ports
from embedkeep_operator.local.ports import FREE, choose_ports


@pytest.fixture
def first() -> Iterator[int]:
    """A port that is free, and the two after it."""
    for port in range(21_000, 32_000, 3):
        try:
            for offset in range(3):
                socket.create_server(("127.0.0.1", port + offset)).close()
        except OSError:
            continue
        yield port
        return


def test_free_ports_are_none_that_connections_get() -> None:
    """A child that is started again would find its port given away."""
    ports = choose_ports(Ports(), shards=3, wait_s=0)
    given = [each for node in ports.nodes for each in (node.grpc, node.http, node.valkey)]

    assert all(each in FREE for each in (*given, ports.embedder_grpc, ports.embedder_metrics))


def test_one_shard_has_no_bus() -> None:
    ports = choose_ports(Ports(), shards=1, wait_s=0)

    (node,) = ports.nodes
    assert node.bus is None
    numbers = [node.grpc, node.http, node.metrics, node.valkey, ports.embedder_grpc,
               ports.embedder_metrics]  # fmt: skip
    assert len({*numbers}) == 6


def test_nodes_follow_one_another_from_the_port_asked_for(first: int) -> None:
    ports = choose_ports(Ports(grpc=first), shards=3, wait_s=0)

    assert [node.grpc for node in ports.nodes] == [first, first + 1, first + 2]
    assert ports.address == (f"ipv4:127.0.0.1:{first},127.0.0.1:{first + 1},127.0.0.1:{first + 2}")
    assert [*ports.metrics_urls] == ["node-0", "node-1", "node-2", "embedder"]
    numbers = [
        number
        for node in ports.nodes
        for number in (node.grpc, node.http, node.metrics, node.valkey, node.bus)
    ]
    assert len({*numbers, ports.embedder_grpc, ports.embedder_metrics}) == 17


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            Ports(grpc=50051, metrics=50053),
            (
                "spec.nodes.ports.metrics: 50053, for node-0, is also grpc of node-2: with 3 nodes"
                " begin 3 apart, or leave one out for free ports"
            ),
        ),
        (
            Ports(http=9001, metrics=9000),
            (
                "spec.nodes.ports.metrics: 9001, for node-1, is also http of node-0: with 3 nodes"
                " begin 3 apart, or leave one out for free ports"
            ),
        ),
        (
            Ports(http=65534),
            "spec.nodes.ports.http: 65536, for node-2, is past 65535: begin at 65533 or before",
        ),
    ],
)
def test_ports_of_two_fields_that_meet_are_refused(wanted: Ports, said: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        choose_ports(wanted, shards=3, wait_s=0)

    assert str(caught.value) == said


def test_a_port_in_use_is_named_with_its_node(first: int) -> None:
    with (
        closing(socket.create_server(("127.0.0.1", first + 1))),
        pytest.raises(InvalidConfig) as caught,
    ):
        choose_ports(Ports(grpc=first), shards=3, wait_s=0)

    assert str(caught.value).startswith(
        f"spec.nodes.ports.grpc: 127.0.0.1:{first + 1} for node-1 cannot be used: Address already"
    )
