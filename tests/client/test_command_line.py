"""The command line's manners, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.__main__ import main
from client.arguments import COMMANDS
from serving.ports import free_ports


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert " ".join(["usage: python -m client", *command]) in shown
    assert "--port-base" in shown
    if command:
        assert COMMANDS[command[0]][1] in " ".join(shown.split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "COMMAND"),
        ("dance", "invalid choice: 'dance'"),
        ("predict", "NAME"),
        ("predict m", "either TEXT, or --json, or --file"),
        ("predict m hi --json {}", "either TEXT, or --json, or --file"),
        ("predict m --json [1]", "must be an object"),
        ("predict m --json {", "is not JSON"),
        ("predict m --file /dev/null", "no text in /dev/null"),
        ("predict m hi --param top_k", "is not KEY=VALUE"),
        ("predict m hi --param text=ho", "repeats a field of the request: text"),
        ("predict a/b hi", "cannot be a model's name"),
        ("predict m hi --inference-url nowhere", "is no URL"),
        ("predict m hi --retries -1", "is not between 0"),
        ("predict m hi --timeout 0", "is no number of seconds"),
        ("scale m", "--min-worker"),
        ("scale m --min-worker two", "is no whole number"),
        ("scale m --min-worker 2 --max-worker 1", "cannot be less"),
        ("scale m --min-worker 0 --max-worker 1", "must be 0 too"),
        ("scale m --min-worker 9999999999", "is not between 0"),
        ("set-default m", "VERSION"),
        ("models --port-base 65534", "is not between 1 and 65533"),
    ],
)
def test_wrong_arguments_end_with_2(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(line.split())
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    "line",
    [
        "predict m hi",
        "models",
        "scale m --min-worker 1",
        "register m.mar",
        "unregister m",
        "set-default m 1.0",
        "metrics",
        "ready m --timeout 0.1",
        "predict m --file /no/such/file",
    ],
)
def test_failure_is_one_line_and_1(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = free_ports(3)
    assert main(["--port-base", str(base), *line.split()]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert "Connection refused" in shown.err or "No such file" in shown.err


def test_an_address_is_stronger_than_the_port_base(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = free_ports(3), free_ports(3)
    assert main(["models", "--port-base", str(one), "--management-url", f"http://127.0.0.1:{other}"]) == 1
    assert f"http://127.0.0.1:{other}/models is not there" in capsys.readouterr().err


def test_a_broken_file_is_a_wrong_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9")
    assert main(["predict", "m", "--file", str(tmp_path / "latin")]) == 2
    assert "utf-8" in capsys.readouterr().err
