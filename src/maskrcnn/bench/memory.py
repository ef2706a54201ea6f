"""The peak of one picture above the loaded model, each side in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maskrcnn.bench.measure import give_back_freed_memory, peak_mb
from maskrcnn.bench.options import BenchOptions, opened
from maskrcnn.bench.peer import Work, torchvision_peer
from maskrcnn.bench.sides import Ours, Side, Theirs, whole
from maskrcnn.errors import InputError
from maskrcnn.weights.opening import load_model

THREADS_OF = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # what libraries read when they start


@dataclass(frozen=True, kw_only=True)
class OneSide:
    """What the process is to load. peer: torchvision in place of ours."""

    weights: str
    config: Mapping[str, Any]
    work: Work
    peer: bool = False
    precision: str = "float32"
    calibration: str | None = None
    device: str = "cpu"
    threads: int = 1

    def load(self) -> Side:
        if not self.peer:
            options = BenchOptions(calibration=self.calibration, device=self.device)
            return Ours(opened(self.weights, self.config, self.precision, options))
        config = load_model(self.weights, dict(self.config)).config  # ours is gone again before the peer is made
        model = torchvision_peer(self.weights, config, self.work)
        if model is None:
            raise InputError("torchvision knows no such detector", file=self.weights)
        return Theirs(model, self.device)


@dataclass(frozen=True)
class Peaks:
    """MB (2**20 bytes) above the loaded model: of the first picture, and of a later one of the same size."""

    first_mb: float
    later_mb: float


def peaks_of(side: OneSide, picture: bytes) -> Peaks:
    """In a fresh process. Errors: `InputError` with the last line of what went wrong in it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.jpg"
        file.write_bytes(picture)
        request = json.dumps({"side": asdict(side), "picture": str(file)})
        answer = in_fresh_process("maskrcnn.bench.memory", request, side.threads)
    return Peaks(**json.loads(answer))


def in_fresh_process(module: str, request: str, threads: int) -> str:
    """The last line that `python -m module request` prints. Errors: `InputError` with the last line of its errors."""
    environment = os.environ | dict.fromkeys(THREADS_OF, str(threads))
    call = [sys.executable, "-m", module, request]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"a measurement in a process of its own failed: {lines[-1][:300]}", field=module)
    return done.stdout.strip().splitlines()[-1]


def main(request: str) -> None:
    """Print the peaks as JSON."""
    import torch

    asked = json.loads(request)
    side = OneSide(**asked["side"] | {"work": Work(**asked["side"]["work"])})
    torch.set_num_threads(side.threads)
    loaded, data = side.load(), Path(asked["picture"]).read_bytes()
    give_back_freed_memory()
    first = peak_mb(lambda: whole(loaded, data), side.device)
    later = peak_mb(lambda: whole(loaded, data), side.device)
    print(json.dumps(asdict(Peaks(first, later))))


if __name__ == "__main__":
    main(sys.argv[1])
