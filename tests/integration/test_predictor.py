"""One run of the predictor: histories in, plans out, whatever is in its way."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from embedkeep.config import PredictorConfig
from embedkeep.history import Asked, add_command, bucket_names, fence_name, plan_name
from embedkeep.plans import Plan, decode, encode
from embedkeep.predictor.main import predict
from support.cluster import Valkeys
from support.histories import SECRET, fence_of, tag_of
from support.node import Node, sources, tapped, until
from support.tap import Tap
from support.valkey import Valkey, free_port, valkey

RETENTION_S = 16 * 3600


def remember(server: Valkey, *texts: str, tenant: str = "", ago_s: float = 0) -> None:
    """Write texts into a history, as nodes do; one that stands there twice was asked for twice."""
    counts = {text: texts.count(text) for text in texts}
    (reply,) = server.run(
        add_command(
            tag_of(tenant),
            [(Asked(prompt="", text=text), times) for text, times in counts.items()],
            fence=fence_of(server, tenant),
            now_s=time.time() - ago_s,
            retention_s=RETENTION_S,
            max_texts=1000,
            max_bytes=1 << 20,
        )
    )
    assert reply == 1, reply


def told(*ports: int, **fields: object) -> PredictorConfig:
    return PredictorConfig.model_validate(
        {
            "name": "docs",
            "valkeys": [{"port": port} for port in ports],
            "history": {"retention_s": RETENTION_S},
            "min_worth": 0.0,
            "timeout_s": 2.0,
        }
        | fields
    )


def tenants(folder: Path, *names: str) -> dict[str, object]:
    (folder / "secret").write_bytes(SECRET)
    return {"cluster_secret_file": str(folder / "secret"), "tenants": names}


def plan_of(server: Valkey, tenant: str = "") -> Plan | None:
    (data,) = server.run(("GET", plan_name(tag_of(tenant))))
    return decode(data) if isinstance(data, bytes) else None


def texts_of(server: Valkey, tenant: str = "") -> list[str] | None:
    plan = plan_of(server, tenant)
    return [each.asked.text for each in plan.texts] if plan is not None else None


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey to be harmed."""
    (tmp_path / "own").mkdir()
    with valkey(tmp_path / "own") as server:
        yield server


async def test_a_plan_names_what_is_asked_for_most_first(store: Valkey) -> None:
    remember(store, "a", "b", "b", "c", "c", "c")

    report = await predict(told(store.port), now_s=time.time())

    assert texts_of(store) == ["c", "b", "a"]
    assert (report.tenants, report.asked, report.planned, report.problems) == (1, 3, 3, [])


async def test_a_cache_that_nobody_has_asked_anything_has_no_plan(store: Valkey) -> None:
    report = await predict(told(store.port), now_s=time.time())

    assert texts_of(store) is None
    assert (report.tenants, report.problems) == (0, [])


async def test_tenants_never_meet_in_plans(store: Valkey, tmp_path: Path) -> None:
    remember(store, "of a", "of both", tenant="a")
    remember(store, "of b", "of both", tenant="b")
    remember(store, "of c", tenant="c")

    await predict(told(store.port, **tenants(tmp_path, "a", "b")), now_s=time.time())

    assert texts_of(store, "a") == ["of a", "of both"]
    assert texts_of(store, "b") == ["of b", "of both"]
    assert texts_of(store, "c") is None


async def test_a_plan_is_bounded(store: Valkey) -> None:
    remember(store, *(f"text {number:03}" for number in range(100)))

    await predict(told(store.port, max_texts=10), now_s=time.time())
    assert len(texts_of(store) or ()) == 10

    await predict(told(store.port, max_bytes=30), now_s=time.time())
    assert len(texts_of(store) or ()) == 30 // len("text 000")


async def test_a_plan_keeps_no_text_longer_than_the_history_would(store: Valkey) -> None:
    remember(store, "old", ago_s=RETENTION_S * 0.9)
    remember(store, "new")
    now_s = time.time()

    await predict(told(store.port), now_s=now_s)

    plan = plan_of(store)
    assert plan is not None
    assert [each.asked.text for each in plan.texts] == ["new"]
    assert plan.expires_at_s <= now_s + RETENTION_S / 2
    assert store.run(("EXPIRETIME", plan_name(tag_of()))) == [plan.expires_at_s]


async def test_a_shorter_retention_is_made_to_hold(store: Valkey) -> None:
    remember(store, "old", ago_s=RETENTION_S / 2)
    shorter = {"retention_s": RETENTION_S // 4}

    await predict(told(store.port, history=shorter), now_s=time.time())

    assert store.run(("EXISTS", *bucket_names(tag_of()))) == [0]


async def test_what_is_withdrawn_while_it_reads_is_in_no_plan(
    store: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(store, "goes")

    def withdrawing(plan: Plan) -> bytes:
        store.run(("HSET", fence_name(tag_of()), "forgotten", 7))
        return encode(plan)

    monkeypatch.setattr("embedkeep.predictor.main.encode", withdrawing)
    report = await predict(told(store.port), now_s=time.time())

    assert texts_of(store) is None
    assert (report.planned, report.withdrawn) == (0, 1)


async def test_each_history_is_found_in_the_shard_that_owns_it(
    whole: Valkeys, tmp_path: Path
) -> None:
    names = [f"t{number}" for number in range(12)]
    home = {name: whole[whole.where(fence_name(tag_of(name)))] for name in names}
    for name in names:
        remember(home[name], f"of {name}", tenant=name)
    assert len({server.port for server in home.values()}) == 3

    ports = [server.port for server in whole.servers.values()]
    report = await predict(told(*ports, **tenants(tmp_path, *names)), now_s=time.time())

    assert report.problems == []
    assert {name: texts_of(home[name], name) for name in names} == {
        name: [f"of {name}"] for name in names
    }


async def test_a_dead_shard_costs_its_own_tenants_plans_and_is_told(
    whole: Valkeys, tmp_path: Path
) -> None:
    names = [f"t{number}" for number in range(12)]
    home = {name: whole.where(fence_name(tag_of(name))) for name in names}
    for name in names:
        remember(whole[home[name]], f"of {name}", tenant=name)
    dead = free_port()

    report = await predict(
        told(dead, whole["a"].port, whole["b"].port, **tenants(tmp_path, *names)),
        now_s=time.time(),
    )

    planned = {name for name in names if texts_of(whole[home[name]], name)}
    assert planned == {name for name in names if home[name] != "c"}
    assert [f"127.0.0.1:{dead}" in problem for problem in report.problems] == [True]


async def test_a_valkey_that_is_away_and_owns_nobodys_history_is_passed_over(
    store: Valkey,
) -> None:
    """As a replica is."""
    remember(store, "a")
    report = await predict(told(free_port(), store.port), now_s=time.time())

    assert texts_of(store) == ["a"]
    assert report.problems == []


async def test_a_valkey_that_hangs_is_given_up(own: Valkey) -> None:
    own.pause()
    try:
        report = await predict(told(own.port, timeout_s=0.3), now_s=time.time())
    finally:
        own.resume()

    assert report.problems == [f"127.0.0.1:{own.port} did not answer within 0.3 s"]


async def test_shards_that_it_was_not_told_of_are_missed(whole: Valkeys, tmp_path: Path) -> None:
    names = [f"t{number}" for number in range(12)]

    report = await predict(told(whole["a"].port, **tenants(tmp_path, *names)), now_s=time.time())

    (problem,) = report.problems
    assert "of 12 tenants lie in none of the 1 Valkeys" in problem


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command: Sequence[str | Path] = (sys.executable, "-m", "embedkeep", "predictor", *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_plans_says_so_as_json_and_ends(store: Valkey, tmp_path: Path) -> None:
    remember(store, "my secret question", "my secret question")
    file = tmp_path / "predictor.json"
    file.write_text(told(store.port).model_dump_json())

    ended = run("--config", file)

    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stderr.splitlines()[-1])
    assert (said["event"], said["planned"], said["asked"]) == ("planned", 1, 1)
    assert "secret" not in ended.stderr + ended.stdout
    assert texts_of(store) == ["my secret question"]


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ("", 2, "is no JSON"),
        ("{}", 2, "valkeys: Field required"),
        ('{"name": "a", "valkeys": []}', 2, "valkeys:"),
        ('{"name": "a", "valkeys": [{"port": 1}], "tenants": ["a"]}', 2, "cluster_secret_file"),
        (
            '{"name": "a", "valkeys": [{"port": 1}], "tenants": ["a"], "cluster_secret_file": "/nothing"}',  # noqa: E501
            2,
            "/nothing cannot be read",
        ),
        ('{"name": "a", "valkeys": [{"port": 1}]}', 1, "valkey 127.0.0.1:1:"),
        (
            '{"name": "a", "valkeys": [{"port": 1, "password_file": "/nothing"}]}',
            1,
            "/nothing",
        ),
    ],
    ids=["empty", "nothing said", "no Valkey", "no secret", "a secret that is missing",
         "a dead Valkey", "a password that is missing"],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, config: str, code: int, said: str) -> None:
    file = tmp_path / "predictor.json"
    file.write_text(config)

    ended = run("--config", file)

    last = ended.stderr.splitlines()[-1]
    assert ended.returncode == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert last.startswith(("error: ", str(file)))


async def test_what_people_asked_for_is_warm_again_after_a_loss(
    tap: Tap, store: Valkey, tmp_path: Path
) -> None:
    """The whole way: asked, kept, planned, lost, warmed, and answered without a computation."""
    fields = {"warmup": {"poll_s": 0.02, "recheck_s": 0.05}, "history": {"flush_s": 0.02}}
    async with tapped(tap, tmp_path, store, l1_bytes=0, **fields) as node:
        for _ in range(3):
            await node.embed("popular")
        await node.embed("rare")
        await _until_written(node, 4)
        config = told(
            store.port, history={"retention_s": 30 * 86_400}, min_worth=0.15, horizon_s=86_400.0
        )
        await predict(config, now_s=time.time())
        (keys,) = store.run(("KEYS", "*"))
        assert isinstance(keys, list)
        store.run(*(("DEL", key) for key in keys if not key.startswith(b"embedkeep")))

        async def warmed() -> bool:
            return await node.metric("embedkeep_warmed_total", result="stored") == 1

        await until(warmed)
        answer = await node.embed("popular", "rare")

    assert sources(answer) == ["valkey", "embedder"]


async def _until_written(node: Node, count: int) -> None:
    async def written() -> bool:
        return await node.metric("embedkeep_history_asks_total", result="written") == count

    await until(written)
