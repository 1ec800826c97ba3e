"""The CustomResourceDefinition, as a real API server takes it."""

import pytest

from support.apiserver import ApiServer, Refused


@pytest.fixture(scope="module")
def server(kubernetes: ApiServer) -> ApiServer:
    """One that knows EmbeddingCaches."""
    kubernetes.define()
    return kubernetes


def test_every_field_is_explained(server: ApiServer) -> None:
    said = " ".join(server.kubectl("explain", "embeddingcache.spec.model").split())

    assert "The model that the cache stands in front of." in said


def test_somebody_who_is_not_known_is_not_let_in(kubernetes: ApiServer) -> None:
    with pytest.raises(Refused, match="Unauthorized"):
        kubernetes.kubectl("--token", "of nobody", "get", "namespaces")
