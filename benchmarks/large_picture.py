"""Memory of `predict` on a 4000 x 3000 picture with 1000 detections, down to the COCO JSON on disk.

    python benchmarks/large_picture.py

Each row is a process of its own: it makes the detector (random weights, every box a detection), remembers its memory,
predicts, writes the JSON, and prints by how much the peak rose above the loaded model.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = [("r50-fpn", "own size"), ("nano", "own size"), ("nano", "native")]


def measure(preset: str, size: str) -> None:
    """One case, in this process."""
    import numpy as np
    import torch

    from maskrcnn.model.mask_rcnn import MaskRCNN
    from maskrcnn.model.presets import preset as make_preset
    from maskrcnn.predictor import Predictor

    torch.manual_seed(0)
    predictor = Predictor(MaskRCNN(make_preset(preset, ("object",), (1,))), "cpu")
    picture = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    predictor.predict(picture[:64, :64])  # what is loaded late belongs to the loaded model
    before = peak_mb()
    began = time.perf_counter()
    found = predictor.predict(
        picture,
        score_threshold=0.0,
        nms_iou=1.0,
        max_detections=1000,
        proposals=1000,
        size="native" if size == "native" else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        kilobytes = found.save(Path(folder) / "found.json").stat().st_size / 1e3
    seconds = time.perf_counter() - began
    print(
        f"{preset:8} {size:9} {len(found):5} detections  {kilobytes:6.0f} kB JSON  "
        f"{seconds:6.1f} s  peak {peak_mb() - before:6.0f} MB above the loaded model"
    )


def peak_mb() -> float:
    """Highest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        measure(options.case[0], options.case[1])
        return
    for preset, size in CASES:
        subprocess.run([sys.executable, __file__, "--case", preset, size], check=True)


if __name__ == "__main__":
    main()
