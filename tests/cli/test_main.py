"""Dispatch, exit statuses, and errors of one line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

import maskrcnn
from maskrcnn.cli import main as cli
from maskrcnn.cli.main import COMMANDS, main
from maskrcnn.cli.options import CommandOptions, WrongUse
from maskrcnn.errors import InputError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command `try` whose `run` each test sets."""

    @dataclass(frozen=True, kw_only=True)
    class Options(CommandOptions):
        number: int = 1

    module: Any = ModuleType("maskrcnn.cli.try")
    module.Options = Options
    module.run = lambda options: 0
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(COMMANDS, "try", "a command")
    return module


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"maskrcnn {maskrcnn.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["frobnicate"]])
def test_no_such_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("error: no ")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_a_text_for_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "--debug" in capsys.readouterr().out
    module = import_module(f"maskrcnn.cli.{name}")
    assert module.Options.__doc__ and module.run.__doc__


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loads_no_torch(name: str) -> None:
    code = (
        "import sys; from maskrcnn.cli.main import main; "
        f"status = main(['{name}', '--help']); sys.exit(status or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_module_is_a_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "maskrcnn", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"maskrcnn {maskrcnn.__version__}\n")


def test_the_command_decides_the_status(command: Any) -> None:
    command.run = lambda options: options.number
    assert main(["try"]) == 1
    assert main(["try", "--number", "0"]) == 0


@pytest.mark.parametrize("argv", [["--number", "many"], ["--colour", "red"]])
def test_wrong_options(command: ModuleType, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", *argv]) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("is not a picture", file="a.png"), 1, "error: a.png: is not a picture\n"),
        (WrongUse("missing", field="DATA"), 2, "error: DATA: missing\n"),
        (PermissionError(13, "Permission denied", "out"), 1, "error: [Errno 13] Permission denied: 'out'\n"),
        (KeyError("x\ny"), 1, r"error: KeyError: 'x\ny' (unexpected; --debug shows where)" + "\n"),
        (KeyboardInterrupt(), 1, "stopped\n"),
    ],
)
def test_an_error_is_one_line(
    command: Any, error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: Any) -> int:
        raise error

    command.run = fail
    assert main(["try"]) == status
    assert capsys.readouterr().err == message


def test_debug_shows_where(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: Any) -> int:
        raise InputError("is not a picture")

    command.run = fail
    assert main(["try", "--debug"]) == cli.FAILED
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "in fail" in shown
    assert shown.endswith("error: is not a picture\n")
