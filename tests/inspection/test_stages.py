"""What is counted at each stage is what the tensors hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskrcnn.inspection import stages as stages_file
from maskrcnn.inspection.figure import STAGES
from maskrcnn.inspection.stages import stages

from .detectors import Change, boxes_only, by_masks, cascade, centred, inspected, plain


@pytest.mark.parametrize("change", [plain, cascade, by_masks, boxes_only, centred])
def test_counts_are_those_of_the_tensors(change: Change) -> None:
    steps = inspected(change, max_detections=40)
    counts = {told["stage"]: {count["key"]: count["value"] for count in told["counts"]} for told in stages(steps)}
    assert list(counts) == list(STAGES)
    sizes = {name: len(level) for name, level in zip(steps.level_names, steps.rpn.anchors, strict=True)}
    assert counts["anchors"] == {"anchors": sum(sizes.values())} | sizes
    candidates = steps.proposal_candidates
    assert counts["proposals"] == {
        "anchors": sum(sizes.values()),
        "candidates": sum(min(size, steps.config.rpn.pre_nms_top_n) for size in sizes.values()),
        "valid": len(candidates.valid.nonzero()),
        "kept": len(candidates.kept.nonzero()),
        "proposals": len(steps.proposals.logits.isfinite().nonzero()),
    }
    assert sum(v for key, v in counts["levels"].items() if key != "rois") == counts["levels"]["rois"]
    config = steps.config.detection
    probabilities = steps.box_outputs.class_logits.softmax(1)[: counts["boxes"]["rois"]]
    enough = probabilities[:, 1:] > config.score_threshold
    if config.best_class_only:
        enough &= probabilities[:, 1:] == probabilities.amax(dim=1, keepdim=True)
    assert counts["boxes"]["valid"] == int(enough.sum())
    assert counts["boxes"]["kept"] == len(steps.detection_candidates.kept.nonzero())
    assert counts["boxes"]["found"] == counts["masks"]["found"] == len(steps.placed) <= 40
    assert counts["masks"]["kept"] == counts["result"]["detections"] == len(steps.detections)
    assert sum(v for key, v in counts["result"].items() if key != "detections") == len(steps.detections)
    assert counts["input"]["original"] == "128 x 96"


def test_plain_values_are_json() -> None:
    given = {"a": np.float32("nan"), "b": math.inf, "c": torch.tensor([1.5, -math.inf]), 3: (np.int64(4), True, None)}
    assert stages_file.plain(given) == {"a": None, "b": None, "c": [1.5, None], "3": [4, True, None]}
