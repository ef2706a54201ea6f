"""`maskrcnn serve`: a page in the browser that takes a picture and shows every step to its masks."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from maskrcnn.cli.options import CommandOptions, WrongUse
from maskrcnn.cli.progress import progress_bar
from maskrcnn.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(CommandOptions):
    """Serve a page on which to drop a picture, see every step to its masks, and take the result away.

    Ctrl-C ends it. Pictures and results stay in memory, and are forgotten after half an hour. Needs the extra `serve`.
    """

    weights: Annotated[tuple[str, ...], arg(metavar="W...", help_behavior_hint="(default: what ships)")] = ()
    """Detectors to choose from besides those that ship with the package (nuclei): names or files, as for predict. The
    first is the page's choice at the start."""

    host: str = "127.0.0.1"
    """Address to listen on. 127.0.0.1 is this machine alone, 0.0.0.0 anybody who reaches it: there is no password."""

    port: int = 8000
    """Port to listen on; 0 takes a free one."""

    max_upload_mb: float = 50.0
    """Largest file of a picture, in MB of 1048576 bytes."""

    max_megapixels: float = 120.0
    """Largest picture, in millions of pixels; each takes some 30 bytes while it is at work."""

    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps."""

    precision: Literal["float32", "bf16", "fp16", "int8"] = "float32"
    """Of the network's arithmetic: float32 is exact; bf16 faster where the hardware has it; fp16 for GPUs; int8 for
    CPUs, and for files that `maskrcnn weights quantise` wrote."""


def run(options: Options) -> int:
    """Open the detectors and serve until Ctrl-C."""
    if not 0 <= options.port <= 65535:
        raise WrongUse("impossible value", field="--port", found=options.port, expected="0 to 65535")
    for field, value in (("--max-upload-mb", options.max_upload_mb), ("--max-megapixels", options.max_megapixels)):
        if not 0 < value < 1e6:  # nor is NaN
            raise WrongUse("impossible value", field=field, found=value, expected="a number above 0")
    _require_extra()
    from maskrcnn.serving.server import address, listen, serve

    with listen(options.host, options.port) as listening:  # a port that is taken is told before torch is loaded
        from maskrcnn.predictor import load
        from maskrcnn.serving.app import Accepted, make_app
        from maskrcnn.serving.upload import MIB
        from maskrcnn.serving.work import detector_names

        sources = detector_names(options.weights)
        detectors = {}
        with progress_bar("opening detectors", len(sources)) as update:
            for name, source in sources.items():
                detectors[name] = load(source, device=options.device, precision=options.precision)
                update(len(detectors), len(sources))
        accepted = Accepted(
            upload_bytes=max(1, round(options.max_upload_mb * MIB)), pixels=max(1, round(options.max_megapixels * 1e6))
        )
        app = make_app(detectors, host=options.host, accepted=accepted)
        names = ", ".join(detectors)
        serve(app, listening, lambda: print(f"{address(listening)}  detectors: {names}  (Ctrl-C ends it)", flush=True))
    print("stopped", file=sys.stderr, flush=True)
    if not app.state.jobs.close():  # in the middle of a detection; nothing of it is on disk
        os._exit(0)  # Python ends threads of torch's with a crash
    return 0


def _require_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        problem = f"needs {error.name}"
        raise InputError(problem, field="maskrcnn serve", expected="pip install 'maskrcnn[serve]'") from error
