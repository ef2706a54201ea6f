"""Losses as sums over one count, so that the same batch gives the same gradient on one process and on many."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def shared_count(count: int | Tensor, device: torch.device) -> Tensor:
    """What a rank divides its sum by: the count of all ranks over their number, at least one in all.

    Data-parallel training averages gradients over W ranks, so sum_rank / (count_all / W), averaged, is
    sum_all / count_all: the loss of the whole batch. With one process it is `count` itself.
    """
    total = torch.as_tensor(count, dtype=torch.float32, device=device)
    ranks = 1
    if dist.is_available() and dist.is_initialized():
        ranks = dist.get_world_size()
        total = total.clone()
        dist.all_reduce(total)
    return total.clamp(min=1) / ranks
