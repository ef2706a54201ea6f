"""The ablations: each network is what its name says, learns and detects; what is asked of the data is asked early."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

import maskrcnn.lineage.mask_rcnn as mask_rcnn
import maskrcnn.lineage.networks as networks
import maskrcnn.lineage.variants as variants
from maskrcnn.data.classes import Classes
from maskrcnn.data.shapes import SHAPE_CLASSES, ShapesDataset, drawn_shapes
from maskrcnn.errors import InputError
from maskrcnn.lineage.ablations import ABLATIONS, ablation_of, require_fits
from maskrcnn.lineage.rows import Row
from maskrcnn.lineage.small import mask_rcnn_config, small_body
from maskrcnn.lineage.system import Bench, Stopwatch
from maskrcnn.lineage.variants import VARIANTS
from maskrcnn.model.config import to_dict
from maskrcnn.model.mask_rcnn import MaskRCNN, MaskRCNNConfig
from maskrcnn.model.plain import PlainBlock

FEW_STEPS = {"minutes": None, "steps": 2, "batch_size": 2, "precision": "float32", "augmentation": {"crop": 64}}


def config_of(key: str, bench: Bench) -> MaskRCNNConfig:
    return VARIANTS[key].config(bench)


def differences(one: Any, other: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two config trees differ, by path."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return {} if one == other else {name: (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in one.keys() | other.keys():
        found |= differences(one.get(key), other.get(key), f"{name}.{key}".strip("."))
    return found


def changed_fields(key: str, bench: Bench) -> dict[str, Any]:
    base, config = to_dict(mask_rcnn_config(bench, SHAPE_CLASSES)), to_dict(config_of(key, bench))
    return {name: values[1] for name, values in differences(base, config).items()}


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("mask-rcnn", {}),
        ("softmax", {"mask_head.classes": "competing"}),
        ("mlp", {"mask_head.num_convs": 0, "mask_head.num_fcs": 2, "mask_head.fc_channels": 256}),
        ("agnostic", {"mask_head.class_agnostic": True}),
        ("boxes-only", {"mask_head": None}),
        ("plain-18", {"backbone.shortcuts": False, "backbone.options.layers": [2, 2, 2, 2]}),
        ("plain-34", {"backbone.shortcuts": False, "backbone.options.layers": [3, 4, 6, 3]}),
        ("residual-34", {"backbone.options.layers": [3, 4, 6, 3]}),
    ],
)
def test_a_variant_differs_from_the_tables_network_in_what_it_is_named_for(
    key: str, changes: dict[str, Any], bench: Bench
) -> None:
    assert changed_fields(key, bench) == changes


@pytest.mark.parametrize("stride", [16, 32])
@pytest.mark.parametrize("method", ["align", "warp", "pool"])
def test_pooling_variants_differ_from_one_another_in_method_and_stride_alone(
    method: str, stride: int, bench: Bench
) -> None:
    config, other = config_of(f"{method}-{stride}", bench), config_of("align-16", bench)
    found = {name: values[0] for name, values in differences(to_dict(config), to_dict(other)).items()}
    expected = {} if method == "align" else {"roi_pooler.method": method}
    assert found == expected | ({} if stride == 16 else {"backbone.levels": ["c5"]})
    model = MaskRCNN(config)
    assert model.fpn is None and model.mask_pooler is not None
    assert list(model.box_pooler.strides.values()) == list(model.mask_pooler.strides.values()) == [stride]
    assert model.box_pooler.config.method == model.mask_pooler.config.method == method
    assert VARIANTS[f"{method}-{stride}"].recipe == VARIANTS["align-16"].recipe


def test_at_stride_32_a_drawn_picture_is_twelve_cells_wide(bench: Bench) -> None:
    shapes = drawn_shapes("val")
    config = config_of("align-32", replace(bench, train=shapes, body=small_body(), scale=1.25))
    model = MaskRCNN(config).eval()
    with torch.no_grad():
        batch = model.preprocess([torch.zeros(3, 128, 128)])
        (features,) = model.features(batch.pixels).values()
    assert batch.pixels.shape[2:] == (384, 384) and features.shape[2:] == (12, 12)
    assert model.own_rpn.config.anchors.per_cell == 8
    sides = torch.cat(
        [(t.gt_boxes[:, 2:] - t.gt_boxes[:, :2]).prod(dim=1).sqrt() for t in map(shapes.target, range(50))]
    )
    assert 2 < float(sides.median()) * 3 / 32 < 4  # cells of the median object


def test_plain_bodies_have_no_shortcut_and_as_many_blocks_as_told(bench: Bench) -> None:
    counts = {"plain-18": (8, True), "plain-34": (16, True), "residual-34": (16, False)}
    for key, (blocks, plain) in counts.items():
        body = MaskRCNN(config_of(key, replace(bench, body=small_body()))).backbone.body
        made = [
            type(getattr(body, f"layer{stage}")[i])
            for stage in range(1, 5)
            for i in range(len(getattr(body, f"layer{stage}")))
        ]
        assert len(made) == blocks and {cls is PlainBlock for cls in made} == {plain}
    assert config_of("mask-rcnn", replace(bench, body=small_body())).backbone.options["layers"] == variants.LAYERS[18]


@pytest.mark.parametrize("key", list(VARIANTS))
def test_each_learns_and_detects(key: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = networks.recipe_for_bench
    monkeypatch.setattr(networks, "recipe_for_bench", lambda bench, **changes: usual(bench, **changes | FEW_STEPS))
    told: list[float] = []
    trained = VARIANTS[key].train(replace(bench, progress=lambda what, done: told.append(done)))
    assert trained.facts == {"steps": 2.0} and told[-1] == 1.0 and trained.training["network"] > 0
    watch = Stopwatch()
    found = trained.detect(bench.val[0][0], watch)
    assert (found.masks is None) == (key == "boxes-only") == ("masks" not in watch.seconds)
    assert {"features", "proposals", "heads"} <= set(watch.seconds)
    assert found.boxes.isfinite().all()
    again = VARIANTS[key].train(bench).detect(bench.val[0][0], Stopwatch())  # read, not trained once more
    assert torch.equal(found.boxes, again.boxes) and torch.equal(found.scores, again.scores)


def test_the_first_of_most_is_the_tables_own_network(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same key, and the same training: what one of them left in the folder is the other's."""
    assert mask_rcnn.SYSTEM.key == "mask-rcnn"
    asked: list[Any] = []
    for module in (variants, mask_rcnn):
        monkeypatch.setattr(module, "train_at_once", lambda *given, **changes: asked.append((given, changes)))
    VARIANTS["mask-rcnn"].train(bench)
    mask_rcnn.SYSTEM.train(bench)
    assert asked[0] == asked[1]


def test_every_ablation_is_whole() -> None:
    assert list(ABLATIONS) == ["mask-classes", "mask-head", "mask-agnostic", "pooling", "mask-branch", "depth"]
    columns = {field.name for field in fields(Row)}
    used: set[str] = set()
    for key, ablation in ABLATIONS.items():
        keys = [system.key for system in ablation.variants]
        assert ablation_of(key) is ablation and ablation.key == key
        assert len(keys) >= 2 and len(set(keys)) == len(keys) and set(keys) <= set(VARIANTS)
        assert len({system.name for system in ablation.variants}) == len(keys)
        assert ablation.compared and set(ablation.compared) <= columns
        assert {name for pair in ablation.order for name in pair} <= set(keys)
        if any(name.startswith("mask") for name in ablation.compared):
            assert "boxes-only" not in keys
        used |= set(keys)
    assert used == set(VARIANTS)


def test_a_shared_variant_is_one_network_under_several_names() -> None:
    shared = [s for ablation in ABLATIONS.values() for s in ablation.variants if s.key == "mask-rcnn"]
    assert len(shared) == 5 and len({system.train for system in shared}) == 1
    assert len({system.name for system in shared}) == 5


def test_an_unknown_ablation() -> None:
    with pytest.raises(
        InputError, match="ablation: no such ablation; found size; expected mask-classes or mask-head or"
    ):
        ablation_of("size")


@pytest.mark.parametrize("key", ["mask-classes", "mask-agnostic"])
def test_with_one_class_masks_of_classes_mean_nothing(key: str) -> None:
    pictures = ShapesDataset(1)
    require_fits(ABLATIONS[key], pictures, small_body(), pretrained=False)
    pictures.classes = Classes(("nucleus",), (1,))
    with pytest.raises(
        InputError, match=rf"ablation {key}: means nothing here; found 1 class; expected data of 2 or more"
    ):
        require_fits(ABLATIONS[key], pictures, small_body(), pretrained=False)
    require_fits(ABLATIONS["mask-head"], pictures, small_body(), pretrained=False)


def test_depth_is_asked_of_bodies_that_learn_from_nothing() -> None:
    pictures, other = ShapesDataset(1), replace(small_body(), name="resnet50", options={})
    for body, pretrained, found in ((other, False, "resnet50"), (small_body(), True, "resnet18, pretrained")):
        with pytest.raises(InputError, match=f"ablation depth: .*; found {found}; expected resnet18, untrained"):
            require_fits(ABLATIONS["depth"], pictures, body, pretrained)
        require_fits(ABLATIONS["pooling"], pictures, body, pretrained)
    require_fits(ABLATIONS["depth"], pictures, small_body(), pretrained=False)
