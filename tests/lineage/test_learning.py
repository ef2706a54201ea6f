"""A network learns in a folder: gone on with where it was stopped, read where it is done, refused for another run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import maskrcnn.lineage.learning as learning
from maskrcnn.data.shapes import SHAPE_CLASSES, ShapesDataset
from maskrcnn.errors import InputError
from maskrcnn.lineage.learning import LOSSES_FILE, fit, recipe_for_bench
from maskrcnn.lineage.small import mask_rcnn_config
from maskrcnn.lineage.system import Bench
from maskrcnn.model.mask_rcnn import MaskRCNN


def model_of(bench: Bench) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(mask_rcnn_config(bench, SHAPE_CLASSES))


def equal(a: MaskRCNN, b: MaskRCNN) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_steps_are_made_and_losses_written(bench: Bench, few_steps: dict[str, object], tmp_path: Path) -> None:
    model = model_of(bench)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done: list[float] = []
    fitted = fit(model, bench.train, recipe_for_bench(bench, **few_steps), tmp_path / "run", done.append)
    assert fitted.steps == 3 and fitted.seconds > 0 and not fitted.model.training
    assert done == [pytest.approx(i / 3) for i in (1, 2, 3)]
    assert not torch.equal(before["mask_head.masks.weight"], fitted.model.state_dict()["mask_head.masks.weight"])
    lines = [json.loads(line) for line in (tmp_path / "run" / LOSSES_FILE).read_text().splitlines()]
    assert lines[0]["step"] == 1 and {"total", "rpn_box", "box_class", "mask"} <= set(lines[0])


def test_what_is_frozen_stays(bench: Bench, few_steps: dict[str, object], tmp_path: Path) -> None:
    model = model_of(bench)
    model.own_rpn.requires_grad_(False)
    before = {name: value.clone() for name, value in model.own_rpn.state_dict().items()}
    changes = few_steps | {"freeze": 5, "loss": {"learn": "heads"}}
    body = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    fitted = fit(model, bench.train, recipe_for_bench(bench, **changes), tmp_path)
    assert all(torch.equal(before[name], value) for name, value in fitted.model.own_rpn.state_dict().items())
    assert all(torch.equal(body[name], value) for name, value in fitted.model.backbone.state_dict().items())
    assert "rpn_box" not in json.loads((tmp_path / LOSSES_FILE).read_text().splitlines()[0])


def test_stopped_and_gone_on_with_is_the_same_as_never_stopped(
    bench: Bench, few_steps: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for_bench(bench, **few_steps)
    whole = fit(model_of(bench), bench.train, recipe, tmp_path / "whole")
    monkeypatch.setattr(learning, "learn", _stopped_after(2, learning.learn))
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(bench), bench.train, recipe, tmp_path / "parts")
    monkeypatch.undo()
    rest = fit(model_of(bench), bench.train, recipe, tmp_path / "parts")
    assert rest.steps == whole.steps and equal(rest.model, whole.model)
    again = fit(model_of(bench), bench.train, recipe, tmp_path / "parts")
    assert again.steps == whole.steps and equal(again.model, whole.model) and again.seconds == rest.seconds
    with pytest.raises(InputError, match="seed"):
        fit(model_of(bench), bench.train, replace(recipe, seed=5), tmp_path / "parts")


def _stopped_after(steps: int, learn: Callable[..., bool]) -> Callable[..., bool]:
    """`learn` that is asked to stop, as by Ctrl-C, after some steps: saves and returns False."""

    def stopped(state, batches, recipe, length, world, observers):  # type: ignore[no-untyped-def]
        def some():  # type: ignore[no-untyped-def]
            for i, batch in enumerate(batches):
                if i == steps:
                    return
                yield batch

        learn(state, some(), recipe, length, world, observers)
        observers.save(state)
        return False

    return stopped


def test_large_pictures_are_cropped_larger(bench: Bench) -> None:
    small = recipe_for_bench(bench)
    large = recipe_for_bench(replace(bench, train=ShapesDataset(2, size=(256, 256))))
    assert (small.augmentation.crop, large.augmentation.crop) == (128, 256)
    assert small.minutes == large.minutes == bench.minutes
    assert recipe_for_bench(bench, 0.5).minutes == 0.5


def test_a_bench_may_count_steps(bench: Bench) -> None:
    """Of what learns all at once; a system that shares its minutes out goes by them."""
    bench = replace(bench, steps=7)
    recipe = recipe_for_bench(bench)
    assert (recipe.steps, recipe.minutes) == (7, None)
    assert recipe_for_bench(bench, 0.5).minutes == 0.5
    assert recipe_for_bench(bench, steps=9).steps == 9
