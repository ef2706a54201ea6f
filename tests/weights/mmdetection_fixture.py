"""What MMDetection printed for seeded random weights, and the same weights again as a file of MMDetection's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn.structures import Detections

from .seeded import seeded_state

FOLDER = Path(__file__).parent / "fixtures"
PICTURES = ("drawn_wide.png", "drawn_tall.png", "cells.png")

# The last norm of each residual branch is damped, so that maps keep their size through a hundred layers. Predictors are
# scaled until scores, boxes and masks differ. A fixture may name roles that come before these.
ROLES = (
    (r"num_batches_tracked$", "zero"),
    (r"layer\d\.\d+\.(bn|gn)3\.weight$", "scale:0.2"),
    (r"running_mean$", "bias:0.1"),
    (r"running_var$", "variance"),
    (r"(bn|gn)\d?\.weight$|downsample\.1\.weight$", "scale:1"),
    (r"(bn|gn)\d?\.bias$|downsample\.1\.bias$", "bias:0.1"),
    (r"(lateral|fpn)_convs\.\d\.conv\.weight$", "weight:0.7"),
    (r"rpn_cls\.weight$", "normal:0.02"),
    (r"rpn_reg\.weight$", "normal:0.005"),
    (r"fc_cls\.weight$", "weight:0.7"),
    (r"fc_reg\.weight$", "weight:0.3"),
    (r"conv_logits\.weight$", "weight:0.7"),
    (r"weight$", "weight"),
    (r"bias$", "bias:0.1"),
)
