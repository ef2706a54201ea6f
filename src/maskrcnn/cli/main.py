"""The command `maskrcnn`: finds the command's file, makes its options, calls it, and turns errors into one line.

Exit status: 0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any

from maskrcnn import __version__
from maskrcnn.errors import InputError, InputErrors

DONE, FAILED, WRONG_USE = 0, 1, 2
SHOWN_PROBLEMS = 50  # of one input; a data set of another make has as many as annotations
LONGEST_FAULT = 300  # characters; torch's messages go on with addresses of its own code

# Each command is a module of this folder with a dataclass `Options` and a function `run(options) -> exit status`.
COMMANDS = {
    "train": "learn from labelled pictures: weights, scores, curves",
    "predict": "find the objects of pictures: overlays and COCO records",
    "evaluate": "score a detector on labelled pictures: AP, per class, curves",
    "inspect": "every step of one picture, and why an object was missed: a report, figures",
    "export": "one file for ONNX Runtime, OpenVINO or torch, verified",
    "lineage": "R-CNN, Fast, Faster and Mask R-CNN compared: accuracy, time, the papers' ablations",
    "serve": "a page in the browser: drop a picture, walk through the steps",
    "weights": "public checkpoints by name, and conversion of other frameworks' files",
    "bench": "how fast is it: against torchvision, stage by stage, and this machine's floor",
    "demo": "segment real pictures, then learn drawn shapes from nothing",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; the process's own by default); the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need be no text, nor a terminal know them
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
    from maskrcnn.cli.options import as_wrong_use

    try:
        status: int = module.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    except BrokenPipeError as error:
        if not _nobody_reads():
            _explain(str(error), options.debug)
    except InputErrors as errors:
        for each in errors.errors[:SHOWN_PROBLEMS]:
            _explain(str(each), options.debug)
        count = len(errors.errors)
        place = "" if errors.file is None else f"{errors.file}: "
        first = f", the first {SHOWN_PROBLEMS} above" if count > SHOWN_PROBLEMS else ""
        _explain(f"{place}{errors.problem}: {count}{first}", options.debug)
    except (InputError, OSError) as error:  # OSError: a full disk, a folder that may not be written to
        wrong_use = as_wrong_use(error, options)
        _explain(str(wrong_use or error), options.debug)
        return FAILED if wrong_use is None else WRONG_USE
    except Exception as error:  # a fault of ours: the promise of one line holds all the same
        text = textwrap.shorten(str(error), LONGEST_FAULT, placeholder=" ...")
        if _is_out_of_memory(error):
            text += "; expected a smaller --batch-size, or smaller pictures"
            _explain(f"out of memory: {text}", options.debug)
        else:
            _explain(f"{type(error).__name__}: {text} (unexpected; --debug shows where)", options.debug)
    return FAILED


def _nobody_reads() -> bool:
    """Whether what read our output has gone, as in `maskrcnn weights list | head`: that is no error."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more as it ends
        return True
    return False


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA's own error by name, since torch may not be loaded; a CPU's is known by its text alone."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


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
