"""Errors of the library, said of the options that they are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn.cli.options import WrongUse, as_wrong_use
from maskrcnn.cli.predict import Options as PredictOptions
from maskrcnn.cli.train import AugmentationOptions, BoxLossOptions, LossOptions
from maskrcnn.cli.train import Options as TrainOptions
from maskrcnn.errors import InputError

PREDICT = PredictOptions(pictures=("a.png",), out=Path("out"), weights="device", nms_iou=3.0, batch_size=0)
TRAIN = TrainOptions(
    data="shapes",
    out=Path("out"),
    batch_size=0,
    milestones=(0.5, 7.0),
    augmentation=AugmentationOptions(flip=2.0),
    loss=LossOptions(box=BoxLossOptions(beta=-1.0)),
)


@pytest.mark.parametrize(
    ("options", "field", "option"),
    [
        (PREDICT, "Limits.nms_iou", "--nms-iou"),
        (PREDICT, "batch_size", "--batch-size"),
        (TRAIN, "Recipe.batch_size", "--batch-size"),
        (TRAIN, "recipe.batch_size", "--batch-size"),
        (TRAIN, "recipe.milestones[1]", "--milestones"),
        (TRAIN, "Augmentation.flip", "--augmentation.flip"),
        (TRAIN, "recipe.augmentation.flip", "--augmentation.flip"),
        (TRAIN, "BoxLossConfig.beta", "--loss.box.beta"),
        (TRAIN, "recipe.loss.box.beta", "--loss.box.beta"),
        (TRAIN, "val_fraction", "--val-fraction"),
    ],
)
def test_the_option_is_named(options: PredictOptions | TrainOptions, field: str, option: str) -> None:
    found = as_wrong_use(InputError("impossible", field=field, found=3, expected="less"), options)
    assert isinstance(found, WrongUse)
    assert str(found) == f"{option}: impossible; found 3; expected less"


@pytest.mark.parametrize(
    "error",
    [
        InputError("no file", file="a.json", field="Limits.nms_iou"),
        InputError("no field"),
        InputError("not given", field="Limits.proposals"),
        InputError("no option", field="RPNConfig.nms_iou"),
        InputError("text is looked up", field="weights"),
        OSError("disk full"),
    ],
)
def test_other_errors_are_none_of_the_options(error: Exception) -> None:
    assert as_wrong_use(error, PREDICT) is None
