"""The runner, with systems that need no training: equal treatment, rows that stay, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.data.dataset import AdaptedSequence, Dataset
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.lineage import run
from maskrcnn.lineage.ablations import ABLATIONS
from maskrcnn.lineage.report import write_report
from maskrcnn.lineage.rows import rows_to_json
from maskrcnn.lineage.run import fewer_pictures, lineage, score, subject_of
from maskrcnn.lineage.small import small_body, usual_scale
from maskrcnn.lineage.system import Bench, Stopwatch, System, Trained
from maskrcnn.structures import Detections, Masks, Target
from maskrcnn.training.report import write_json
from maskrcnn.training.start import open_pictures

TRAIN, VAL = ShapesDataset(6, size=(64, 64), seed=1), ShapesDataset(4, size=(64, 48), seed=2)
Detect = Callable[[np.ndarray, Stopwatch], Detections]


def knowing(dataset: Dataset, *, masks: bool = False, share: float = 1.0) -> Detect:
    """A detector that has seen the answers, and gives the first `share` of them."""
    answers = {dataset[i][0].tobytes(): dataset.target(i) for i in range(len(dataset))}

    def detect(picture: np.ndarray, watch: Stopwatch) -> Detections:
        with watch("remember"):
            target = answers[picture.tobytes()]
            count = round(share * len(target))
            boxes, labels = target.gt_boxes[:count], target.gt_labels[:count]
            full = Masks(torch.ones(count, 4, 4), boxes, target.size) if masks else None
        with watch("tell"):
            names = tuple(dataset.classes.names[k - 1] for k in labels.tolist())
            ids = tuple(dataset.classes.category_ids[k - 1] for k in labels.tolist())
            return Detections(boxes, torch.ones(count), labels, names, ids, full, target.size)

    return detect


class Fakes:
    """Systems by key, and the benches that each was trained on."""

    def __init__(self, *keys: str, **failing: BaseException) -> None:
        self.benches: dict[str, list[Bench]] = {key: [] for key in keys}
        self.failing = failing
        self.systems = tuple(System(key, f"The {key}", "a paper", self._train(key)) for key in keys)

    def _train(self, key: str) -> Callable[[Bench], Trained]:
        def train(bench: Bench) -> Trained:
            self.benches[key].append(bench)
            bench.progress("learning", 0.5)
            if key in self.failing:
                raise self.failing[key]
            share = 0.0 if key == "blind" else 1.0
            detect = knowing(bench.val, masks=key == "masked", share=share)
            return Trained(detect, {"all": 2.0}, {"steps": 7.0})

        return train

    @property
    def trained(self) -> dict[str, int]:
        return {key: len(benches) for key, benches in self.benches.items()}


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Runs the comparison with fakes in place of the systems, and without plots and page unless asked for."""

    def rows_only(out: Path, subject: Any, rows: Sequence[Any], settings: Any) -> None:
        write_json(out / "lineage.json", rows_to_json(rows))

    def compare(fakes: Fakes, *, whole_report: bool = False, **options: Any) -> list[Any]:
        monkeypatch.setattr(run, "write_report", write_report if whole_report else rows_only)

        def chosen(keys: Sequence[str] = ()) -> tuple[System, ...]:
            return fakes.systems

        monkeypatch.setattr(run, "systems_of", chosen)
        usual: dict[str, Any] = {"data": TRAIN, "val": VAL, "out": tmp_path / "out", "minutes": 0.5, "device": "cpu"}
        return lineage(**(usual | options))

    return compare


def test_one_that_knows_scores_1_and_one_that_finds_nothing_0(compared: Any, tmp_path: Path) -> None:
    rows = compared(Fakes("knowing", "blind", "masked"))
    assert [(row.name, row.box_ap, row.box_ap50, row.box_ap75) for row in rows] == [
        ("The knowing", 1.0, 1.0, 1.0),
        ("The blind", 0.0, 0.0, 0.0),
        ("The masked", 1.0, 1.0, 1.0),
    ]
    detect = knowing(VAL, masks=True)
    expected = evaluate(lambda pictures: (detect(picture, Stopwatch()) for picture in pictures), VAL).mask
    assert expected is not None and 0 < rows[2].mask_ap < 1  # whole boxes for masks
    assert (rows[2].mask_ap, rows[2].mask_ap75) == (expected.ap, expected.ap75)
    assert [row.mask_ap for row in rows[:2]] == [None, None]
    written = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert [row["name"] for row in written] == ["The knowing", "The blind", "The masked"]
    assert written[0].keys() >= {"name", "box_ap", "mask_ap", "seconds_per_picture", "stages"}
    assert written[0]["stages"].keys() == {"remember", "tell"} and written[0]["training"] == {"all": 2.0}
    assert written[1]["mask_ap"] is None and written[2]["facts"] == {"steps": 7.0} and written[2]["pictures"] == 4


def test_all_files_are_written(compared: Any, tmp_path: Path) -> None:
    compared(Fakes("knowing"), whole_report=True)
    found = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert found == {"lineage.json", "settings.json", "table.md", "lineage.html", "accuracy.png", "stages.png"}
    assert (tmp_path / "out" / "systems" / "knowing-seed-0" / "row.json").is_file()


def test_every_system_gets_the_same_bench_but_for_its_folder(compared: Any, tmp_path: Path) -> None:
    fakes = Fakes("one", "two")
    compared(fakes, seeds=(3, 5), pictures=4, val_pictures=2)
    benches = [bench for made in fakes.benches.values() for bench in made]
    assert len({bench.folder for bench in benches}) == 4
    assert {bench.proposals for bench in benches} == {tmp_path / "out" / "proposals"}
    assert {(len(bench.train), len(bench.val), bench.minutes, bench.device) for bench in benches} == {
        (4, 2, 0.5, "cpu")
    }
    assert all(bench.body == small_body() and bench.scale == usual_scale(bench.train) for bench in benches)
    assert [bench.seed for bench in fakes.benches["one"]] == [bench.seed for bench in fakes.benches["two"]] == [3, 5]


def test_the_first_picture_warms_up_unwatched_and_unscored() -> None:
    watches, pictures = [], []
    detect = knowing(VAL)

    def noting(picture: np.ndarray, watch: Stopwatch) -> Detections:
        watches.append(watch)
        pictures.append(picture)
        return detect(picture, watch)

    told: list[float] = []
    scores, seconds, stages = score(Trained(noting, {}), VAL, lambda what, done: told.append(done))
    assert len(pictures) == len(VAL) + 1 and np.array_equal(pictures[0], pictures[1])
    assert watches[0] is not watches[1] and len(set(map(id, watches[1:]))) == 1
    assert scores.counts.pictures == len(VAL) and told == [0.25, 0.5, 0.75, 1.0]
    assert stages == {stage: total / len(VAL) for stage, total in watches[1].seconds.items()}
    assert 0 < sum(stages.values()) <= seconds


def test_rows_of_the_same_settings_are_taken(compared: Any) -> None:
    first = Fakes("one", "two")
    rows = compared(first)
    again = Fakes("one", "two", "three")
    more = compared(again, seeds=(0, 1))
    assert first.trained == {"one": 1, "two": 1}
    assert again.trained == {"one": 1, "two": 1, "three": 2}
    assert more[:2] == rows and [(row.key, row.seed) for row in more[2:]] == [
        ("three", 0),
        ("one", 1),
        ("two", 1),
        ("three", 1),
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"minutes": 0.75}, "minutes: the run was started with 0.5, not 0.75"),
        ({"scale": 3.0}, "scale: the run was started with"),
        ({"backbone": "resnet18"}, "body.frozen_stages: the run was started with 0, not 2"),
        ({"val": ShapesDataset(5, size=(64, 48), seed=2)}, "data.sha1_of_ids_and_classes: the run was started with"),
    ],
)
def test_rows_of_other_settings_are_refused_before_anything_is_trained(
    compared: Any, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    compared(Fakes("two"))
    fakes = Fakes("one", "two")
    with pytest.raises(InputError, match=told) as error:
        compared(fakes, **change)
    assert "two-seed-0" in str(error.value) and "\n" not in str(error.value)
    assert fakes.trained == {"one": 0, "two": 0}
    assert not (tmp_path / "out" / "systems" / "one-seed-0").exists()


def test_an_ablation_may_count_steps(compared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told to each network, written beside its row, and compared when the folder is gone on with."""
    fakes, asked = Fakes("one", "two"), []

    def noting(system: System) -> System:
        def train(bench: Bench) -> Trained:
            asked.append((bench.steps, bench.minutes))
            return system.train(bench)

        return replace(system, train=train)

    ablation = replace(ABLATIONS["mask-head"], variants=tuple(map(noting, fakes.systems)))
    monkeypatch.setitem(ABLATIONS, "mask-head", ablation)
    compared(fakes, ablation="mask-head", minutes=None, steps=7)
    assert asked == [(7, math.inf)] * 2
    settings = json.loads((tmp_path / "out" / "systems" / "one-seed-0" / "settings.json").read_text())
    assert (settings["steps"], settings["minutes"]) == (7, None)
    with pytest.raises(InputError, match="steps: the run was started with 7, not 8"):
        compared(fakes, ablation="mask-head", minutes=None, steps=8)
    assert "7 steps" in subject_of(ablation, 7).lead and "the same time" in subject_of(ablation).lead


@pytest.mark.parametrize("length", [{"minutes": None}, {"steps": 3}, {"minutes": None, "steps": 3}])
def test_how_long_is_said_once_and_in_steps_of_networks_alone(compared: Any, length: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="steps"):
        compared(Fakes("one"), **length)


@pytest.mark.parametrize("stop", [InputError("disk full"), KeyboardInterrupt()])
def test_what_is_done_stays_when_it_stops(compared: Any, tmp_path: Path, stop: BaseException) -> None:
    with pytest.raises(type(stop)):
        compared(Fakes("one", "two", two=stop))
    assert [row["key"] for row in json.loads((tmp_path / "out" / "lineage.json").read_text())] == ["one"]
    again = Fakes("one", "two")
    assert [row.key for row in compared(again)] == ["one", "two"] and again.trained == {"one": 0, "two": 1}


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}', '{"stages": 3}'])
def test_a_damaged_row_is_named(compared: Any, tmp_path: Path, text: str) -> None:
    compared(Fakes("one"))
    path = tmp_path / "out" / "systems" / "one-seed-0" / "row.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        compared(Fakes("one"))
    assert str(error.value).startswith(f"{path}: is no ") and "\n" not in str(error.value)


def test_fewer_pictures_are_evenly_spread_and_hold_objects() -> None:
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), None, torch.zeros(0, dtype=torch.bool), (8, 8))
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    one = Target(torch.tensor([[1.0, 1, 5, 5]]), torch.ones(1, dtype=torch.int64), None, torch.zeros(1).bool(), (8, 8))
    samples = [(picture, empty), (picture, one), (picture, empty), (picture, one), (picture, empty)]
    data = AdaptedSequence(samples)
    pictures = open_pictures(data, data, val_fraction=0.1, seed=0, images=None, skip_bad=False)
    fewer = fewer_pictures(pictures, 4, None)
    assert fewer.train.image_ids == (1, 2, 4, 5) and len(fewer.val) == 5
    with pytest.raises(InputError, match="val_pictures: none of them holds an object; found 3 pictures"):
        fewer_pictures(pictures, None, 3)  # the first, the third and the last


def test_progress_names_system_and_work(compared: Any) -> None:
    told: list[tuple[str, float]] = []
    compared(Fakes("one", "two"), progress=lambda what, done: told.append((what, done)))
    assert ("The one (1 of 2), learning", 0.5) in told and told[-1] == ("The two (2 of 2), detecting", 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet1"}, "backbone: no such network; found resnet1; expected a name that timm knows"),
        ({"pretrained_backbone": True}, "pretrained_backbone: needs weights"),
        ({"device": "gpu"}, "device: no such device; found gpu"),
        ({"ablation": "colour"}, "ablation: no such ablation; found colour; expected mask-classes or"),
    ],
)
def test_bad_options(compared: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        compared(Fakes("one"), **options)
    assert str(error.value).startswith(message)


def test_an_ablation_is_told_in_the_papers_words() -> None:
    ablation = ABLATIONS["mask-head"]
    subject = subject_of(ablation)
    assert subject.title == ablation.question and subject.paper == ablation.expected
    assert subject.columns[: len(ablation.compared)] == ablation.compared
    assert subject.expected == {"mask_ap": (("mask-rcnn", "mlp"),)}
