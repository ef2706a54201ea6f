"""A whole training step of Mask R-CNN (ResNet-50, FPN) against torchvision's, in float32 and bfloat16, interleaved.

    python benchmarks/training_step.py --threads 1 --steps 5

Two pictures of 512 x 512 px, 512 RoIs each, of which 128 teach masks; see `maskrcnn/bench/training_step.py`.
"""

from __future__ import annotations

import argparse
import platform

import torch
import torchvision

from maskrcnn.bench.training_step import training_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="px, of square pictures")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed, of each side")
    parser.add_argument("--norm", choices=["frozen", "batch"], default="frozen")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()}"
    print(
        f"{versions}, {options.threads} thread(s), {options.batch} pictures of {options.size} px, {options.norm} norms"
    )
    print(f"{'':28}{'ms a step':>11}{'ratio':>8}{'loss':>9}{'mask RoIs':>11}")
    for row in training_step(size=options.size, batch=options.batch, steps=options.steps, norm=options.norm):
        print(f"{row.name:28}{1000 * row.seconds:11.0f}{row.ratio:8.2f}{row.total:9.3f}{row.mask_rois:11}")


if __name__ == "__main__":
    main()
