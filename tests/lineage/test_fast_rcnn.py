"""Fast R-CNN as a system: on Selective Search, on a file, and on another network's RPN."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.data.proposals import write_proposals
from maskrcnn.errors import InputError
from maskrcnn.lineage.fast_rcnn import ON_RPN, SYSTEM, train, train_from_file, train_on_rpn
from maskrcnn.lineage.learning import LOSSES_FILE
from maskrcnn.lineage.proposing import proposals_of
from maskrcnn.lineage.selective_search import selective_search
from maskrcnn.lineage.system import Bench, Stopwatch, Trained
from maskrcnn.structures import Detections


@pytest.fixture
def one_step(few_steps: dict[str, Any]) -> dict[str, Any]:
    return few_steps | {"steps": 1}


def detected(trained: Trained, picture: np.ndarray) -> Detections:
    return trained.detect(picture, Stopwatch())


def nothing(picture: np.ndarray) -> Tensor:
    return torch.zeros(0, 4)


def test_on_selective_search(bench: Bench, one_step: dict[str, Any]) -> None:
    trained = train(bench, **one_step)
    assert trained.facts == {"steps": 1.0} and set(trained.training) == {"proposals", "network"}
    assert all(seconds > 0 for seconds in trained.training.values())
    lines = [json.loads(line) for line in (bench.folder / "network" / LOSSES_FILE).read_text().splitlines()]
    assert {name for name in lines[0] if name.startswith(("rpn", "box", "mask"))} == {"box_class", "box_delta"}
    watch = Stopwatch()
    found = trained.detect(bench.val.sample(0)[0], watch)
    assert found.masks is None and set(watch.seconds) == {"proposals", "features", "heads"}


def test_nothing_proposed_is_nothing_found(bench: Bench, one_step: dict[str, Any]) -> None:
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    assert len(selective_search(grey)) == 0
    assert len(detected(train(bench, **one_step), grey)) == 0


def test_learns_where_pictures_have_no_proposal(bench: Bench, one_step: dict[str, Any], tmp_path: Path) -> None:
    file = write_proposals(tmp_path / "none.safetensors", bench.train, [torch.zeros(0, 4)] * 6, "nobody")
    trained = train_from_file(bench, file, nothing, **one_step)  # the objects' own boxes are left to learn from
    assert trained.facts == {"steps": 1.0} and len(detected(trained, bench.val.sample(0)[0])) == 0


def test_from_a_file_is_the_same_as_from_what_was_written(
    bench: Bench, one_step: dict[str, Any], tmp_path: Path
) -> None:
    found = proposals_of(bench.train, bench.proposals)
    file = write_proposals(tmp_path / "boxes.safetensors", bench.train, found, "Selective Search")
    from_file = train_from_file(replace(bench, folder=tmp_path / "other"), file, selective_search, **one_step)
    picture = bench.train.sample(0)[0]
    a, b = detected(train(bench, **one_step), picture), detected(from_file, picture)
    assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)


def test_a_file_of_other_pictures_is_refused(bench: Bench, tmp_path: Path) -> None:
    file = write_proposals(tmp_path / "boxes.safetensors", bench.val, [torch.zeros(0, 4)] * 3, "nobody")
    with pytest.raises(InputError, match="proposals for other pictures"):
        train_from_file(bench, file, nothing)
    assert not bench.folder.exists()


def test_on_an_rpn_with_a_body_of_its_own(bench: Bench, one_step: dict[str, Any]) -> None:
    trained = train_on_rpn(bench, **one_step)
    assert trained.facts == {"steps": 2.0} and set(trained.training) == {"RPN", "proposals", "network"}
    names = {
        name
        for line in (bench.folder / "rpn" / LOSSES_FILE).read_text().splitlines()
        for name in json.loads(line)
        if name.startswith(("rpn", "box", "mask"))
    }
    assert names == {"rpn_objectness", "rpn_box"}
    assert len(list((bench.folder / "rpn").glob("proposals-*.safetensors"))) == 1
    watch = Stopwatch()
    trained.detect(bench.val.sample(0)[0], watch)
    assert set(watch.seconds) == {"proposals", "features", "heads"}


def test_names() -> None:
    assert (SYSTEM.key, SYSTEM.name) == ("fast-rcnn", "Fast R-CNN") and ON_RPN.key == "fast-rcnn-rpn"
