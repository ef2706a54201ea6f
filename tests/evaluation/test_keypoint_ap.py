"""OKS AP and AR against pycocotools, which is the definition; what an evaluation says of keypoints."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from rich.console import Console

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError, InputErrors
from maskrcnn.evaluation import coco_ap as module
from maskrcnn.evaluation.coco_ap import coco_ap
from maskrcnn.evaluation.evaluate import evaluate, evaluate_records
from maskrcnn.evaluation.keypoint_ap import COCO_SIGMAS, USUAL_SIGMA, sigmas_for
from maskrcnn.structures import Detections, KeypointScheme, Target

Scene = tuple[dict[str, Any], list[dict[str, Any]]]
HEIGHT, WIDTH = 280, 300


@pytest.fixture(params=["hotcoco", "pycocotools"])
def evaluator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both libraries behind the seam."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setattr(module, "evaluator_name", lambda: request.param)
    return str(request.param)


def scene(seed: int, count: int = 17, *, crowds: float = 0.1, unlabelled: float = 0.2, ties: bool = True) -> Scene:
    """Ground truth and records of two classes that have objects and one that has none; sizes from 3 to 200 px.

    Some objects are crowds, some show no keypoint, some records have another class or points anywhere.
    """
    rng = np.random.default_rng(seed)
    images = [{"id": 2 * i + 3, "height": HEIGHT, "width": WIDTH} for i in rng.permutation(12).tolist()]
    annotations: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for image in images:
        for _ in range(int(rng.integers(0, 8))):
            x, y, width, height = (*rng.uniform(0, 80, 2), *rng.uniform(3, 200, 2))
            points = np.stack([rng.uniform(x, x + width, count), rng.uniform(y, y + height, count)], axis=1)
            seen = rng.integers(0, 3, count) * (rng.random() > unlabelled)
            points[seen == 0] = 0
            category = int(rng.integers(1, 3))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": [x, y, width, height],
                    "area": width * height * rng.uniform(0.3, 1),
                    "iscrowd": int(rng.random() < crowds),
                    "keypoints": np.column_stack([points, seen]).ravel().tolist(),
                    "num_keypoints": int((seen > 0).sum()),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                near = points + rng.normal(0, rng.choice([0.5, 2, 8]), points.shape)
                places = near if rng.random() > 0.1 else rng.uniform(0, 120, points.shape)
                records.append(
                    {
                        "image_id": image["id"],
                        "category_id": category if rng.random() > 0.15 else 3,
                        "bbox": [x, y, width, height],
                        "score": round(float(rng.random()), 1 if ties else 9),
                        "keypoints": np.column_stack([places, rng.random(count)]).ravel().tolist(),
                    }
                )
    categories = [{"id": k, "name": f"class {k}"} for k in (3, 1, 2)]
    return {"images": images, "annotations": annotations, "categories": categories}, records


def reference(
    truth: dict[str, Any], records: list[dict[str, Any]], limits: Sequence[int], sigmas: Sequence[float] | None = None
) -> COCOeval:
    """pycocotools by hand, on records as COCO's server takes them: without boxes."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        dt = gt.loadRes([{k: copy.deepcopy(v) for k, v in r.items() if k != "bbox"} for r in records])
        result = COCOeval(gt, dt, "keypoints")
        result.params.maxDets = list(limits)
        if sigmas is not None:
            result.params.kpt_oks_sigmas = np.array(sigmas)
        result.evaluate()
        result.accumulate()
    return result


def assert_equal(scores: module.CocoScores, expected: COCOeval) -> None:
    np.testing.assert_array_equal(scores.precision, expected.eval["precision"])
    np.testing.assert_array_equal(scores.recall, expected.eval["recall"])


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_arrays_equal_the_reference(evaluator: str, seed: int) -> None:
    truth, records = scene(seed, ties=seed % 2 == 0)
    scores, expected = coco_ap(truth, records, "keypoints", (1, 20)), reference(truth, records, (1, 20))
    assert_equal(scores, expected)
    assert scores.ap is not None and 0.02 < scores.ap < 0.98


def test_averages_are_those_that_coco_prints(evaluator: str) -> None:
    truth, records = scene(5)
    scores, expected = coco_ap(truth, records, "keypoints", 20), reference(truth, records, (20,))
    with contextlib.redirect_stdout(io.StringIO()):
        expected.summarize()
    ours = [scores.ap, scores.ap50, scores.ap75, scores.ap_medium, scores.ap_large, scores.ar]
    assert ours == pytest.approx(expected.stats[:6].tolist(), abs=1e-12)
    assert len(set(ours)) == 6
    assert scores.ap_small is None


@pytest.mark.parametrize("sigmas", [None, np.linspace(0.02, 0.12, 5).tolist()])
def test_other_numbers_of_keypoints(evaluator: str, sigmas: list[float] | None) -> None:
    truth, records = scene(6, 5)
    scores = coco_ap(truth, records, "keypoints", 20, sigmas)
    assert_equal(scores, reference(truth, records, (20,), sigmas or [USUAL_SIGMA] * 5))
    assert scores.sigmas == tuple(sigmas or [USUAL_SIGMA] * 5)


def test_strictness_is_the_sigmas(evaluator: str) -> None:
    truth, records = scene(6, 5)
    strict, lenient = (coco_ap(truth, records, "keypoints", 20, [s] * 5).ap for s in (0.01, 0.3))
    assert strict is not None and lenient is not None and strict < 0.7 * lenient


@pytest.mark.parametrize("options", [{"crowds": 1.0}, {"unlabelled": 1.0}], ids=str)
def test_nothing_that_could_be_found(evaluator: str, options: dict[str, float]) -> None:
    truth, records = scene(7, **options)  # type: ignore[arg-type]
    scores = coco_ap(truth, records, "keypoints", 20)
    assert_equal(scores, reference(truth, records, (20,)))
    assert scores.ap is None and scores.ar is None


def test_no_detections(evaluator: str) -> None:
    scores = coco_ap(scene(0)[0], [], "keypoints", 20)
    assert scores.precision.shape == (10, 101, 3, 3, 1)
    assert scores.ap == 0 == scores.ar
    assert scores.ap_per_class == (0, 0, None)


def test_annotations_without_keypoints_count_as_not_labelled(evaluator: str) -> None:
    truth, records = scene(8)
    bare = copy.deepcopy(truth)
    for annotation in bare["annotations"]:
        if annotation["category_id"] == 2:
            annotation |= {"keypoints": [0] * 51, "num_keypoints": 0}
    expected = reference(bare, records, (20,))
    for annotation in bare["annotations"]:
        if annotation["category_id"] == 2:
            del annotation["keypoints"], annotation["num_keypoints"]
    assert_equal(coco_ap(bare, records, "keypoints", 20), expected)


def test_an_area_by_the_box_where_there_is_none(evaluator: str) -> None:
    truth, records = scene(9)
    for annotation in truth["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    expected = reference(truth, records, (20,))
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["num_keypoints"]
    assert_equal(coco_ap(truth, records, "keypoints", 20), expected)


def test_sigmas() -> None:
    assert Params("keypoints").kpt_oks_sigmas.tolist() == pytest.approx(COCO_SIGMAS)
    assert sigmas_for(17) == COCO_SIGMAS
    assert sigmas_for(3) == (USUAL_SIGMA,) * 3 and USUAL_SIGMA == pytest.approx(np.mean(COCO_SIGMAS))
    assert sigmas_for(2, [0.1, 0.2]) == (0.1, 0.2)
    for wrong in ([0.1], [0.1, 0.0], [0.1, float("nan")]):
        with pytest.raises(InputError, match="keypoint_sigmas: do not fit.*2 numbers above 0"):
            sigmas_for(2, wrong)


@pytest.mark.parametrize("points", [[1.0] * 48, None, [float("nan")] * 51, ["x"] * 51])
def test_records_that_cannot_be_scored(points: Any) -> None:
    truth, records = scene(1)
    records[3]["keypoints"] = points
    with pytest.raises(InputErrors, match=r"detections\[3\].keypoints: are not those of the data set.*51 numbers"):
        coco_ap(truth, records, "keypoints", 20)
    del records[3]["keypoints"]
    with pytest.raises(InputErrors, match=r"detections\[3\].keypoints: missing"):
        coco_ap(truth, records, "keypoints", 20)


# --- in an evaluation -------------------------------------------------------------------------------------------------


class MadeUp:
    """A data set over a COCO dict, whose pictures are black."""

    def __init__(self, truth: dict[str, Any]) -> None:
        self.truth = truth
        ids = sorted(c["id"] for c in truth["categories"])
        self.classes = Classes(tuple(f"class {i}" for i in ids), tuple(ids))

    def __len__(self) -> int:
        return len(self.truth["images"])

    def __getitem__(self, index: int) -> tuple[np.ndarray, Target]:
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, torch.zeros(0, dtype=torch.bool)
        return np.zeros((HEIGHT, WIDTH, 3), np.uint8), Target(*nothing, size=(HEIGHT, WIDTH))

    def image_id(self, index: int) -> int:
        return int(self.truth["images"][index]["id"])

    def ground_truth(self) -> dict[str, Any]:
        return self.truth


def detector(dataset: MadeUp, records: list[dict[str, Any]], keypoints: bool = True) -> Any:
    """Finds what `records` hold, in our own terms: centres of pixels at 0.5."""
    count = len(records[0]["keypoints"]) // 3 if records else 17

    def detect(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
        for index, _ in enumerate(pictures):
            own = [record for record in records if record["image_id"] == dataset.image_id(index)]
            boxes = torch.tensor([r["bbox"] for r in own]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            points = torch.tensor([r["keypoints"] for r in own], dtype=torch.float64).reshape(-1, count, 3)
            points[..., :2] += 0.5
            ids = tuple(r["category_id"] for r in own)
            yield Detections(
                boxes=boxes,
                scores=torch.tensor([r["score"] for r in own]),
                labels=torch.tensor(ids, dtype=torch.int64),
                names=tuple(f"class {i}" for i in ids),
                category_ids=ids,
                masks=None,
                size=(HEIGHT, WIDTH),
                keypoints=points if keypoints else None,
                keypoint_scheme=KeypointScheme(tuple(map(str, range(count)))),
            )

    return detect


def test_an_evaluation_scores_keypoints(tmp_path: Path) -> None:
    truth, records = scene(2)
    dataset = MadeUp(truth)
    scores = evaluate(detector(dataset, records), dataset)
    expected = coco_ap(truth, records, "keypoints", 20)
    assert scores.keypoint is not None and scores.keypoint.max_detections == (20,)
    assert scores.keypoint.ap == pytest.approx(expected.ap, abs=0.01)  # records are rounded to a thousandth of a px
    summary = scores.summary()
    assert summary["keypoint"]["ap@20"] == scores.keypoint.ap and summary["keypoint"]["ap_small@20"] is None
    assert summary["per_class"]["class 1"]["keypoint_ap@20"] == scores.keypoint.ap_per_class[0]
    assert json.dumps(summary, allow_nan=False)
    text = io.StringIO()
    Console(file=text, width=140).print(*scores.table())
    (line,) = (line for line in text.getvalue().splitlines() if " points " in line)
    assert f"{scores.keypoint.ap:.3f}" in line and f"{scores.keypoint.ar:.3f}" in line
    written = json.loads(next(path for path in scores.save(tmp_path) if path.name == "detections.json").read_text())
    assert len(written) == len(records) and all(len(record["keypoints"]) == 51 for record in written)


def test_options_and_parts(tmp_path: Path) -> None:
    truth, records = scene(3, 5)
    options: dict[str, Any] = {"keypoint_detections": (2, 50), "keypoint_sigmas": [0.03, 0.04, 0.05, 0.06, 0.07]}
    scores = evaluate_records(truth, records, **options)
    assert scores.keypoint is not None and scores.keypoint.max_detections == (2, 50)
    assert_equal(scores.keypoint, reference(truth, records, (2, 50), options["keypoint_sigmas"]))
    some = [image["id"] for image in truth["images"][:5]]
    part, again = scores.subset(some), evaluate_records(truth, records, image_ids=some, **options)
    assert part.keypoint is not None and again.keypoint is not None
    np.testing.assert_array_equal(part.keypoint.precision, again.keypoint.precision)
    assert part.keypoint.sigmas == tuple(options["keypoint_sigmas"])


def test_without_keypoints_on_either_side() -> None:
    truth, records = scene(4)
    dataset = MadeUp(truth)
    assert evaluate(detector(dataset, records, keypoints=False), dataset).keypoint is None
    assert evaluate_records(truth, records, keypoints=False).keypoint is None
    for annotation in truth["annotations"]:
        del annotation["keypoints"], annotation["num_keypoints"]
    bare = evaluate(detector(dataset, records), dataset)
    assert bare.keypoint is None and bare.summary()["keypoint"] is None


def test_a_detector_that_finds_nothing_scores_nothing() -> None:
    truth, _ = scene(4)
    dataset = MadeUp(truth)
    found = evaluate(detector(dataset, []), dataset)
    assert found.keypoint is not None and found.keypoint.ap == 0


def test_a_detector_of_other_keypoints() -> None:
    dataset, (_, others) = MadeUp(scene(2)[0]), scene(2, 5)
    with pytest.raises(InputError, match="keypoints that cannot be compared; found 5; expected 17, as the data set"):
        evaluate(detector(dataset, others), dataset)
