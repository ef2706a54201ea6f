"""Pictures in every form, one or many, in; detections in the original frame out."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import maskrcnn.predictor
from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.presets import preset
from maskrcnn.predictor import Predictor, load
from maskrcnn.structures import Detections
from maskrcnn.weights.files import save_checkpoint


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    config = preset("nano", ("cell", "debris"), (1, 7))
    few = replace(config.rpn, post_nms_top_n=50)
    return Predictor(MaskRCNN(replace(config, rpn=few, detection=replace(config.detection, max_detections=20))), "cpu")


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for i, size in enumerate([(40, 56), (48, 48), (33, 70)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def assert_same(a: Detections, b: Detections) -> None:
    torch.testing.assert_close(a.boxes, b.boxes)
    torch.testing.assert_close(a.scores, b.scores)
    assert a.names == b.names
    assert a.masks is not None and b.masks is not None
    torch.testing.assert_close(a.masks.probabilities, b.masks.probabilities)


def test_one_picture(predictor: Predictor, picture: np.ndarray) -> None:
    found = predictor.predict(picture, score_threshold=0.0)
    assert len(found) > 0
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert found.boxes.shape == (len(found), 4)
    assert found.size == (40, 56)
    assert found.source == ""
    assert not found.boxes.requires_grad
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2] <= 56).all() and (found.boxes[:, 3] <= 40).all()
    assert set(zip(found.labels.tolist(), found.names, found.category_ids, strict=True)) <= {
        (1, "cell", 1),
        (2, "debris", 7),
    }
    assert found.picture is not None
    assert np.array_equal(found.picture(), picture)


def test_every_form_of_a_picture_gives_the_same(predictor: Predictor, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "[a] picture.png"  # characters of a glob, yet one file
    Image.fromarray(picture).save(path)
    frozen = picture.copy()
    frozen.flags.writeable = False
    wanted = predictor.predict(picture)
    forms = [
        str(path),
        path,
        path.read_bytes(),
        Image.fromarray(picture),
        frozen,
        torch.from_numpy(picture.transpose(2, 0, 1)),
    ]
    for form in forms:
        found = predictor.predict(form)
        assert isinstance(found, Detections)
        assert_same(found, wanted)
    found = predictor.predict(path)
    assert found.source == str(path)
    assert np.array_equal(found.picture(), picture)


def test_nothing_found(predictor: Predictor, picture: np.ndarray) -> None:
    found = predictor.predict(picture, score_threshold=1.0)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.coco() == []


def test_many_pictures(predictor: Predictor, folder: Path) -> None:
    paths = sorted(folder.glob("*.png"))
    one_by_one = [predictor.predict(path) for path in paths]
    for many in (paths, (p for p in paths), folder, str(folder), str(folder / "*.png"), [folder]):
        found = list(predictor.predict(many))
        assert [f.source for f in found] == [str(p) for p in paths]
        assert [f.size for f in found] == [(40, 56), (48, 48), (33, 70)]
        for a, b in zip(found, one_by_one, strict=True):
            assert_same(a, b)


def test_a_batch_of_several_sizes(predictor: Predictor, folder: Path) -> None:
    single = list(predictor.predict(folder))
    batched = list(predictor.predict(folder, batch_size=2))
    assert [f.source for f in batched] == [f.source for f in single]
    assert [f.size for f in batched] == [f.size for f in single]


def test_no_pictures(predictor: Predictor, tmp_path: Path) -> None:
    assert list(predictor.predict([])) == []
    with pytest.raises(InputError, match="holds no picture"):
        predictor.predict(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        predictor.predict(tmp_path / "missing.png")


def test_options_reach_the_model(predictor: Predictor, picture: np.ndarray) -> None:
    assert len(predictor.predict(picture, score_threshold=0.0, max_detections=3)) == 3
    assert len(predictor.predict(picture, score_threshold=0.0, nms_iou=1.0, max_detections=5000, proposals=2)) == 2 * 2
    everything = {"score_threshold": 0.0, "max_detections": 5000}
    loose = predictor.predict(picture, **everything)
    strict = predictor.predict(picture, **everything, nms_iou=0.1)
    agnostic = predictor.predict(picture, **everything, nms_iou=0.1, class_agnostic_nms=True)
    assert len(loose) > len(strict) > len(agnostic) > 0
    assert len(predictor.predict(picture, mask_nms_iou=0.0)) <= len(predictor.predict(picture))
    native = predictor.predict(picture, size="native")
    assert not torch.equal(native.boxes[:1], predictor.predict(picture).boxes[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold: impossible value; found 1.5"),
        ({"nms_iou": -1.0}, "nms_iou: impossible value"),
        ({"max_detections": 0}, "max_detections: impossible value"),
        ({"proposals": 0}, "impossible value; found 0"),
        ({"size": 0}, "size: impossible value; found 0"),
        ({"size": "large"}, "size: impossible value; found 'large'"),
        ({"size": 10**9}, "size: impossible value; found 1000000000"),
        ({"max_detections": 10**20}, "max_detections: impossible value"),
        ({"batch_size": 0}, "batch_size: impossible value; found 0"),
        ({"batch_size": 10**20}, "batch_size: impossible value; found 1"),
    ],
)
def test_impossible_options_fail_before_any_picture(
    predictor: Predictor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        predictor.predict(iter(()), **options)


def test_options_may_be_numbers_of_numpy(predictor: Predictor, picture: np.ndarray) -> None:
    plain = {"size": 64, "max_detections": 5, "proposals": 50, "score_threshold": 0.25, "nms_iou": 0.5, "batch_size": 2}
    of_numpy = {name: np.float32(v) if isinstance(v, float) else np.int64(v) for name, v in plain.items()}
    expected = predictor.predict(picture, **plain, class_agnostic_nms=True)  # type: ignore[arg-type]
    found = predictor.predict(picture, **of_numpy, class_agnostic_nms=np.bool_(True))  # type: ignore[arg-type]
    assert_same(found, expected)
    assert len(list(predictor.predict([picture] * 3, batch_size=np.int64(2)))) == 3  # type: ignore[typeddict-item]


@pytest.mark.parametrize("pictures", [None, 3, 0.5, object()])
def test_what_is_no_picture(predictor: Predictor, pictures: Any) -> None:
    with pytest.raises(InputError, match=r"pictures: is no picture; found .*; expected a picture \(path, bytes"):
        predictor.predict(pictures)


def test_a_bad_file_among_good_ones(predictor: Predictor, folder: Path) -> None:
    (folder / "0bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"0bad\.png"):
        list(predictor.predict(folder))
    errors: list[InputError] = []
    found = list(predictor.predict(folder, batch_size=2, on_error=errors.append))
    assert [Path(f.source).name for f in found] == ["0.png", "1.png", "2.png"]
    assert len(errors) == 1 and "0bad.png" in str(errors[0])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_only_the_pictures_at_work_are_held(
    predictor: Predictor, folder: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, alive, most = maskrcnn.predictor.read_picture, weakref.WeakValueDictionary[int, Any](), 0
    reads = 0

    def counting(picture: Any) -> np.ndarray:
        nonlocal most, reads
        array = real(picture).copy()
        alive[reads] = array
        reads += 1
        most = max(most, len(alive))
        return array

    monkeypatch.setattr(maskrcnn.predictor, "read_picture", counting)
    paths = sorted(folder.glob("*.png")) * 2
    kept = []
    for i, found in enumerate(predictor.predict(iter(paths), batch_size=batch_size)):
        kept.append(found)
        assert len(alive) == 0, "a picture is held while the caller works"
        assert reads == (i // batch_size + 1) * batch_size, "read ahead of its batch"
    assert len(kept) == len(paths)
    assert most <= batch_size


def test_a_generator_is_read_as_it_goes(predictor: Predictor, picture: np.ndarray) -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield picture

    stream = predictor.predict(endless())
    assert_same(next(stream), next(stream))


def test_load(predictor: Predictor, picture: np.ndarray, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "tiny.safetensors", predictor.model, metadata={})
    loaded = load(path, device="cpu")
    assert loaded.class_names == ("cell", "debris")
    assert loaded.category_ids == (1, 7)
    assert repr(loaded) == "Predictor(2 classes, device='cpu', precision='float32')"
    assert_same(loaded.predict(picture), predictor.predict(picture))
    renamed = load(path, replace(predictor.model.config, class_names=("nucleus", "dust")), device="cpu")
    assert set(renamed.predict(picture).names) <= {"nucleus", "dust"}
    with pytest.raises(InputError, match="tensors do not fit the config"):
        load(path, preset("nano", ("cell",), (1,)), device="cpu")


def test_bf16_gives_float32_results_close_to_exact(predictor: Predictor, picture: np.ndarray) -> None:
    rounded = Predictor(predictor.model, "cpu", "bf16").predict(picture)
    exact = predictor.predict(picture)
    assert rounded.boxes.dtype == rounded.scores.dtype == torch.float32
    assert rounded.masks is not None and rounded.masks.probabilities.dtype == torch.float32
    assert abs(rounded.scores[0].item() - exact.scores[0].item()) < 0.05


def test_what_load_refuses(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="no such weights"):
        load("nucleus")
    with pytest.raises(InputError, match="device: no such device; found abacus"):
        Predictor(predictor.model, "abacus")
    with pytest.raises(InputError, match="device: computes nothing; found meta"):
        Predictor(predictor.model, "meta")
    with pytest.raises(InputError, match="device: no such device; found None"):
        Predictor(predictor.model, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="device: no such device; found cuda:63"):
        Predictor(predictor.model, "cuda:63")
    with pytest.raises(InputError, match="precision: no such precision; found fp8"):
        Predictor(predictor.model, "cpu", "fp8")  # type: ignore[arg-type]


def test_a_full_device_is_told_in_one_line(
    predictor: Predictor, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nIf reserved ...")

    monkeypatch.setattr(predictor, "network", network)
    with pytest.raises(
        InputError, match="out of memory; found 1 picture at a time; expected a smaller batch_size, size"
    ):
        predictor.predict(picture)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
@pytest.mark.parametrize("plain", [False, True])
def test_copies_and_other_processes(predictor: Predictor, picture: np.ndarray, duplicate: Any, plain: bool) -> None:
    given = predictor.untuned() if plain else predictor
    other = duplicate(given)
    assert (other.network is other.model) == plain and other.model is not given.model
    assert_same(other.predict(picture), given.predict(picture))
