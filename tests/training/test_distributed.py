"""Two processes with half a batch each learn what one process learns from the whole.

The processes are started as torchrun starts them, with rank and address in the environment; each runs this file.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskrcnn.losses.box_loss import BoxLossConfig
from maskrcnn.losses.mask_rcnn_loss import LossConfig, MaskRCNNLoss
from maskrcnn.losses.rpn_loss import RPNLossConfig
from maskrcnn.model.anchors import AnchorConfig
from maskrcnn.model.backbone import BackboneConfig
from maskrcnn.model.box_head import BoxHeadConfig
from maskrcnn.model.fpn import FPNConfig
from maskrcnn.model.mask_head import MaskHeadConfig
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.rpn import RPNConfig
from maskrcnn.structures import GtMasks, PolygonShape, Target
from maskrcnn.training.distributed import World, any_rank, from_main, join_world
from maskrcnn.training.loop import wrapped

NORMS = ("frozen", "group")
# how many objects each of four pictures has; the first two are rank 0's, the others rank 1's
SCENES = {"objects everywhere": (3, 1, 2, 4), "none for one rank": (3, 2, 0, 0), "none at all": (0, 0, 0, 0)}
LOSSES = LossConfig(
    rpn=RPNLossConfig(anchors_per_image=32), box=BoxLossConfig(rois_per_image=16), pre_nms_top_n=60, post_nms_top_n=40
)


def model(norm: Any) -> MaskRCNN:
    torch.manual_seed(0)
    body = {"layers": (1, 1, 1, 1), "channels": (8, 12, 16, 24), "stem_type": "deep", "stem_width": 4}
    config = MaskRCNNConfig(
        class_names=("cat", "dog"),
        category_ids=(1, 2),
        backbone=BackboneConfig(name="resnet18", options=body, norm=norm, frozen_stages=0),
        fpn=FPNConfig(channels=16, extra_level=False),
        rpn=RPNConfig(anchors=AnchorConfig(sizes=((8,), (16,), (32,), (64,)))),
        box_head=BoxHeadConfig(fc_channels=32),
        mask_head=MaskHeadConfig(num_convs=1, channels=8, side=14),
    )
    return MaskRCNN(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def sample(index: int, count: int) -> tuple[Tensor, Target]:
    """Picture number `index`, with `count` triangles."""
    rng = np.random.default_rng(index)
    corner = rng.uniform(0, 30, (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(8, 30, (count, 2))])
    rings = [np.array([[x1, y2], [x2, y2], [(x1 + x2) / 2, y1]]) for x1, y1, x2, y2 in boxes]
    target = Target(
        gt_boxes=torch.from_numpy(boxes).float(),
        gt_labels=torch.from_numpy(rng.integers(1, 3, count)),
        gt_masks=GtMasks(tuple(PolygonShape((ring,)) for ring in rings)),
        is_crowd=torch.zeros(count, dtype=torch.bool),
        size=(64, 64),
        sampling_seed=index,
    )
    return torch.from_numpy(rng.integers(0, 256, (3, 64, 64), dtype=np.uint8)), target


def gradients(norm: str, counts: tuple[int, ...], world: World) -> dict[str, Tensor]:
    detector = model(norm).train()
    share = len(counts) // world.size
    mine = range(world.rank * share, (world.rank + 1) * share)
    samples = [sample(i, counts[i]) for i in mine]
    loss_model = wrapped(MaskRCNNLoss(detector, LOSSES), world)  # held until after the backward pass, which it joins
    losses = loss_model(detector.preprocess.batch([picture for picture, _ in samples]), [truth for _, truth in samples])
    losses["total"].backward()
    return {name: p.grad.contiguous() for name, p in detector.named_parameters() if p.grad is not None} | {
        f"loss.{name}": loss.detach() for name, loss in losses.items()
    }


def found_by(world: World) -> dict[str, Tensor]:
    """The gradients of every case, and what the small helpers say."""
    found: dict[str, Tensor] = {}
    for norm in NORMS:
        for scene, counts in SCENES.items():
            values = gradients(norm, counts, world)
            found |= {f"{norm}/{scene}/{name}": value.clone() for name, value in values.items()}
    found["any"] = torch.tensor([any_rank(flag, world) for flag in (False, world.rank == 1, True)])
    found["from main"] = torch.tensor(from_main(10.5 + world.rank, world), dtype=torch.float64)
    found["main"] = torch.tensor(world.is_main)
    return found


def start(folder: Path, size: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(folder)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What one process found, and each of two."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = start(folder, 2)
    alone = found_by(World())
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [alone, *(load_file(folder / f"{rank}.safetensors") for rank in range(2))]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scene", SCENES)
def test_two_processes_learn_what_one_learns(results: list[dict[str, Tensor]], norm: str, scene: str) -> None:
    alone, first, second = results
    names = [name for name in alone if name.startswith(f"{norm}/{scene}/") and "/loss." not in name]
    assert len(names) == len(list(model(norm).parameters()))
    for name in names:
        assert torch.equal(first[name], second[name]), name
        close = 1e-5 * max(1.0, alone[name].abs().max().item())
        torch.testing.assert_close(
            first[name], alone[name], rtol=1e-4, atol=close, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scene", SCENES)
def test_the_mean_of_their_losses_is_that_of_one(results: list[dict[str, Tensor]], norm: str, scene: str) -> None:
    alone, first, second = results
    names = [name for name in alone if name.startswith(f"{norm}/{scene}/loss.")]
    assert len(names) == 6
    for name in names:
        torch.testing.assert_close((first[name] + second[name]) / 2, alone[name], rtol=1e-4, atol=1e-6)
    assert (alone[f"{norm}/{scene}/loss.mask"] > 0) == any(SCENES[scene])


def test_small_agreements(results: list[dict[str, Tensor]]) -> None:
    assert [found["any"].tolist() for found in results] == [[False, False, True], *[[False, True, True]] * 2]
    assert [found["from main"].item() for found in results] == [10.5] * 3
    assert [found["main"].item() for found in results] == [True, True, False]


def test_alone_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join_world("cpu") as world:
        assert world == World()
        assert not torch.distributed.is_initialized()
    assert replace(world, rank=1).is_main is False
    loss = MaskRCNNLoss(model("group"), LOSSES)
    assert wrapped(loss, world) is loss
    assert from_main(2.5, world) == 2.5
    assert any_rank(True, world) and not any_rank(False, world)


if __name__ == "__main__":
    with join_world("cpu") as this:
        save_file(found_by(this), Path(sys.argv[1]) / f"{this.rank}.safetensors")
