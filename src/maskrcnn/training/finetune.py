"""A loaded detector for new classes or keypoints: keep what both know, make the rest anew (`--weights W`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.structures import KeypointScheme

_LISTED = 12  # names in a line of the log
_HEAT_MAPS = "keypoint_head.deconv."  # the layer that has a row for each keypoint


def adapt_classes(
    model: MaskRCNN, class_names: Sequence[str], category_ids: Sequence[int]
) -> tuple[MaskRCNN, list[str]]:
    """`model` with heads for `class_names`, and lines for the log on what was kept and what made anew.

    Rows of the last layers that belong to a class name known before are copied, background included; rows of other
    classes start from random values. Nothing is made anew where names and their order are the same.
    """
    old = model.config.class_names
    config = replace(model.config, class_names=tuple(class_names), category_ids=tuple(category_ids))
    if tuple(class_names) == old:
        model.config = config
        return model, [f"all {len(old)} classes are the checkpoint's own: heads kept"]
    adapted = MaskRCNN(config)
    own, its = adapted.state_dict(), model.state_dict()
    adapted.load_state_dict({name: its[name] if its[name].shape == own[name].shape else own[name] for name in own})
    kept = [(row, old.index(name)) for row, name in enumerate(class_names) if name in old]
    layers = _replace_rows(adapted, model, kept)
    return adapted, _report(old, class_names, layers)


def adapt_keypoints(model: MaskRCNN, scheme: KeypointScheme) -> tuple[MaskRCNN, list[str]]:
    """`model`, which has a keypoint head, with heat maps for the J keypoints of `scheme`, and lines for the log.

    Maps of names known before are kept. Where J is the same all others are too, each in its place: other names for the
    same points, or points that are likely to lie alike.
    """
    head = model.config.keypoint_head
    assert head is not None and model.keypoint_head is not None
    old, new = head.scheme.names, scheme.names
    same_count = len(old) == len(new)
    sources = [old.index(name) if name in old else j if same_count else None for j, name in enumerate(new)]
    config = replace(model.config, keypoint_head=replace(head, scheme=scheme))
    if sources == list(range(len(old))):
        model.config = config
        return model, [f"{len(new)} keypoints, as the checkpoint has: head kept"]
    adapted = MaskRCNN(config)
    assert adapted.keypoint_head is not None
    own, its = adapted.state_dict(), model.state_dict()
    adapted.load_state_dict({name: own[name] if name.startswith(_HEAT_MAPS) else its[name] for name in own})
    with torch.no_grad():
        mine, theirs = adapted.keypoint_head.deconv, model.keypoint_head.deconv
        assert mine.bias is not None and theirs.bias is not None
        for j, source in enumerate(sources):
            if source is not None:
                mine.weight[:, j], mine.bias[j] = theirs.weight[:, source], theirs.bias[source]
    made = [name for name, source in zip(new, sources, strict=True) if source is None]
    note = f"{len(new) - len(made)} keypoints kept" + (f", {len(made)} made anew: {_listed(made)}" if made else "")
    return adapted, [note]


def _replace_rows(adapted: MaskRCNN, model: MaskRCNN, kept: Sequence[tuple[int, int]]) -> list[str]:
    """Fill the layers that have rows for each class; returns their names."""
    layers = ["box_head.classes"]
    with_background = [(0, 0), *((row + 1, source + 1) for row, source in kept)]
    for new, old in zip(adapted.box_heads, model.box_heads, strict=True):
        _copy_rows(new.classes, old.classes, with_background, rows_each=1)
        if not model.config.box_head.class_agnostic:
            _copy_rows(new.deltas, old.deltas, kept, rows_each=4)
    if not model.config.box_head.class_agnostic:
        layers.append("box_head.deltas")
    if model.mask_head is not None and not model.mask_head.config.class_agnostic:
        layers.append("mask_head.masks")
        for new_head, old_head in zip(adapted.mask_heads, model.mask_heads, strict=True):
            head = new_head.config
            rows = with_background if head.classes == "competing" else kept
            _copy_rows(new_head.masks, old_head.masks, rows, rows_each=head.side**2 if head.num_fcs else 1)
    return layers


@torch.no_grad()
def _copy_rows(
    new: nn.Linear | nn.Conv2d, old: nn.Linear | nn.Conv2d, rows: Sequence[tuple[int, int]], *, rows_each: int
) -> None:
    """Fresh rows for `new`, then copies of old ones: pairs (place in new, in old), each of `rows_each` rows."""
    nn.init.normal_(new.weight, std=float(old.weight.std()))
    assert new.bias is not None and old.bias is not None
    nn.init.zeros_(new.bias)
    for row, source in rows:
        mine = slice(row * rows_each, (row + 1) * rows_each)
        its = slice(source * rows_each, (source + 1) * rows_each)
        new.weight[mine] = old.weight[its]
        new.bias[mine] = old.bias[its]


def _report(old: Sequence[str], new: Sequence[str], layers: Sequence[str]) -> list[str]:
    kept = [name for name in new if name in old]
    made = [name for name in new if name not in old]
    lines = [f"made anew for {len(new)} classes (the checkpoint has {len(old)}): {', '.join(layers)}"]
    if kept:
        lines.append(f"rows kept of {len(kept)} classes: {_listed(kept)}")
    if made:
        lines.append(f"rows made anew for {len(made)} classes: {_listed(made)}")
    return lines


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
