"""The network's layout, and proposals against a loop in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.errors import InputError
from maskrcnn.model.anchors import AnchorConfig, make_anchors
from maskrcnn.model.rpn import RPN, RPNConfig, RPNOutputs, propose
from maskrcnn.ops.boxes import of_sizes
from maskrcnn.structures import Proposals

STRIDES = {"p2": 4, "p3": 8, "p4": 16}
ANCHORS = AnchorConfig(sizes=((8,), (16,), (32,)))
CONFIG = RPNConfig(anchors=ANCHORS, pre_nms_top_n=40, post_nms_top_n=25)
Box = tuple[float, float, float, float]


def features(count: int, channels: int = 6, height: int = 32, width: int = 48) -> dict[str, Tensor]:
    return {name: torch.randn(count, channels, height // s, width // s) for name, s in STRIDES.items()}


def outputs(count: int, height: int = 32, width: int = 48) -> RPNOutputs:
    grids = [(height // stride, width // stride) for stride in STRIDES.values()]
    anchors = make_anchors(ANCHORS, grids, list(STRIDES.values()), (height, width), torch.device("cpu"))
    return RPNOutputs(
        logits=[torch.randn(count, len(a)) for a in anchors],
        deltas=[torch.randn(count, len(a), 4) * 0.5 for a in anchors],
        anchors=anchors,
    )


def moved(anchor: list[float], delta: list[float], height: float, width: float) -> Box:
    """Ren et al. 2015, Eq. 2, then cut to the picture."""
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = anchor[0] + w / 2 + delta[0] * w, anchor[1] + h / 2 + delta[1] * h
    w, h = w * math.exp(delta[2]), h * math.exp(delta[3])
    left, right = (min(max(v, 0.0), width) for v in (x - w / 2, x + w / 2))
    top, bottom = (min(max(v, 0.0), height) for v in (y - h / 2, y + h / 2))
    return left, top, right, bottom


def overlap(a: Box, b: Box) -> float:
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def proposals_by_hand(out: RPNOutputs, image: int, size: list[float], config: RPNConfig) -> list[tuple[float, Box]]:
    found: list[tuple[float, Box]] = []
    for logits, deltas, anchors in zip(out.logits, out.deltas, out.anchors, strict=True):
        order = logits[image].argsort(descending=True)[: config.pre_nms_top_n].tolist()
        kept: list[tuple[float, Box]] = []
        for i in order:
            box = moved(anchors[i].tolist(), deltas[image, i].tolist(), *size)
            if box[2] - box[0] < config.min_size or box[3] - box[1] < config.min_size:
                continue
            if 1 / (1 + math.exp(-logits[image, i].item())) < config.score_threshold:
                continue
            if all(overlap(box, other) <= config.nms_iou for _, other in kept):
                kept.append((logits[image, i].item(), box))
        found += kept
    return sorted(found, reverse=True)[: config.post_nms_top_n]


def assert_equal_rows(found: Proposals, image: int, expected: list[tuple[float, Box]]) -> None:
    count = len(expected)
    assert found.valid[image].tolist() == [True] * count + [False] * (found.valid.shape[1] - count)
    torch.testing.assert_close(found.logits[image, :count], torch.tensor([logit for logit, _ in expected]))
    boxes = torch.tensor([box for _, box in expected]).reshape(-1, 4)
    torch.testing.assert_close(found.boxes[image, :count], boxes, atol=1e-4, rtol=1e-5)
    assert not found.boxes[image, count:].any()


@pytest.mark.parametrize("nms_iou", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("min_size", [1e-3, 12.0])
@pytest.mark.parametrize("post_nms_top_n", [25, 200])
def test_proposals_equal_a_loop(nms_iou: float, min_size: float, post_nms_top_n: int) -> None:
    config = replace(CONFIG, nms_iou=nms_iou, min_size=min_size, post_nms_top_n=post_nms_top_n)
    out, sizes = outputs(3), [[32.0, 48.0], [20.0, 48.0], [31.0, 10.5]]
    found = propose(out, of_sizes(torch.tensor(sizes)), config)
    candidates = sum(min(config.pre_nms_top_n, len(anchors)) for anchors in out.anchors)
    assert found.boxes.shape == (3, min(post_nms_top_n, candidates), 4)
    for image, size in enumerate(sizes):
        assert_equal_rows(found, image, proposals_by_hand(out, image, size, config))


@pytest.mark.parametrize("rank_by", ["logits", "probabilities"])
def test_proposals_below_a_threshold_are_dropped(rank_by: Any) -> None:
    config = replace(CONFIG, score_threshold=0.6, post_nms_top_n=100, rank_by=rank_by)
    out, size = outputs(2), [32.0, 48.0]
    found = propose(out, of_sizes(torch.tensor([size] * 2)), config)
    for image in (0, 1):
        assert_equal_rows(found, image, proposals_by_hand(out, image, size, config))
    every = propose(out, of_sizes(torch.tensor([size] * 2)), replace(config, score_threshold=0.0))
    assert 0 < found.valid.sum() < every.valid.sum()
    assert found.logits[found.valid].min() >= math.log(0.6 / 0.4)
    with pytest.raises(InputError, match=r"RPNConfig\.score_threshold: impossible value"):
        replace(CONFIG, score_threshold=1.5)


@pytest.mark.parametrize("pre_nms_top_n", [60, 1000])
def test_levels_together_equal_a_loop_over_one_list(pre_nms_top_n: int) -> None:
    config = replace(CONFIG, pre_nms_top_n=pre_nms_top_n, post_nms_top_n=1000, levels_together=True)
    out, size = outputs(2), [32.0, 48.0]
    found = propose(out, of_sizes(torch.tensor([size] * 2)), config)
    one = RPNOutputs([torch.cat(out.logits, 1)], [torch.cat(out.deltas, 1)], [torch.cat(out.anchors)])
    for image in (0, 1):
        assert_equal_rows(found, image, proposals_by_hand(one, image, size, config))
    apart = propose(out, of_sizes(torch.tensor([size] * 2)), replace(config, levels_together=False))
    assert apart.valid.sum() > found.valid.sum()  # boxes of two levels have suppressed one another


def test_of_anchors_that_are_equally_sure_the_first_is_best() -> None:
    """Above a logit of 17 all probabilities are 1 in float32, and the order of the logits no longer counts."""
    config = replace(CONFIG, rank_by="probabilities", levels_together=True, pre_nms_top_n=1000, post_nms_top_n=40)
    out, size = outputs(1), [32.0, 48.0]
    sure = RPNOutputs([20 + x.abs() for x in out.logits], out.deltas, out.anchors)
    found = propose(sure, of_sizes(torch.tensor([size])), config)
    count = sum(len(anchors) for anchors in out.anchors)
    in_turn = RPNOutputs(
        [-torch.arange(count, dtype=torch.float32)[None]], [torch.cat(out.deltas, 1)], [torch.cat(out.anchors)]
    )
    expected = proposals_by_hand(in_turn, 0, size, config)
    torch.testing.assert_close(found.boxes[0], torch.tensor([box for _, box in expected]), atol=1e-4, rtol=1e-5)
    first = [int(-place) for place, _ in expected]
    assert torch.equal(found.logits[0], torch.cat(sure.logits, 1)[0, first])


def test_one_picture_gives_the_same_as_in_a_batch() -> None:
    out, sizes = outputs(3), torch.tensor([[32.0, 48.0], [20.0, 48.0], [32.0, 30.0]])
    together = propose(out, of_sizes(sizes), CONFIG)
    for i in range(3):
        one = slice(i, i + 1)
        alone = propose(
            RPNOutputs([x[one] for x in out.logits], [x[one] for x in out.deltas], out.anchors),
            of_sizes(sizes[one]),
            CONFIG,
        )
        assert torch.equal(alone.boxes[0], together.boxes[i])
        assert torch.equal(alone.logits[0], together.logits[i])
        assert torch.equal(alone.valid[0], together.valid[i])


def test_fewer_anchors_than_asked_for() -> None:
    """What is asked for beyond them takes no memory."""
    config, out = replace(CONFIG, pre_nms_top_n=10**9, post_nms_top_n=10**9), outputs(1)
    found = propose(out, of_sizes(torch.tensor([[32.0, 48.0]])), config)
    assert found.boxes.shape == (1, sum(len(anchors) for anchors in out.anchors), 4)
    assert_equal_rows(found, 0, proposals_by_hand(out, 0, [32.0, 48.0], config))


def test_no_proposal_is_large_enough() -> None:
    found = propose(outputs(2), of_sizes(torch.tensor([[32.0, 48.0]] * 2)), replace(CONFIG, min_size=1000.0))
    assert found.boxes.shape == (2, 25, 4)
    assert not found.valid.any() and not found.boxes.any() and found.logits.eq(-torch.inf).all()


def test_values_that_are_not_finite_are_no_proposals() -> None:
    out = outputs(1)
    out.logits[0][0, :7], out.logits[1][0, 3], out.deltas[2][0, 5] = torch.nan, torch.inf, torch.nan
    out.logits[2][0, 5] = 100.0
    config = replace(CONFIG, pre_nms_top_n=5000, post_nms_top_n=5000)
    found = propose(out, of_sizes(torch.tensor([[32.0, 48.0]])), config)
    assert found.valid.any() and found.boxes.isfinite().all()
    assert found.logits[found.valid].isfinite().all() and found.logits.max() < 50


def test_gradients_stop() -> None:
    out = outputs(1)
    for tensor in (*out.logits, *out.deltas):
        tensor.requires_grad_()
    found = propose(out, of_sizes(torch.tensor([[32.0, 48.0]])), CONFIG)
    assert not found.boxes.requires_grad and not found.logits.requires_grad


@pytest.mark.parametrize("depth", [1, 2])
def test_outputs_go_cell_by_cell_and_anchor_by_anchor(depth: int) -> None:
    rpn = RPN(replace(CONFIG, conv_depth=depth), 6, STRIDES)
    inputs = features(2)
    out = rpn(inputs, (32, 48))
    assert len(rpn.convs) == depth
    for level, x in enumerate(inputs.values()):
        for conv in rpn.convs:
            x = F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1))
        logits, deltas = rpn.objectness(x), rpn.deltas(x)  # (2, k, H, W), (2, 4 k, H, W)
        rows, columns = x.shape[2:]
        assert out.logits[level].shape == (2, rows * columns * 3)
        assert out.anchors[level].shape == (rows * columns * 3, 4)
        for row, column, anchor in [(0, 0, 0), (0, 1, 2), (1, 0, 1), (rows - 1, columns - 1, 2)]:
            i = (row * columns + column) * 3 + anchor
            torch.testing.assert_close(out.logits[level][:, i], logits[:, anchor, row, column])
            torch.testing.assert_close(out.deltas[level][:, i], deltas[:, 4 * anchor : 4 * anchor + 4, row, column])
            centre = out.anchors[level][i].reshape(2, 2).mean(0)
            stride = list(STRIDES.values())[level]
            torch.testing.assert_close(centre, torch.tensor([column * stride, row * stride], dtype=torch.float32))


def test_first_outputs_say_neither_yes_nor_no() -> None:
    out = RPN(CONFIG, 6, STRIDES)(features(1), (32, 48))
    assert max(x.abs().max().item() for x in (*out.logits, *out.deltas)) < 0.2


def test_sizes_for_each_level() -> None:
    with pytest.raises(
        InputError, match=r"AnchorConfig\.sizes: impossible value; .*expected one tuple for each of \['p2', 'p3'\]"
    ):
        RPN(CONFIG, 6, {"p2": 4, "p3": 8})
