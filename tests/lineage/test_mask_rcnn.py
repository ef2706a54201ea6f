"""Mask R-CNN as a system: at once, stage by stage, and with the RPN first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import maskrcnn.lineage.mask_rcnn as mask_rcnn
from maskrcnn.lineage.learning import Fitted
from maskrcnn.lineage.mask_rcnn import train, train_by_stages, train_in_four_steps
from maskrcnn.lineage.system import Bench, Stopwatch
from maskrcnn.training.recipe import Recipe


def test_all_at_once_gives_masks(bench: Bench, few_steps: dict[str, Any]) -> None:
    watch = Stopwatch()
    found = train(bench, **few_steps | {"steps": 1}).detect(bench.val.sample(0)[0], watch)
    assert found.masks is not None and len(found.masks.rle()) == len(found)
    assert set(watch.seconds) == {"features", "proposals", "heads", "masks"}


def test_heads_then_upper_stages_then_all(
    bench: Bench, few_steps: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Tensor]] = []
    recipes: list[Recipe] = []

    def noting(model, pictures, recipe, *rest):  # type: ignore[no-untyped-def]
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        recipes.append(recipe)
        fitted: Fitted = fit(model, pictures, recipe, *rest)
        states.append({name: value.clone() for name, value in fitted.model.state_dict().items()})
        return fitted

    fit = mask_rcnn.fit
    monkeypatch.setattr(mask_rcnn, "fit", noting)
    trained = train_by_stages(bench, **few_steps | {"steps": 1})
    assert trained.facts == {"steps": 3.0} and list(trained.training) == ["heads", "c4 and up", "all"]

    def moved(before: dict[str, Tensor], after: dict[str, Tensor], beginning: str) -> bool:
        names = [name for name in before if name.startswith(beginning)]
        assert names
        return any(not torch.equal(before[name], after[name]) for name in names)

    lower = ("conv1", "bn1", "layer1", "layer2")
    upper = ("layer3", "layer4")
    still = [(*lower, *upper), lower, ()]
    for stage, (before, after) in enumerate(zip(states[::2], states[1::2], strict=True)):
        for name in (*lower, *upper):
            assert moved(before, after, f"backbone.body.{name}.") == (name not in still[stage]), (stage, name)
        for name in ("fpn.", "rpn.", "box_head.", "mask_head."):
            assert moved(before, after, name)
        if stage:
            assert all(torch.equal(value, states[2 * stage - 1][name]) for name, value in before.items())
    rates = [recipe.learning_rate for recipe in recipes]
    assert rates[0] == rates[1] == pytest.approx(10 * rates[2])


def test_the_time_is_shared_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []

    def noting(model, pictures, recipe, *rest):  # type: ignore[no-untyped-def]
        asked.append(recipe.minutes)
        return Fitted(model, 0, 0.0)

    monkeypatch.setattr(mask_rcnn, "fit", noting)
    train_by_stages(bench)
    assert asked == [pytest.approx(part * bench.minutes) for part in (0.25, 0.5, 0.25)]


def test_rpn_first_with_shared_features(bench: Bench, few_steps: dict[str, Any]) -> None:
    bench = replace(bench, train=bench.train[:2])
    trained = train_in_four_steps(bench, **few_steps | {"steps": 1})
    found = trained.detect(bench.val.sample(0)[0], Stopwatch())
    assert trained.facts == {"steps": 4.0} and found.masks is not None


def test_names() -> None:
    assert (mask_rcnn.SYSTEM.key, mask_rcnn.SYSTEM.name) == ("mask-rcnn", "Mask R-CNN")
    assert (mask_rcnn.STAGEWISE.key, mask_rcnn.ALTERNATING.key) == ("mask-rcnn-stagewise", "mask-rcnn-alternating")
