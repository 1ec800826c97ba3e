"""The command's frame: what it lists, how it fails, and that it starts fast."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import embedkeep.cli
from embedkeep.cli import COMMANDS, Command, main
from embedkeep.errors import InvalidConfig, Unavailable

ROOT = Path(__file__).parents[2]


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_help_lists_every_command_and_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--help", capsys=capsys)

    assert code == 0
    for name in ("up", "embed", "status", "node", "embedder", "predictor", "operator", "bench"):
        assert f"\n  {name} " in out
    assert "embedkeep up examples/quickstart.yaml" in out


def test_help_imports_no_command() -> None:
    """Else one extra that is missing, or one slow library, would be everybody's."""
    probe = (
        "import sys, embedkeep\nbefore = set(sys.modules)\nfrom embedkeep.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('embedkeep_operator', 'embedkeep.cli.', 'embedkeep.node', 'onnx', 'rich')\n"
        "print([m for m in {*sys.modules} - before if m.startswith(heavy)], file=sys.stderr)"
    )
    found = subprocess.run(
        [sys.executable, "-c", probe], check=True, capture_output=True, text=True
    )

    assert found.stderr.strip() == "[]"


@pytest.mark.parametrize("name", [name for name, each in COMMANDS.items() if each.target])
def test_every_command_explains_itself_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(name, "--help", capsys=capsys)

    assert code == 0
    assert f"embedkeep {name} " in out.partition("Example")[2]


@pytest.mark.parametrize("name", ["bench"])
def test_what_is_not_built_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([name], [name, "--whatever", "x"]):
        code, _, err = run(*arguments, capsys=capsys)

        assert (code, err) == (2, f"error: `embedkeep {name}` is not built yet\n")


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", capsys=capsys) == (0, "embedkeep, version 0.1.0\n", "")


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("upp", capsys=capsys)

    assert code == 2
    assert "No such command 'upp'" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "none.yaml"], "error: none.yaml: cannot be read: No such file or directory\n"),
        (["node", "--config", "none.json"],
         "error: none.json: cannot be read: No such file or directory\n"),
        (["embedder", "--config", "none.json"],
         "error: none.json: cannot be read: No such file or directory\n"),
    ],
    ids=["up", "node", "embedder"],
)  # fmt: skip
def test_a_wrong_file_is_named_without_a_traceback(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, capsys=capsys) == (2, "", said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["embed", "--api-key-file", "none.key", "a"], "--api-key-file: none.key cannot be read"),
        (["embed", "--tls-ca", "none.pem", "a"], "--tls-ca: none.pem cannot be read"),
        (
            ["embed", "--tls-cert", "some.pem", "a"],
            "--tls-cert: give both --tls-cert and",
        ),
        (["export", "--texts", "none.txt", "-o", "x.jsonl"], "--texts: none.txt cannot be read"),
        (
            ["export", "--texts", "none.txt", "-o", "x.npy"],
            "--output: x.npy: export writes",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_named_by_the_flag_that_was_given(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(*arguments, "--address", "127.0.0.1:1", capsys=capsys)

    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")


def test_wishes_that_are_not_built_end_up_with_all_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run("up", str(ROOT / "examples" / "full.yaml"), capsys=capsys)

    assert (code, out) == (2, "")
    assert "spec.embedder.managed.replicas: 2 is not built yet; use 1, or leave it out\n" in err
    assert 'spec.tuning.mode: Recommend is not built yet; use "Off"\n' in err


def test_secrets_that_are_missing_are_all_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = str(ROOT / "examples" / "tenants.yaml")
    state = ["--state-dir", str(tmp_path / "state")]

    code, _, without = run("up", file, *state, capsys=capsys)
    assert code == 2
    assert "spec.security.tls.secretName: give --secrets DIR with the file docs-tls/tls.crt" in (
        without
    )

    (tmp_path / "search-key").mkdir()
    (tmp_path / "search-key" / "apiKey").write_text("k")
    code, _, some = run("up", file, *state, "--secrets", str(tmp_path), capsys=capsys)
    assert code == 2
    assert f"there is no file {tmp_path}/support-key/apiKey" in some
    assert f"there is no file {tmp_path}/search-key/apiKey" not in some


def test_status_where_nothing_runs_says_what_would_help(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("status", "--state-dir", str(tmp_path), capsys=capsys) == (
        2, "", "error: no cache runs here: start one with `embedkeep up FILE`\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InvalidConfig("no", field="x"), 2, "error: x: no\n"),
        (Unavailable("gone"), 1, "error: gone\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["wrong", "failed", "interrupted"],
)
def test_errors_become_exit_codes(
    error: BaseException,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(embedkeep.cli.cli, "main", fail)

    found = run("node", capsys=capsys)

    assert (found[0], found[2].strip()) == (code, said.strip())


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Command("embedkeep_none.there:x", "Nothing.", "local")
    monkeypatch.setitem(COMMANDS, "up", missing)

    code, _, err = run("up", "x.yaml", capsys=capsys)

    assert code == 2
    assert "`embedkeep up` needs embedkeep_none, which is not installed" in err
    assert "pip install 'embedkeep[local]'" in err


def test_a_reader_that_leaves_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        found = subprocess.run(
            [sys.executable, "-m", "embedkeep.cli", "--help"],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writer)

    assert (found.returncode, found.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Missing option '--config', or a command: export."),
        (
            ("--config", "c.json", "export", "m", "--output", "o"),
            "--config does not go with export",
        ),
        (("export", "m"), "Missing option '--output'"),
        (("export", "m", "--output", "o", "--quantize", "int4"), "'int4' is not 'int8'"),
    ],
)
def test_an_embedder_runs_by_a_config_or_exports_a_model(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run("embedder", *arguments, capsys=capsys)

    assert code == 2
    assert said in err
