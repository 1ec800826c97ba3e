"""`embedkeep up` with the examples that ask somebody else's embedder."""

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from embedkeep import AsyncClient
from embedkeep.errors import InvalidConfig
from embedkeep_operator.local.runner import Local
from support.upstream import KEY, FakeUpstream, serve, vector_of

EXAMPLES = Path(__file__).parents[2] / "examples"
PRICE = "      pricePerMillionTokens: 1000\n"


@dataclass(frozen=True)
class Place:
    """A resource's file, and where its state goes."""

    folder: Path

    def local(self, name: str, fake: FakeUpstream, *, more: str = "", **options: object) -> Local:
        """The example *name*, with the fake's URL and *more* in it."""
        text = (EXAMPLES / f"{name}.yaml").read_text()
        (url,) = [line for line in text.splitlines() if line.startswith("      url: ")]
        file = self.folder / "cache.yaml"
        file.write_text(text.replace(url, f"      url: {fake.url}") + more)
        return Local(file, state_dir=self.folder / "state", **options)  # type: ignore[arg-type]  # options of Local


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_the_openai_example_runs_and_tells_tokens_and_money(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fake = FakeUpstream(key=KEY)
    async with serve(fake), place.local("openai", fake, more=PRICE) as running:
        fake.forget()
        async with AsyncClient(running.address) as client:
            first = await client.embed(["one", "two"])
            again = await client.embed(["one", "two"])
        said = await status(place)
        kept = [path for path in running.folder.rglob("*") if path.is_file()]
        told = [path for path in kept if KEY.encode() in path.read_bytes()]

    assert (first == again).all()
    assert first.tolist() == [vector_of("one").tolist(), vector_of("two").tolist()]
    assert [sorted(asked) for asked in fake.asked] == [["one", "two"]]
    assert {body["model"] for body in fake.bodies} == {"text-embedding-3-small"}
    assert said["counts"]["saved_tokens"] == 4
    assert said["counts"]["upstream_tokens"]["demand"] == 4
    assert said["counts"]["price_per_million_tokens"] == 1000
    assert told == [], "the key stands in no config and in no log"


async def status(place: Place) -> dict[str, Any]:
    """As JSON says it."""
    command = [sys.executable, "-m", "embedkeep.cli", "status", "--json"]
    state = ["--state-dir", str(place.folder / "state")]
    found = await asyncio.to_thread(
        subprocess.run, [*command, *state], check=True, capture_output=True
    )
    (said,) = json.loads(found.stdout).values()
    assert isinstance(said, dict)
    return said


async def test_the_tei_example_runs(place: Place) -> None:
    fake = FakeUpstream(protocol="tei")
    async with (
        serve(fake),
        place.local("tei", fake) as running,
        AsyncClient(running.address) as client,
    ):
        (row,) = await client.embed(["one"], prompt="query")

    prompt = "Represent this sentence for searching relevant passages: "
    assert row.tolist() == vector_of(f"{prompt}one").tolist()


async def test_a_key_that_is_not_set_is_named_before_anything_starts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    with pytest.raises(
        InvalidConfig, match=r"external\.keyEnv: the variable OPENAI_API_KEY is not"
    ):
        async with place.local("openai", FakeUpstream()):
            pytest.fail("started without a key")


async def test_a_key_that_the_upstream_refuses_ends_up_with_its_field(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    async with serve(FakeUpstream(key=KEY)) as fake:
        with pytest.raises(
            InvalidConfig, match="the upstream refuses the key in the variable"
        ) as e:
            async with place.local("openai", fake):
                pytest.fail("started with a wrong key")

    assert e.value.field == "spec.embedder.external.keyEnv"


async def test_a_key_comes_from_the_secrets_folder(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secrets" / "openai").mkdir(parents=True)
    (tmp_path / "secrets" / "openai" / "token").write_text(KEY)
    fake = FakeUpstream(key=KEY)
    async with serve(fake):
        local = place.local("openai", fake, secrets=tmp_path / "secrets")
        file = place.folder / "cache.yaml"
        file.write_text(
            file.read_text().replace("keyEnv: OPENAI_API_KEY", "secretRef: {name: openai}")
        )
        async with local as running, AsyncClient(running.address) as client:
            assert (await client.embed(["one"])).shape == (1, 8)
