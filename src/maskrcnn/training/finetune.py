"""A loaded detector for new classes: keep what both know, make the rest anew (`--weights W`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from maskrcnn.model.mask_rcnn import MaskRCNN


def adapt_classes(model: MaskRCNN, class_names: Sequence[str], category_ids: Sequence[int]) -> tuple[MaskRCNN, list[str]]:
    """`model` with heads for `class_names`, and a line for the log on each thing kept or made anew.

    Rows of the last layers that belong to a class name known before are copied, background included; rows of other
    classes start from random values. Nothing is done where names and their order are the same.
    """
    old = model.config.class_names
    config = replace(model.config, class_names=tuple(class_names), category_ids=tuple(category_ids))
    if tuple(class_names) == old:
        model.config = config
        return model, [f"all {len(old)} classes are the checkpoint's own: heads kept"]
    adapted = MaskRCNN(config)
    state = model.state_dict()
    wanted = adapted.state_dict()
    adapted.load_state_dict({name: state[name] if state[name].shape == wanted[name].shape else wanted[name] for name in wanted})
    kept = [(class_names.index(name), old.index(name)) for name in class_names if name in old]
    _copy_rows(adapted.box_head.classes, model.box_head.classes, [(0, 0)] + [(a + 1, b + 1) for a, b in kept], rows_each=1)
    if not config.box_head.class_agnostic:
        _copy_rows(adapted.box_head.deltas, model.box_head.deltas, kept, rows_each=4)
    if adapted.mask_head is not None and model.mask_head is not None and not adapted.mask_head.config.class_agnostic:
        _copy_rows(adapted.mask_head.masks, model.mask_head.masks, kept, rows_each=1)
    return adapted, _report(old, class_names)


@torch.no_grad()
def _copy_rows(
    new: nn.Linear | nn.Conv2d, old: nn.Linear | nn.Conv2d, rows: Sequence[tuple[int, int]], *, rows_each: int
) -> None:
    """Give `new` fresh rows and copy those named as pairs (row of new, row of old), each `rows_each` wide."""
    nn.init.normal_(new.weight, std=float(old.weight.std()) if old.weight.numel() > 1 else 0.01)
    assert new.bias is not None and old.bias is not None
    nn.init.zeros_(new.bias)
    for row, source in rows:
        mine = slice(row * rows_each, (row + 1) * rows_each)
        its = slice(source * rows_each, (source + 1) * rows_each)
        new.weight[mine] = old.weight[its]
        new.bias[mine] = old.bias[its]


def _report(old: Sequence[str], new: Sequence[str]) -> list[str]:
    kept = [name for name in new if name in old]
    made = [name for name in new if name not in old]
    lines = [f"heads made anew for {len(new)} classes (the checkpoint has {len(old)})"]
    if kept:
        lines.append(f"rows kept for {len(kept)}: {', '.join(kept)}")
    if made:
        lines.append(f"rows made anew for {len(made)}: {', '.join(made)}")
    return lines
