"""The command `maskrcnn`: finds the command's file, makes its options, calls it, and turns errors into one line.

Exit status: 0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from maskrcnn import __version__
from maskrcnn.errors import InputError, InputErrors

DONE, FAILED, WRONG_USE = 0, 1, 2

# Each command is a module of this folder with a dataclass `Options` and a function `run(options) -> exit status`.
COMMANDS = {
    "train": "learn from labelled pictures: weights, scores, curves",
    "predict": "find the objects of pictures: overlays and COCO records",
    "evaluate": "score a detector on labelled pictures: AP, per class, curves",
    "weights": "public checkpoints by name, and conversion of other frameworks' files",
    "demo": "segment real pictures, then learn drawn shapes from nothing",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; the process's own by default); the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    command = args.pop(0) if args else ""
    if command in COMMANDS:
        return _run(command, args)
    if command == "--version":
        print(f"maskrcnn {__version__}")
        return DONE
    if command in ("-h", "--help"):
        print(_help())
        return DONE
    problem = f"no such command; found {command}; expected {', '.join(COMMANDS)}" if command else "no command given"
    print(f"error: {problem}\n\n{_help()}", file=sys.stderr)
    return WRONG_USE


def _run(command: str, args: list[str]) -> int:
    import tyro  # here, so that `maskrcnn --help` is instant

    module = import_module(f"maskrcnn.cli.{command}")
    plain_flags = (tyro.conf.FlagCreatePairsOff,)  # --debug alone, without --no-debug
    try:
        options = tyro.cli(module.Options, prog=f"maskrcnn {command}", args=args, config=plain_flags)
    except SystemExit as stop:  # help was asked for, or the options are wrong
        return stop.code if isinstance(stop.code, int) else WRONG_USE
    return _guarded(module, options)


def _guarded(module: Any, options: Any) -> int:
    """The command's own exit status, or another after one line on stderr; the traceback only with --debug."""
    from maskrcnn.cli.options import WrongUse

    try:
        status: int = module.run(options)
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    except WrongUse as error:
        _explain(str(error), options.debug)
        return WRONG_USE
    except InputErrors as errors:
        for each in errors.errors:
            _explain(str(each), options.debug)
        count = len(errors.errors)
        _explain(f"{count} problem{'s' * (count != 1)}", options.debug)
    except (InputError, OSError) as error:  # OSError: a full disk, a folder that may not be written to
        _explain(str(error), options.debug)
    except Exception as error:  # a fault of ours: the promise of one line holds all the same
        text = " ".join(str(error).split())
        _explain(f"{type(error).__name__}: {text} (unexpected; --debug shows where)", options.debug)
    return FAILED


def _explain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: maskrcnn COMMAND ...\n\nMask R-CNN: a box, a class and a mask for every object of a picture.\n\n"
        f"commands:\n{commands}\n\nmaskrcnn COMMAND --help tells its options; maskrcnn --version the version."
    )
