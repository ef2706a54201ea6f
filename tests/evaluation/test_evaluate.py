"""From a detector and a data set to numbers, tables and files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from maskrcnn.data.classes import Classes
from maskrcnn.errors import InputError
from maskrcnn.evaluation import report
from maskrcnn.evaluation.evaluate import Evaluation, evaluate, evaluate_records, restricted
from maskrcnn.structures import Detections, Masks, Target

Records = list[dict[str, Any]]


@dataclass
class MadeUp:
    """A data set over a COCO dict, whose pictures hold their own number."""

    truth: dict[str, Any]
    served: list[int] = field(default_factory=list)

    @property
    def classes(self) -> Classes:
        categories = self.truth["categories"]
        return Classes(tuple(c["name"] for c in categories), tuple(c["id"] for c in categories))

    def __len__(self) -> int:
        return len(self.truth["images"])

    def __getitem__(self, index: int) -> tuple[np.ndarray, Target]:
        self.served.append(index)
        image = self.truth["images"][index]
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, torch.zeros(0, dtype=torch.bool)
        return np.full((image["height"], image["width"], 3), index, np.uint8), Target(
            *nothing, size=(image["height"], image["width"]), image_id=image["id"]
        )

    def image_id(self, index: int) -> int:
        return int(self.truth["images"][index]["id"])

    def ground_truth(self) -> dict[str, Any]:
        return self.truth


class KnownMasks(Masks):
    """Masks that are RLE from the start."""

    regions: list[Any] = []

    def rle(self) -> list[Any]:
        return self.regions


def detections(records: Records, names: dict[int, str], size: tuple[int, int], masks: bool = True) -> Detections:
    corners = torch.tensor([r["bbox"] for r in records], dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    known = KnownMasks(torch.zeros(len(records), 1, 1), corners, size)
    object.__setattr__(known, "regions", [r["segmentation"] for r in records])
    return Detections(
        boxes=corners,
        scores=torch.tensor([r["score"] for r in records]),
        labels=torch.ones(len(records), dtype=torch.int64),
        names=tuple(names[r["category_id"]] for r in records),
        category_ids=tuple(r["category_id"] for r in records),
        masks=known if masks else None,
        size=size,
    )


def detector(
    truth: dict[str, Any], records: Records, rename: Callable[[int], tuple[int, str]] | None = None, masks: bool = True
) -> Callable[[Iterable[np.ndarray]], Iterator[Detections]]:
    """Finds the given records in the pictures of a MadeUp. rename: category id -> the detector's own (id, name)."""
    called = {c["id"]: (c["id"], c["name"]) for c in truth["categories"]}
    called |= {i: rename(i) for i in called} if rename else {}

    def detect(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
        for picture in pictures:
            image_id = truth["images"][picture[0, 0, 0]]["id"]
            chosen = [r | {"category_id": called[r["category_id"]][0]} for r in records if r["image_id"] == image_id]
            yield detections(chosen, dict(called.values()), picture.shape[:2], masks)

    return detect


def rounded(records: Records) -> Records:
    """As `Detections.coco` writes them."""
    return [
        r
        | {
            "bbox": np.float32(r["bbox"]).astype(float).round(3).tolist(),
            "score": round(float(np.float32(r["score"])), 6),
        }
        for r in records
    ]


@pytest.fixture
def scored(make_scene: Any) -> Evaluation:
    truth, records = make_scene(2, pictures=24)
    return evaluate_records(truth, records)


def test_running_a_detector_scores_its_records(make_scene) -> None:
    truth, records = make_scene(1)
    dataset = MadeUp(truth)
    seen: list[tuple[int, int]] = []
    result = evaluate(
        detector(truth, records),
        dataset,
        max_detections=(1, 50),
        progress=lambda done, total: seen.append((done, total)),
    )
    ordered = [r for image in truth["images"] for r in records if r["image_id"] == image["id"]]
    expected = evaluate_records(truth, rounded(ordered), max_detections=(1, 50))
    assert seen == [(i + 1, 16) for i in range(16)]
    assert result.mask is not None and expected.mask is not None
    np.testing.assert_array_equal(result.box.precision, expected.box.precision)
    np.testing.assert_array_equal(result.mask.precision, expected.mask.precision)
    np.testing.assert_array_equal(result.confusion, expected.confusion)
    assert result.counts == expected.counts
    assert result.counts.detections == len(records)
    assert result.seconds > 0 and result.scoring_seconds > 0


def test_pictures_are_read_one_by_one(make_scene) -> None:
    truth, records = make_scene(1)
    dataset = MadeUp(truth)
    ahead = []

    def detect(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
        for done, found in enumerate(detector(truth, records)(pictures), start=1):
            ahead.append(len(dataset.served) - done)
            yield found

    evaluate(detect, dataset)
    assert dataset.served == list(range(16)) and set(ahead) == {0}


def test_boxes_alone(make_scene) -> None:
    truth, records = make_scene(1)
    result = evaluate(detector(truth, records, masks=False), MadeUp(truth))
    assert result.mask is None and result.summary()["mask"] is None and result.box.ap is not None


def test_data_set_without_masks(make_scene) -> None:
    truth, records = make_scene(1)
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    assert evaluate(detector(truth, records), MadeUp(truth)).mask is None


@pytest.mark.parametrize("masks", [True, False])
def test_a_detector_that_finds_nothing(make_scene, tmp_path: Path, masks: bool) -> None:
    truth, _ = make_scene(1)
    result = evaluate(detector(truth, [], masks=masks), MadeUp(truth))
    summary = result.summary()
    assert (result.mask is not None) == masks
    assert summary["box"]["ap@100"] == 0 and summary["best_f1"] is None and summary["precision"] is None
    assert summary["pictures_with_detections"] == 0
    assert len(result.save(tmp_path)) == 5
    Console(width=150, file=io.StringIO()).print(*result.table())


def test_no_objects(make_scene, tmp_path: Path) -> None:
    truth, records = make_scene(1)
    truth["annotations"] = []
    result = evaluate(detector(truth, records), MadeUp(truth))
    summary = result.summary()
    assert summary["box"]["ap@100"] is None and summary["f1"] is None and summary["precision"] == 0
    assert len(result.save(tmp_path)) == 5 and result.table()


def test_no_pictures(tmp_path: Path) -> None:
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    result = evaluate(detector(truth, []), MadeUp(truth))
    assert result.summary()["pictures"] == 0 and result.summary()["box"]["ap@300"] is None
    assert len(result.save(tmp_path)) == 5 and result.table()


def test_classes_meet_by_name_whatever_their_ids(make_scene) -> None:
    truth, records = make_scene(1)
    expected = evaluate(detector(truth, records), MadeUp(truth))
    swapped = {5: 10, 10: 5, 15: 1, 20: 77}  # a detector that counts otherwise, and writes in capitals
    result = evaluate(detector(truth, records, lambda i: (swapped[i], f" CLASS {i // 5}")), MadeUp(truth))
    np.testing.assert_array_equal(result.box.precision, expected.box.precision)
    assert {r["category_id"] for r in result.records} == {r["category_id"] for r in expected.records}


def test_classes_without_names_meet_by_id(make_scene) -> None:
    truth, records = make_scene(1)
    expected = evaluate(detector(truth, records), MadeUp(truth))
    result = evaluate(detector(truth, records, lambda i: (i, "")), MadeUp(truth))
    np.testing.assert_array_equal(result.box.precision, expected.box.precision)


def test_classes_that_the_data_set_lacks_are_counted(make_scene) -> None:
    truth, records = make_scene(1)
    extra = sum(r["category_id"] == 10 for r in records)
    detect = detector(truth, records, lambda i: (i, "dragon" if i == 10 else f"class {i // 5}"))
    result = evaluate(detect, MadeUp(truth))
    assert result.counts.ignored_detections == extra > 0
    assert result.counts.ignored_classes == ("dragon",)
    assert result.counts.detections == len(records) - extra
    assert result.summary()["ignored_classes"] == ["dragon"]


def test_no_class_in_common_found_out_at_the_end(make_scene) -> None:
    truth, records = make_scene(1)
    with pytest.raises(InputError) as caught:
        evaluate(detector(truth, records, lambda i: (i, f"dragon {i}")), MadeUp(truth))
    assert "found 4: dragon 10, dragon 15, dragon 20, dragon 5" in str(caught.value)
    assert "expected some of 4: class 4, class 3, class 2, class 1" in str(caught.value)


def test_no_class_in_common_found_out_before_the_first_picture(make_scene) -> None:
    truth, records = make_scene(1)
    dataset = MadeUp(truth)
    with pytest.raises(InputError, match="found 1: dragon; expected some of 4: class 4"):
        evaluate(detector(truth, records), dataset, classes=Classes(("dragon",), (5,)))
    assert dataset.served == []


@pytest.mark.parametrize(("change", "words"), [(-1, "too few results; found 15"), (1, "too many results; found 17")])
def test_one_result_per_picture(make_scene, change: int, words: str) -> None:
    truth, records = make_scene(1)

    def detect(pictures: Iterable[np.ndarray]) -> list[Detections]:
        found = list(detector(truth, records)(pictures))
        return found[:-1] if change < 0 else [*found, found[0]]

    with pytest.raises(InputError, match=f"detect: {words}; expected one for each of 16 pictures"):
        evaluate(detect, MadeUp(truth))


def test_detections_in_another_frame(make_scene) -> None:
    truth, records = make_scene(1)

    def detect(pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
        return (replace(found, size=(45, 60)) for found in detector(truth, records)(pictures))

    with pytest.raises(InputError, match=r"found \(45, 60\); expected \(height, width\) \(90, 120\)"):
        evaluate(detect, MadeUp(truth))


def test_subset_is_an_evaluation_of_those_pictures(make_scene, scored: Evaluation) -> None:
    ids = [image["id"] for image in scored.ground_truth["images"][:9]]
    part = scored.subset(ids)
    truth, records = restricted(scored.ground_truth, scored.records, ids)
    expected = evaluate_records(truth, records)
    assert part.counts.pictures == 9 and 0 < part.counts.objects < scored.counts.objects
    assert part.summary() | {"scoring_seconds": 0} == expected.summary() | {"scoring_seconds": 0}
    with pytest.raises(InputError, match="image_ids: no such picture"):
        scored.subset([ids[0], 10**6])


def test_summary_is_json_and_agrees_with_the_arrays(scored: Evaluation) -> None:
    summary = json.loads(json.dumps(scored.summary(), allow_nan=False))
    assert scored.mask is not None
    assert summary["mask"]["ap@300"] == scored.mask.at(300).ap
    assert summary["box"]["ap50@100"] == scored.box.at(100).ap50
    assert summary["box"]["ar@100"] == scored.box.at(100).ar
    assert summary["objects"] == scored.total.objects == sum(c["objects"] for c in summary["per_class"].values())
    assert list(summary["per_class"]) == ["class 1", "class 2", "class 3", "class 4"]
    assert summary["per_class"]["class 1"]["mask_ap@100"] == scored.mask.at(100).ap_per_class[0]
    assert summary["per_class"]["class 4"]["mask_ap@100"] is None
    best = scored.total.best()
    assert best is not None and summary["best_f1_threshold"] == best.threshold and summary["best_f1"] == best.f1
    assert summary["confusion"]["classes"] == ["background", *summary["per_class"]]
    assert np.array_equal(summary["confusion"]["matrix"], scored.confusion)


def test_equal_names_are_told_apart_by_id(make_scene) -> None:
    truth, records = make_scene(1)
    for category in truth["categories"]:
        category["name"] = "thing"
    assert list(evaluate_records(truth, records).summary()["per_class"]) == [f"thing ({5 * k})" for k in range(1, 5)]


def test_tables(scored: Evaluation) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(*scored.table())
    text = console.export_text()
    assert scored.mask is not None and scored.mask.at(100).ap is not None
    assert f"{scored.mask.at(100).ap:.3f}" in text
    assert "class 4" in text and "all" in text  # found though not there
    rows = [line.split("│") for line in text.splitlines() if "class 4" in line]
    assert rows[0][1].strip() == "0" and rows[0][2].strip() == "-"


def test_files(scored: Evaluation, tmp_path: Path) -> None:
    paths = scored.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(p.name for p in paths)
    assert json.loads((tmp_path / "new/folder/scores.json").read_text()) == scored.summary()
    assert json.loads((tmp_path / "new/folder/detections.json").read_text()) == scored.records
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 500 and len(picture.convert("RGB").getcolors(10**6) or []) > 20


def test_a_file_is_written_whole_or_not_at_all(
    scored: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored.save(tmp_path)
    before = (tmp_path / "scores.json").read_bytes()

    def break_off(path: Path, value: Any, indent: int | None = None) -> None:
        path.write_text("{half of", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "_write_json", break_off)
    with pytest.raises(KeyboardInterrupt):
        scored.save(tmp_path)
    assert (tmp_path / "scores.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 5


def test_odd_class_names_draw(make_scene, tmp_path: Path) -> None:
    truth, records = make_scene(1)
    for category, name in zip(truth["categories"], ["$", "_hidden", "", "a name " * 20], strict=True):
        category["name"] = name
    assert len(evaluate_records(truth, records).save(tmp_path)) == 5


def test_many_classes_draw(make_scene, tmp_path: Path) -> None:
    truth, records = make_scene(1, pictures=30, classes=40)
    assert len(evaluate_records(truth, records).save(tmp_path)) == 5
