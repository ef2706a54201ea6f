"""Every target against the plain model: two sizes and shapes, and none, one and many detections."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.errors import InputError
from maskrcnn.export import exporting, host
from maskrcnn.export.aoti import compiler
from maskrcnn.export.core import DetectionCore, Shape, applied, facts_of
from maskrcnn.export.exporting import LIBRARIES, SUFFIX, Exported, checked_out, export_detector
from maskrcnn.export.facts import Target
from maskrcnn.export.opening import load, open_any_session
from maskrcnn.export.verify import compare
from maskrcnn.model.limits import Limits
from maskrcnn.model.mask_rcnn import MaskRCNN

from .detectors import detector, picture

SHAPES = ((100, 140), (230, 110), (60, 60))  # px of the pictures, which the detector enlarges to 128 at the least
PICTURES = [
    (picture(*SHAPES[seed % 3], seed) * (0.2 + 0.8 * (seed % 5) / 4)).astype(np.uint8)  # some darker than others
    for seed in range(10)
]


@dataclass(frozen=True)
class Made:
    model: MaskRCNN
    limits: Limits
    exported: Exported


def require(target: Target) -> None:
    for library in LIBRARIES[target]:
        pytest.importorskip(library)
    if target == "aoti" and compiler() is None:
        pytest.skip("needs a C++ compiler")


def run_core(
    core: DetectionCore, pixels: np.ndarray, sizes: np.ndarray, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = core(torch.from_numpy(pixels), torch.from_numpy(sizes))
    return {name: values.numpy() for name, values in zip(names, found, strict=True)}


def telling_threshold(model: MaskRCNN) -> float:
    """A score threshold above which some pictures have nothing, some one detection and some three or more."""
    facts = facts_of(model, "onnx", Shape(), licence="none", source="drawn")
    core = DetectionCore(model, applied(model, Limits(score_threshold=0.0)))
    scores = []
    for each in PICTURES:
        pixels, sizes = host.padded([host.ready(each, facts)], facts)
        scores.append(run_core(core, pixels, sizes, facts.outputs)["scores"][0])
    every = np.unique(np.concatenate(scores))
    gaps = np.diff(every)
    for i in np.argsort(-gaps):
        middle = float(every[i] + gaps[i] / 2)
        counts = [int((values > middle).sum()) for values in scores]
        if 0 in counts and 1 in counts and max(counts) >= 3:
            return middle
    raise AssertionError("no threshold tells these pictures apart")


def made(target: Target, folder: Path) -> Made:
    require(target)
    model = detector()
    limits = Limits(score_threshold=telling_threshold(model))
    out = folder / f"cells{SUFFIX[target]}"
    exported = export_detector(model, target, out, limits=limits, licence="CC0", source="drawn", pictures=PICTURES[3:5])
    return Made(model, limits, exported)


@pytest.fixture(scope="module", params=[pytest.param(target, marks=pytest.mark.slow) for target in SUFFIX])
def any_target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(request.param, tmp_path_factory.mktemp("exported"))


def test_equals_the_plain_model_with_none_one_and_many(any_target: Made) -> None:
    model, facts = any_target.model, any_target.exported.facts
    session, opened = open_any_session(any_target.exported.file)
    assert opened == facts and facts.licence == "CC0"
    core = DetectionCore(model, applied(model, any_target.limits))
    counts, shapes = [], set()
    for each in PICTURES:
        pixels, sizes = host.padded([host.ready(each, facts)], facts)
        differences = compare(
            *(
                {n: v[0] for n, v in found.items()}
                for found in (run_core(core, pixels, sizes, facts.outputs), session(pixels, sizes))
            )
        )
        assert (differences.only_plain, differences.only_exported) == (0, 0)
        assert differences.boxes < 1e-3 and differences.scores < 1e-5 and differences.masks < 1e-4
        counts.append(differences.detections)
        shapes.add(pixels.shape)
    assert {0, 1} < set(counts) and max(counts) >= 3
    assert len(shapes) == 3


def test_opens_alone_from_any_folder_with_the_face_of_a_detector(
    any_target: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(shutil.copy(any_target.exported.file, "alone" + any_target.exported.file.suffix))
    opened = load(file)
    assert opened.class_names == ("cat", "dog", "hen") and opened.category_ids == (3, 5, 9)
    image = torch.from_numpy(PICTURES[4]).permute(2, 0, 1)
    (plain,) = any_target.model([image], any_target.limits)
    found = opened.predict(PICTURES[4])
    assert len(found) == len(plain) > 0 and found.names == plain.names and found.category_ids == plain.category_ids
    torch.testing.assert_close(found.boxes, plain.boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, plain.scores, atol=1e-5, rtol=0)
    assert plain.masks is not None
    pixels = plain.masks.bitmaps().sum()
    assert (found.masks.bitmaps() ^ plain.masks.bitmaps()).sum() <= 0.01 * pixels
    with pytest.raises(InputError, match="device: is settled in an exported file"):
        load(file, device="cuda")
    with pytest.raises(InputError, match="precision: is settled"):
        load(file, precision="bf16")


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "safetensors"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, NoTorch())
from maskrcnn.export.runner import open_file

found = open_file(sys.argv[1], threads=1).predict("picture.png")
found.save("drawn.png")
assert "torch" not in sys.modules
print([box.tolist() for box in found.boxes], [rle["counts"] for rle in found.masks.rle()], sep="\\n")
"""


def test_runs_where_there_is_no_torch(any_target: Made, tmp_path: Path) -> None:
    file = any_target.exported.file
    if file.suffix == ".pt2":
        pytest.skip("a program of torch")
    from PIL import Image

    Image.fromarray(PICTURES[4]).save(tmp_path / "picture.png")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    boxes, counts = done.stdout.splitlines()
    found = load(file).predict(PICTURES[4])
    np.testing.assert_allclose(eval(boxes), found.boxes.numpy(), atol=1e-4)
    assert eval(counts) == [rle["counts"] for rle in found.masks.rle()]
    assert (tmp_path / "drawn.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "kind"),  # all fifteen pairs would take a quarter of an hour
    [
        ("onnx", "keypoints"),
        ("onnx", "adaptive"),
        ("onnx", "c4"),
        ("openvino", "cascade"),
        ("torch-export", "faster"),
    ],
)
def test_other_detectors(target: Target, kind: str, tmp_path: Path) -> None:
    require(target)
    model = detector(kind)
    exported = export_detector(model, target, tmp_path / f"a{SUFFIX[target]}", pictures=PICTURES[3:6])
    assert exported.differences.detections > 20
    assert exported.differences.boxes < 1e-3 and exported.differences.scores < 1e-5
    found = load(exported.file).predict(PICTURES[4])
    (plain,) = model([torch.from_numpy(PICTURES[4]).permute(2, 0, 1)])
    torch.testing.assert_close(found.boxes, plain.boxes, atol=1e-3, rtol=0)
    assert (found.masks is None) == (plain.masks is None)
    assert (found.keypoints is None) == (plain.keypoints is None)
    if plain.keypoints is not None:
        torch.testing.assert_close(found.keypoints, plain.keypoints, atol=1e-2, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "shape"),
    [
        ("onnx", Shape(batch=None)),
        ("openvino", Shape(size=(120, 160), batch=2)),
    ],
    ids=["onnx-any", "openvino-fixed"],
)
def test_several_pictures_in_a_call(target: Target, shape: Shape, tmp_path: Path) -> None:
    require(target)
    model = detector()
    exported = export_detector(model, target, tmp_path / f"a{SUFFIX[target]}", shape=shape, pictures=PICTURES[3:5])
    facts = exported.facts
    assert facts.size == (None if shape.size is None else (128, 160))
    session, _ = open_any_session(exported.file)
    pixels, sizes = host.padded([host.ready(each, facts) for each in PICTURES[3:5]], facts)
    plain = run_core(DetectionCore(model, model.config), pixels, sizes, facts.outputs)
    found = session(pixels, sizes)
    for i in range(2):
        differences = compare({n: v[i] for n, v in plain.items()}, {n: v[i] for n, v in found.items()})
        assert (differences.only_plain, differences.only_exported) == (0, 0) and differences.detections > 3
        assert differences.boxes < 1e-3 and differences.masks < 1e-4
    assert len(list(load(exported.file).predict(PICTURES[:3], batch_size=2))) == 3


@pytest.mark.parametrize(
    ("target", "name", "said"),
    [
        ("onnx", "a.pt2", "does not fit --to onnx; found .pt2; expected .onnx"),
        ("openvino", "a.xml", "does not fit --to openvino; found .xml; expected .openvino"),
        ("aoti", "a", "expected .pt2"),
        ("tflite", "a.tflite", "no such target; found tflite; expected onnx or openvino or torch-export or aoti"),
    ],
)
def test_the_suffix_has_to_fit(target: Target, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        checked_out(target, tmp_path / name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        checked_out("onnx", tmp_path / "a.onnx")


@pytest.mark.parametrize("library", ["onnxscript", "onnxruntime"])
def test_a_library_that_is_missing_is_named_before_the_work(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == library else object())
    monkeypatch.setattr(exporting, "record", None)
    with pytest.raises(InputError, match=rf"^needs {library}; expected pip install 'maskrcnn\[export\]'$"):
        export_detector(detector(), "onnx", tmp_path / "a.onnx")


def test_a_compiler_that_is_missing_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.export.aoti.shutil.which", lambda name: None)
    monkeypatch.setattr(exporting, "record", None)
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler; expected g\\+\\+ or clang"):
        export_detector(detector(), "aoti", tmp_path / "a.pt2")
