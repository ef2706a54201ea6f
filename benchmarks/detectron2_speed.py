"""Ours against Detectron2, from JPEG to RLE: the same seeded weights and pictures, the sides take turns.

    python benchmarks/detectron2_speed.py [--variants r50-fpn ...] [--precision float32 bf16] [--rounds 3] [--threads 1]

Needs Detectron2. Weights and variants are those of `detectron2_parity.py`; the pictures two of the bundled ones, which
the network sees as 800 x 1088. Detectron2's side is its own `DefaultPredictor`, then pycocotools' RLE as its evaluator
writes it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import detectron2_parity as parity
import numpy as np
import torch
from rich.console import Console

import maskrcnn
from maskrcnn.bench.comparing import compared
from maskrcnn.bench.pictures import bench_pictures
from maskrcnn.bench.rows import Row
from maskrcnn.bench.sides import Found, Ours, Side, encoded
from maskrcnn.bench.table import notes, rich_tables
from maskrcnn.data.pictures import read_picture


@dataclass
class Detectron2:
    """A side of the comparison. peer: of `detectron2_parity`, which keeps the masks before they are pasted."""

    peer: Any

    def decode(self, data: bytes) -> np.ndarray:
        return np.ascontiguousarray(read_picture(data)[:, :, ::-1])  # it takes BGR

    def detect(self, decoded: np.ndarray) -> Any:
        return self.peer.predictor(decoded)["instances"]

    def encode(self, detected: Any) -> Found:
        masks = self.peer.masks
        return Found(
            boxes=detected.pred_boxes.tensor,
            scores=detected.scores,
            labels=detected.pred_classes + 1,
            probabilities=None if masks is None else torch.from_numpy(masks),
            rles=[] if masks is None else encoded(detected.pred_masks.numpy()),
            size=detected.image_size,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(parity.VARIANTS), default=["r50-fpn"])
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    parity.require_detectron2()
    torch.set_num_threads(options.threads)
    console = Console()
    for variant in options.variants:
        rows = compared_with(variant, options)
        for table in rich_tables(rows):
            console.print(table)
    console.print(*notes(rows), highlight=False, markup=False)


def compared_with(variant: str, options: argparse.Namespace) -> list[Row]:
    sides: dict[str, Side] = {"Detectron2": Detectron2(parity.Peer(parity.VARIANTS[variant], {}))}
    with tempfile.TemporaryDirectory() as folder:
        peer = sides["Detectron2"].peer
        file = parity.fixtures.write_zoo_file(Path(folder) / "model.pkl", peer.state)
        (Path(folder) / "config.yaml").write_text(peer.config_text)
        for precision in options.precision:
            sides[f"ours {precision}"] = Ours(maskrcnn.load(file, precision=precision, device="cpu"))
    pictures = [picture.data for picture in bench_pictures()]
    return compared("picture to RLE", sides, pictures, options.rounds, unit=f"picture, {variant}")


if __name__ == "__main__":
    main()
