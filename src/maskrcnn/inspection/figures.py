"""All figures of one picture, from what the network is given to the result, as a picture meets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskrcnn.inspection.canvas import View
from maskrcnn.inspection.draw_activations import activation_figures
from maskrcnn.inspection.draw_anchors import anchor_figures
from maskrcnn.inspection.draw_boxes import box_figures
from maskrcnn.inspection.draw_levels import level_figures
from maskrcnn.inspection.draw_masks import mask_figures
from maskrcnn.inspection.draw_proposals import proposal_figures
from maskrcnn.inspection.draw_result import input_figures, result_figures
from maskrcnn.inspection.figure import Figure
from maskrcnn.inspection.probe import Steps

if TYPE_CHECKING:
    from maskrcnn.inspection.fate import Fate


def figures(steps: Steps, fates: Sequence[Fate] | None = None) -> list[Figure]:
    """Every step as pictures of at most about 1000 px, with their numbers, in the order of `STAGES`.

    fates: what became of each object of the ground truth, for the last figure. What a detector lacks is left out.
    """
    view = View.of(steps.picture)
    return [
        *input_figures(steps, view),
        *activation_figures(steps),
        *anchor_figures(steps, view),
        *proposal_figures(steps, view),
        *level_figures(steps, view),
        *box_figures(steps, view),
        *mask_figures(steps, view),
        *result_figures(steps, view, fates),
    ]
