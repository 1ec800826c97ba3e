import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from embedkeep.config import NodeConfig
from embedkeep.errors import InvalidConfig, Unauthenticated
from embedkeep.keys import tenant_salt
from embedkeep.node.tenants import MAX_KEY_SPACES, Partition, Tenants, open_tenants

WAIT_S = 30.0
"""For what must happen; a test that needs it all has failed."""


def a_config(folder: Path, **keys: str) -> NodeConfig:
    """A config with a tenant for each of *keys*: its name, and what its key file holds."""
    (folder / "secret").write_text("0123456789abcdef\n")
    for name, content in keys.items():
        (folder / name).write_text(content)
    return NodeConfig.model_validate(
        {
            "name": "docs",
            "model": {"name": "m"},
            "embedder": {"address": "e:1"},
            "cluster_secret_file": folder / "secret",
            "tenants": [{"name": name, "api_key_file": folder / name} for name in keys],
        }
    )


def caller(tenants: Tenants, key: str) -> str | None:
    """Whose call one with *key* is; None: it is refused."""
    try:
        return tenants.authenticate([("authorization", f"Bearer {key}")]).name
    except Unauthenticated:
        return None


@asynccontextmanager
async def following(tenants: Tenants) -> AsyncIterator[Callable[..., "asyncio.Future[None]"]]:
    """Follow the files; yields how to wait until a key is taken as somebody's."""
    task = asyncio.create_task(tenants.follow(poll_s=0.001), name="api keys")

    async def poll(key: str, name: str | None) -> None:
        async with asyncio.timeout(WAIT_S):
            while caller(tenants, key) != name:
                assert not task.done()
                await asyncio.sleep(0.001)

    yield lambda key, name: asyncio.ensure_future(poll(key, name))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def test_each_key_opens_its_tenants_partition(tmp_path: Path) -> None:
    tenants = open_tenants(a_config(tmp_path, ann="a1\na2\n", bob="\n  b1  \n\n"))

    assert [caller(tenants, key) for key in ("a1", "a2", "b1")] == ["ann", "ann", "bob"]
    assert tenants.required


@pytest.mark.parametrize("key", ["", "a", "a11", "A1", "\n", "é"])
def test_any_other_key_is_refused(tmp_path: Path, key: str) -> None:
    tenants = open_tenants(a_config(tmp_path, ann="a1\n\n"))

    with pytest.raises(Unauthenticated, match="belongs to no tenant"):
        tenants.authenticate([("authorization", f"Bearer {key}")])


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Bearer a1")],
        [("authorization", "bearer a1")],
        [("authorization", "BEARER a1")],
        [("authorization", "Bearer   a1 ")],
        [("authorization", b"Bearer a1")],
        [("x-api-key", "a1")],
        [("x-api-key", b"a1")],
        [("api-key", "a1")],
        [("api-key", "a1"), ("authorization", "Bearer a1"), ("x-api-key", b"a1")],
        [("user-agent", "x"), ("x-api-key", "a1")],
        [("authorization", "Basic a1"), ("x-api-key", "a1")],
    ],
)
def test_a_key_is_found_as_each_client_sends_it(
    tmp_path: Path, metadata: list[tuple[str, str | bytes]]
) -> None:
    tenants = open_tenants(a_config(tmp_path, ann="a1"))

    assert tenants.authenticate(metadata).name == "ann"


@pytest.mark.parametrize(
    "metadata",
    [[], [("authorization", "Basic a1")], [("authorization", "a1")], [("x-other", "a1")]],
)
def test_a_call_without_a_key_is_told_how_to_send_one(
    tmp_path: Path, metadata: list[tuple[str, str | bytes]]
) -> None:
    tenants = open_tenants(a_config(tmp_path, ann="a1"))

    with pytest.raises(Unauthenticated, match="authorization: Bearer KEY"):
        tenants.authenticate(metadata)


@pytest.mark.parametrize("other", ["x-api-key", "api-key"])
@pytest.mark.parametrize("theirs", ["b1", "x1"], ids=["another tenant's", "nobody's"])
def test_two_keys_that_differ_are_refused_by_the_names_of_their_headers(
    tmp_path: Path, other: str, theirs: str
) -> None:
    tenants = open_tenants(a_config(tmp_path, ann="a1", bob="b1"))

    with pytest.raises(Unauthenticated, match=f"authorization and {other} hold different") as error:
        tenants.authenticate([("authorization", "Bearer a1"), (other, theirs)])

    assert theirs not in str(error.value)


def test_without_tenants_everybody_shares_one_partition() -> None:
    config = NodeConfig.model_validate(
        {"name": "docs", "model": {"name": "m"}, "embedder": {"address": "e:1"}}
    )
    tenants = open_tenants(config)

    found = tenants.authenticate([("authorization", "Bearer whatever")])

    assert not tenants.required
    assert tenants.partitions == (found,)
    assert tenants.authenticate([]) is found


def test_a_partition_hangs_on_name_and_secret_and_not_on_api_keys(tmp_path: Path) -> None:
    before = open_tenants(a_config(tmp_path, ann="a1", bob="b1"))
    after = open_tenants(a_config(tmp_path, bob="b2", ann="a2"))

    def keys(tenants: Tenants) -> dict[str, bytes]:
        return {
            each.name: each.keys(fingerprint="fp", prompt="").key("text")
            for each in tenants.partitions
        }

    assert keys(before) == keys(after)
    assert keys(before)["ann"] != keys(before)["bob"]


def test_two_tenants_with_one_key_are_refused(tmp_path: Path) -> None:
    """Which of the two a call is would be a matter of luck."""
    config = a_config(tmp_path, ann="a1\nshared\n", bob="shared")

    with pytest.raises(InvalidConfig, match="ann and bob have the same API key") as refused:
        open_tenants(config)

    assert refused.value.field == "tenants.1.api_key_file"
    assert "shared" not in str(refused.value)


def test_a_key_given_twice_to_one_tenant_is_no_mistake(tmp_path: Path) -> None:
    assert caller(open_tenants(a_config(tmp_path, ann="a1\na1\n")), "a1") == "ann"


@pytest.mark.parametrize("content", ["", "\n\n", "   "])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidConfig, match=r"tenants\.1\.api_key_file: .*bob holds no API key"):
        open_tenants(a_config(tmp_path, ann="a1", bob=content))


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    config = a_config(tmp_path, ann="a1")
    (tmp_path / "ann").unlink()

    with pytest.raises(InvalidConfig, match=r"tenants\.0\.api_key_file: .*ann cannot be read: No"):
        open_tenants(config)


@pytest.mark.parametrize("secret", ["", "fifteen bytes..", "\n" * 20])
def test_a_short_secret_is_refused_without_showing_it(tmp_path: Path, secret: str) -> None:
    config = a_config(tmp_path, ann="a1")
    (tmp_path / "secret").write_text(secret)

    with pytest.raises(InvalidConfig, match="at least 16 random ones are needed") as refused:
        open_tenants(config)

    assert refused.value.field == "cluster_secret_file"
    assert "fifteen" not in str(refused.value)


async def test_a_key_is_rotated_without_a_restart(tmp_path: Path) -> None:
    tenants = open_tenants(a_config(tmp_path, ann="old", bob="b1"))
    (ann, _) = tenants.partitions
    async with following(tenants) as until:
        (tmp_path / "ann").write_text("old\nnew\n")
        await until("new", "ann")
        assert caller(tenants, "old") == "ann"

        (tmp_path / "ann").write_text("new\n")
        await until("old", None)

    assert caller(tenants, "new") == "ann"
    assert tenants.authenticate([("x-api-key", "new")]) is ann


async def test_keys_are_rotated_by_a_link_as_the_kubelet_swaps_it(tmp_path: Path) -> None:
    """A mounted secret is a link to a link; only the folder behind it changes."""
    for version, key in (("v1", "old"), ("v2", "new")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "key").write_text(key)
        # The same time and size: only the file itself is another.
        os.utime(tmp_path / version / "key", ns=(1, 1))
    (tmp_path / "data").symlink_to("v1")
    config = a_config(tmp_path, ann="")
    (tmp_path / "ann").unlink()
    (tmp_path / "ann").symlink_to("data/key")
    tenants = open_tenants(config)
    async with following(tenants) as until:
        (tmp_path / "swap").symlink_to("v2")
        (tmp_path / "swap").replace(tmp_path / "data")

        await until("new", "ann")

    assert caller(tenants, "old") is None


@pytest.mark.parametrize("broken", [None, "", "b1"])
async def test_a_file_that_cannot_be_used_leaves_the_keys_as_they_are(
    tmp_path: Path, broken: str | None
) -> None:
    """Gone, empty, or another tenant's key: a rotation half done must not shut anybody out."""
    tenants = open_tenants(a_config(tmp_path, ann="a1", bob="b1"))
    async with following(tenants) as until:
        (tmp_path / "bob").write_text("b1\nb2\n")
        await until("b2", "bob")
        if broken is None:
            (tmp_path / "ann").unlink()
        else:
            (tmp_path / "ann").write_text(broken)
        (tmp_path / "bob").write_text("b1\nb3\n")
        await asyncio.sleep(0.05)  # nothing tells that a look changed nothing
        meanwhile = [caller(tenants, key) for key in ("a1", "b1", "b2", "b3")]

        (tmp_path / "ann").write_text("a2")
        await until("a2", "ann")

    assert meanwhile == ["ann", "bob", "bob", None]
    assert [caller(tenants, key) for key in ("a1", "b2", "b3")] == [None, None, "bob"]


def test_a_new_epoch_makes_new_keys_at_once() -> None:
    partition = Partition("ann", tenant_salt(b"0123456789abcdef", "ann"))
    before = partition.keys(fingerprint="fp", prompt="").key("a")

    partition.epoch = 1
    after = partition.keys(fingerprint="fp", prompt="")

    assert after.epoch == 1
    assert after.key("a") != before
    assert after.key("a")[:8] == before[:8]


def test_key_makers_are_kept_up_to_a_bound() -> None:
    partition = Partition("ann", tenant_salt(b"0123456789abcdef", "ann"))
    first = partition.keys(fingerprint="fp", prompt="0")
    assert partition.keys(fingerprint="fp", prompt="0") is first

    for n in range(2 * MAX_KEY_SPACES):
        partition.keys(fingerprint="fp", prompt=str(n))

    assert len(partition._spaces) == MAX_KEY_SPACES
    assert partition.keys(fingerprint="fp", prompt="0").key("a") == first.key("a")
