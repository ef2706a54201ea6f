"""How long one waits: for `import maskrcnn`, and for the first detection of a process that has just begun."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from maskrcnn.bench.measure import Progress, Timing, say_nothing
from maskrcnn.bench.memory import THREADS_OF
from maskrcnn.bench.options import BenchOptions
from maskrcnn.bench.pictures import cropped
from maskrcnn.bench.rows import Row
from maskrcnn.errors import InputError

IMPORT, FIRST = "import maskrcnn", "cold start to the first detection"
HEAVIEST = 6  # modules that are named
_SIDE = 512  # px, of the picture
_IMPORT_TIME = "import time:"  # begins the lines of Python's -X importtime

_IMPORTING = """
import json, sys, time
began = time.perf_counter()
import maskrcnn
seconds = time.perf_counter() - began
others = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"maskrcnn"}
facts = {"import": seconds, "others": sorted(name for name in others if not name.startswith("_"))}
print(json.dumps({"said": time.time(), **facts}))
"""
_DETECTING = """
import json, sys, time
began = time.perf_counter()
import maskrcnn
imported = time.perf_counter()
model = maskrcnn.load(sys.argv[1], device=sys.argv[2])
loaded = time.perf_counter()
found = model.predict(sys.stdin.buffer.read())
count = len(found.masks.rle()) if found.masks is not None else len(found)
done = time.perf_counter()
facts = {"import": imported - began, "load": loaded - imported, "detect": done - loaded, "found": count}
print(json.dumps({"said": time.time(), **facts}))
"""


def bench_start(options: BenchOptions, weights: str = "nuclei", progress: Progress = say_nothing) -> list[Row]:
    """Each round is a process of its own, timed until it says what it found: Python's own start is part of the wait."""
    picture = cropped(options.pictures, _SIDE)[0].data
    call = [_DETECTING, weights, options.device]
    imports, firsts, whole = [], [], []
    heaviest = _heaviest(call, picture, options)  # this one also has the files read from the disk
    for number in range(options.rounds):
        progress("starting processes", number / options.rounds)
        imports.append(_run([_IMPORTING], b"", options)[0])
        answer, seconds = _run(call, picture, options)
        firsts.append(answer)
        whole.append(seconds)
    return [
        Row(
            work=IMPORT,
            side="maskrcnn",
            unit="process",
            timing=Timing(tuple(each["import"] for each in imports)),
            facts={"other_packages_loaded": ", ".join(imports[0]["others"]) or "none"},
        ),
        Row(
            work=FIRST,
            side=weights,
            unit="process",
            timing=Timing(tuple(whole)),
            facts={
                **{f"{part}_s": _median([each[part] for each in firsts]) for part in ("import", "load", "detect")},
                "found": firsts[0]["found"],
                "heaviest_imports": heaviest,
            },
        ),
    ]


def _median(seconds: list[float]) -> float:
    return Timing(tuple(seconds)).median


def _run(
    call: list[str], stdin: bytes, options: BenchOptions, flags: tuple[str, ...] = ()
) -> tuple[dict[str, Any], float]:
    """(what the program printed as JSON, seconds from its start until it did so)."""
    began = time.time()  # the one clock that both processes read
    answer = json.loads(_process(call, stdin, options, flags).stdout.splitlines()[-1])
    return answer, answer["said"] - began


def _process(
    call: list[str], stdin: bytes, options: BenchOptions, flags: tuple[str, ...]
) -> subprocess.CompletedProcess[bytes]:
    environment: Mapping[str, str] = os.environ | dict.fromkeys(THREADS_OF, str(options.threads))
    words = [sys.executable, *flags, "-c", *call]
    done = subprocess.run(words, input=stdin, capture_output=True, env=environment, check=False)
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        words = [line for line in told if not line.startswith(_IMPORT_TIME)] or ["no words"]
        raise InputError(f"a process of its own failed: {words[-1][:300]}", field="start")
    return done


def _heaviest(call: list[str], picture: bytes, options: BenchOptions) -> str:
    """The packages whose import took longest, with seconds, as Python's own `-X importtime` tells it.

    A package that is first imported by another counts for both.
    """
    told = _process(call, picture, options, ("-X", "importtime")).stderr.decode(errors="replace")
    seconds = packages(told)
    ranked = sorted(seconds.items(), key=lambda item: -item[1])
    ranked = [(name, value) for name, value in ranked if name != "maskrcnn" and name not in sys.stdlib_module_names]
    return ", ".join(f"{name} {value:.2f} s" for name, value in ranked[:HEAVIEST])


def packages(told: str) -> dict[str, float]:
    """Seconds of each top-level package, with what it imported, from the lines of `-X importtime`."""
    lines = re.findall(r"^import time:\s+\d+ \|\s+(\d+) \|\s+(\w+)$", told, re.MULTILINE)
    return {name: int(microseconds) / 1e6 for microseconds, name in lines}
