"""Dispatch, exit statuses, and errors of one line."""

from __future__ import annotations

import os
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
from maskrcnn.errors import InputError, InputErrors


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


def test_a_reader_that_leaves_is_no_error() -> None:
    list_all = [sys.executable, "-m", "maskrcnn", "weights", "list", "--json"]
    with subprocess.Popen(list_all, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None and command.stderr is not None
        assert command.stdout.read(1) == "["
        command.stdout.close()  # as `| head` does
        assert (command.stderr.read(), command.wait()) == ("", cli.FAILED)


def test_names_that_are_no_text_are_printed() -> None:
    code = "import sys; from maskrcnn.cli import demo, main; demo.run = lambda options: print('a\\udcff\\u4e2d') or 0; "
    code += "sys.exit(main.main(['demo']))"
    ascii_terminal = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=ascii_terminal)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\\udcff\\u4e2d\n", "")


@pytest.mark.parametrize("count", [2, 50, 51])
def test_many_problems(command: Any, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: Any) -> int:
        raise InputErrors("do not fit", [InputError(f"bad {i}") for i in range(count)], file="a.json")

    command.run = fail
    assert main(["try"]) == cli.FAILED
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines == [f"error: bad {i}" for i in range(min(count, 50))]
    assert last == f"error: a.json: do not fit: {count}" + (", the first 50 above" if count == 51 else "")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("8 GB"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."),  # as torch calls its own
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 GB"),
    ],
)
def test_out_of_memory(command: Any, error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: Any) -> int:
        raise error

    command.run = fail
    assert main(["try"]) == cli.FAILED
    expected = f"error: out of memory: {error}; expected a smaller --batch-size, or smaller pictures\n"
    assert capsys.readouterr().err == expected


def test_a_long_message_of_a_fault_is_cut(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: Any) -> int:
        raise RuntimeError("frame " * 1000)

    command.run = fail
    assert main(["try"]) == cli.FAILED
    shown = capsys.readouterr().err
    assert shown.endswith("frame ... (unexpected; --debug shows where)\n") and len(shown) < 400
