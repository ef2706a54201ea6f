"""The core as one recorded thing: no step in it waits for the device, and what was recorded answers the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn.engine.fuse import fused
from maskrcnn.engine.graphs import Captured, Core, GraphedCore, Run, compiled, each_tensor, eager, graphed
from maskrcnn.engine.tune import cast_
from maskrcnn.model import anchors
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.presets import cascade_r50_fpn, keypoint_r50_fpn, nano, preset, r50_c4, r50_dc5, r50_fpn
from maskrcnn.ops.triton.choice import own_kernels
from maskrcnn.structures import DetectionBatch

NAMES, IDS = ("a", "b", "c"), (1, 2, 3)
THIN = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_type": "deep", "stem_width": 8}
LIMITS = {"pre_nms_top_n": 40, "post_nms_top_n": 20}


def small(config: MaskRCNNConfig) -> MaskRCNNConfig:
    """Few candidates, all of which are good enough."""
    detection = replace(config.detection, score_threshold=0.0, max_detections=10)
    return replace(config, rpn=replace(config.own_rpn, **LIMITS), detection=detection)


SMALL = small(nano(NAMES, IDS))
SMALL = replace(SMALL, backbone=replace(SMALL.backbone, options=THIN))
BASE = r50_fpn(NAMES, IDS)
VARIANTS = {
    "nano": nano(NAMES, IDS),
    "r50-fpn": BASE,
    "r50-c4": r50_c4(NAMES, IDS),
    "r50-dc5": r50_dc5(NAMES, IDS),
    "cascade": cascade_r50_fpn(NAMES, IDS),
    "keypoints": keypoint_r50_fpn(NAMES, IDS),
    "adaptive points": replace(BASE, roi_pooler=replace(BASE.roi_pooler, sampling_ratio=0, aligned=False)),
    "one class for NMS": replace(BASE, detection=replace(BASE.detection, class_agnostic_nms=True)),
    "as Matterport's": replace(
        BASE,
        preprocess=replace(BASE.preprocess, place="centre"),
        rpn=replace(BASE.own_rpn, cut_to="padded", rank_by="probabilities"),
        detection=replace(BASE.detection, best_class_only=True),
    ),
}


class NoCopies(TorchDispatchMode):
    """Refuses every copy between host and device: the host would wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = [value for value in (*args, out) if isinstance(value, Tensor)]
        if "copy" in str(func) and len({tensor.device.type for tensor in held}) > 1:
            raise AssertionError(f"{func} copies between host and device")
        return out


def watched(
    config: MaskRCNNConfig,
    rewrite: Callable[[MaskRCNN], MaskRCNN],
    *kernels: Any,
    also: Callable[[MaskRCNN], Core] = eager,
) -> DetectionBatch:
    """Run the core on a GPU that need not be there: shapes alone are computed, by the rules of the operations.

    What asks for a number that only the device has, or has a shape that hangs on one, raises there. The first pass may
    copy constants to the device. also: makes what is run the second time.
    """
    anchors._made_once.cache_clear()
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            model = rewrite(MaskRCNN(config).eval())
        pixels, sizes = torch.empty(2, 3, 256, 320, device="cuda"), torch.empty(2, 2, device="cuda")
        with own_kernels(*kernels):
            model.detect(pixels, sizes)
            core = also(model)
            with NoCopies() if also is eager else nullcontext():
                found = core(pixels, sizes, config)
    anchors._made_once.cache_clear()
    return found


@pytest.mark.parametrize("config", VARIANTS.values(), ids=list(VARIANTS))
def test_no_step_of_the_core_waits_for_the_device(config: MaskRCNNConfig) -> None:
    pytest.importorskip("triton")
    found = watched(config, lambda model: model, "nms", "roi_align")
    assert found.boxes.shape == (2, 100, 4) and found.boxes.device.type == "cuda"


def test_nor_of_a_fused_one() -> None:
    pytest.importorskip("triton")
    assert watched(nano(NAMES, IDS), fused, "nms", "roi_align").boxes.shape == (2, 100, 4)


def test_the_watch_sees_those_that_do() -> None:
    with pytest.raises(DynamicOutputShapeException):
        watched(BASE, lambda model: model)  # torchvision's kernels

    def copying(model: MaskRCNN) -> MaskRCNN:
        assert model.fpn is not None
        model.fpn.register_forward_pre_hook(lambda module, args: (args[0], torch.ones(2).to("cuda"))[:1])
        return model

    pytest.importorskip("triton")
    with pytest.raises(AssertionError, match="copies between host and device"):
        watched(BASE, copying, "nms", "roi_align")


# --- compiled ---------------------------------------------------------------------------------------------------------


def some(height: int = 64, width: int = 96, count: int = 1) -> tuple[Tensor, Tensor]:
    pixels = torch.randn(count, 3, height, width).contiguous(memory_format=torch.channels_last)
    return pixels, torch.tensor([[height - 4.0, width - 9.0]]).expand(count, -1)


def detector(config: MaskRCNNConfig) -> MaskRCNN:
    model = MaskRCNN(config).eval().requires_grad_(False)
    for layer in (model.own_rpn.objectness, model.own_rpn.deltas, model.box_head.classes, model.box_head.deltas):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def assert_equal(found: DetectionBatch, expected: DetectionBatch, rounding: float = 0.0) -> None:
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        assert (ours is None) == (theirs is None), field.name
        if theirs is not None:
            torch.testing.assert_close(
                ours, theirs, rtol=rounding, atol=rounding, msg=lambda text, name=field.name: f"{name}: {text}"
            )


@pytest.mark.filterwarnings("ignore:.*create_unbacked_symint:FutureWarning")  # raised by torchvision
def test_compiled_is_one_graph_for_each_shape_and_equal() -> None:
    model, graphs = detector(SMALL), []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(module)
        return module.forward

    core = compiled(model, backend=backend, most=1)
    first, second = some(), some(96, 64)
    for pixels, sizes in (first, some(), second):  # no room for a second shape, which runs step by step
        assert_equal(core(pixels, sizes, SMALL), model.detect(pixels, sizes, SMALL))
    assert len(graphs) == 1


def test_on_a_gpu_the_one_graph_holds_our_kernels_and_no_shape_that_hangs_on_values() -> None:
    pytest.importorskip("triton")
    graphs: list[torch.fx.GraphModule] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(module)
        return module.forward

    def rewrite(model: MaskRCNN) -> MaskRCNN:
        network = fused(model)
        cast_(network, torch.bfloat16)
        return network

    found = watched(SMALL, rewrite, "nms", "roi_align", also=lambda model: compiled(model, backend=backend))
    assert found.boxes.device.type == "cuda" and len(graphs) == 1
    called = [str(node.target) for node in graphs[0].graph.nodes]
    assert [name for name in called if name.startswith("maskrcnn.")] == ["maskrcnn.nms_sweep", "maskrcnn.roi_align"] * 2
    assert not [name for name in called if "nonzero" in name or name == "item"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*create_unbacked_symint:FutureWarning")
@pytest.mark.parametrize(  # half a minute each
    ("name", "rewrite"),
    [("nano", lambda model: model), ("r50-c4", lambda model: model), ("r50-fpn", fused)],
    ids=["plain-nano", "plain-r50-c4", "fused-r50-fpn"],
)
def test_compiled_through_autograd_tracing_equals_eager(name: str, rewrite: Callable[[MaskRCNN], MaskRCNN]) -> None:
    config = small(preset(name, NAMES, IDS))
    body = replace(config.backbone, options=THIN) if name != "nano" else config.backbone
    config = replace(config, backbone=body if name == "nano" else replace(body, name="resnet26"))
    model = rewrite(detector(config))
    core = compiled(model, backend="aot_eager")
    fewer = replace(config, detection=replace(config.detection, max_detections=3))
    with torch.no_grad():
        for picture, limits in ((some(128, 160, 2), config), (some(96, 64), config), (some(96, 64), fewer)):
            assert_equal(core(*picture, limits), model.detect(*picture, limits), rounding=1e-4)


# --- captured: the bookkeeping, with a stand-in for CUDA --------------------------------------------------------------


class Recorder:
    """Captures as CUDA does: one run is recorded, and a replay computes into the same outputs from the same inputs."""

    def __init__(self) -> None:
        self.captures: list[tuple[int, ...]] = []
        self.replays = 0

    def __call__(self, run: Run, pixels: Tensor, image_sizes: Tensor) -> Captured:
        inputs = (pixels.clone(), image_sizes.clone())
        outputs = run(*inputs)
        self.captures.append(tuple(pixels.shape))

        def replay() -> None:
            self.replays += 1
            again = run(*inputs)
            for field in fields(again):
                if getattr(again, field.name) is not None:
                    getattr(outputs, field.name).copy_(getattr(again, field.name))

        return Captured(replay, inputs, outputs)


def test_a_shape_is_captured_once_and_replayed_with_each_new_picture() -> None:
    model, recorder = detector(SMALL), Recorder()
    core = GraphedCore(eager(model), recorder)
    pictures = [some(), some(), some()]
    found = [core(*picture, SMALL) for picture in pictures]
    assert recorder.captures == [(1, 3, 64, 96)] and recorder.replays == 3
    for picture, each in zip(pictures, found, strict=True):  # later replays have not changed what came before
        assert_equal(each, model.detect(*picture, SMALL))


def test_shape_layout_and_config_each_want_a_graph_and_the_oldest_goes() -> None:
    recorder = Recorder()
    core = GraphedCore(lambda pixels, sizes, config: tiny(pixels), recorder, most=2)
    pixels, sizes = some()
    core(pixels, sizes, SMALL)
    core(pixels.contiguous(), sizes, SMALL)  # another layout in memory
    core(pixels, sizes, SMALL)
    assert len(recorder.captures) == 2
    core(pixels, sizes, replace(SMALL, detection=replace(SMALL.detection, nms_iou=0.3)))  # in place of the second
    core(pixels, sizes, SMALL)
    assert len(recorder.captures) == 3
    core(pixels.contiguous(), sizes, SMALL)
    assert len(recorder.captures) == 4
    core(*some(count=3), SMALL)
    assert recorder.captures[-1] == (3, 3, 64, 96)
    assert len(core.held) == 2


def tiny(pixels: Tensor) -> DetectionBatch:
    value = pixels.mean(dim=(1, 2, 3))[:, None]
    return DetectionBatch(value[..., None].expand(-1, -1, 4).clone(), value, value.long(), value > 0)


def test_what_cannot_be_captured_runs_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    def refuse(run: Run, pixels: Tensor, image_sizes: Tensor) -> Captured:
        tries.append(pixels.shape)
        raise RuntimeError("operation not permitted when stream is capturing\nlong text")

    core = GraphedCore(lambda pixels, sizes, config: tiny(pixels), refuse)
    pixels, sizes = some()
    with caplog.at_level(logging.WARNING, "maskrcnn"):
        for _ in range(2):
            assert_equal(core(pixels, sizes, SMALL), tiny(pixels))
    assert len(tries) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph can be made of this detector, so it runs step by step: "
        "operation not permitted when stream is capturing"
    ]


def test_a_device_without_memory_is_not_a_core_that_cannot_be_captured() -> None:
    def full(run: Run, pixels: Tensor, image_sizes: Tensor) -> Captured:
        raise torch.OutOfMemoryError("CUDA out of memory")

    core = GraphedCore(eager(detector(SMALL)), full)
    with pytest.raises(torch.OutOfMemoryError):
        core(*some(), SMALL)
    assert not core.gave_up and not core.held


def test_off_cuda_nothing_is_captured() -> None:
    model = detector(SMALL)
    core, picture = graphed(model), some()
    assert not isinstance(core, GraphedCore)
    assert_equal(core(*picture, SMALL), model.detect(*picture, SMALL))


def test_each_tensor_leaves_out_what_is_not_there() -> None:
    found = tiny(torch.ones(2, 3, 4, 4))
    doubled = each_tensor(found, lambda tensor: tensor + tensor)
    assert torch.equal(doubled.boxes, 2 * found.boxes) and doubled.mask_logits is None
