"""What lies in histories and plans, read past the node."""

from pathlib import Path

from embedkeep.history import (
    Fence,
    bucket_names,
    fence_name,
    plan_command,
    plan_name,
    read_bucket,
    read_commands,
)
from embedkeep.keys import tenant_salt, tenant_tag
from embedkeep.plans import Plan, encode
from support.valkey import Valkey

SECRET = b"0123456789abcdef"
FAST = {"flush_s": 0.02}
"""A history that is written at once."""


def tag_of(tenant: str = "") -> bytes:
    """The tag of a tenant; of all callers where there are none."""
    return tenant_tag(tenant_salt(SECRET if tenant else b"", tenant))


def asked(server: Valkey, tenant: str = "") -> dict[str, int]:
    """How often each text was asked for, prompt and text in one."""
    found: dict[str, int] = {}
    for place, reply in enumerate(server.run(*read_commands(tag_of(tenant)))[1:]):
        bucket = read_bucket(reply, place=place)
        for count in bucket.counts if bucket is not None else ():
            text = count.asked.prompt + count.asked.text
            found[text] = found.get(text, 0) + count.most
    return found


def names_of(tenant: str = "") -> list[bytes]:
    """All of a tenant's names in Valkey."""
    tag = tag_of(tenant)
    return [fence_name(tag), plan_name(tag), *bucket_names(tag)]


def write_plan(server: Valkey, plan: Plan, tenant: str = "") -> None:
    """As the predictor does."""
    (reply,) = server.run(
        plan_command(tag_of(tenant), encode(plan), fence=plan.fence, expires_at_s=plan.expires_at_s)
    )
    assert reply == 1, reply


def fence_of(server: Valkey, tenant: str = "") -> Fence:
    """What a tenant has withdrawn, as Valkey knows it."""
    (reply,) = server.run(("HMGET", fence_name(tag_of(tenant)), "epoch", "forgotten"))
    assert isinstance(reply, list)
    epoch, forgotten = (int(each) if each is not None else 0 for each in reply)
    return Fence(epoch=epoch, forgotten=forgotten)


def tenants(folder: Path) -> dict[str, object]:
    """Fields of a node with tenants a and b, whose keys are key-a and key-b."""
    (folder / "secret").write_bytes(SECRET)
    for name in ("a", "b"):
        (folder / name).write_text(f"key-{name}")
    return {
        "cluster_secret_file": str(folder / "secret"),
        "tenants": [{"name": name, "api_key_file": str(folder / name)} for name in ("a", "b")],
    }
