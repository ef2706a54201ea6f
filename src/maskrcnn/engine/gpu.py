"""A detector on a GPU: pictures go there as bytes, results come back at once, and the host waits a single time.

N images    D detections
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from maskrcnn.engine.graphs import Core, each_tensor, graphed
from maskrcnn.model.limits import Limits
from maskrcnn.model.mask_rcnn import MaskRCNN, original_frame
from maskrcnn.structures import DetectionBatch, Detections


class GpuDetector:
    """With the face of `MaskRCNN.forward`, around the network that it runs. Works on any device; made for CUDA.

    network: a detector in evaluation where it shall run. core: in place of CUDA graphs of it. What is found lies on the
    host.

    Masks are not pasted here: as M x M values, 0.3 MB a picture, they cross to the host in microseconds, where RLE is
    made from the box alone; pasted, the same objects are a megabyte each at least.
    """

    def __init__(self, network: MaskRCNN, core: Core | None = None) -> None:
        self.network = network
        self.config = network.config
        self.core = graphed(network) if core is None else core

    def __call__(
        self, images: Sequence[Tensor], limits: Limits | None = None, proposals: Sequence[Tensor] | None = None
    ) -> list[Detections]:
        """As `MaskRCNN.forward`. Given proposals are as many as they are, so that such pictures run step by step."""
        limits = limits or Limits()
        config = limits.applied(self.config)
        with torch.no_grad():
            batch = self.network.preprocess(self._on_device(images), limits.size)
            if proposals is None:
                found = self.core(batch.pixels, batch.image_sizes, config)
            else:
                given = self.network.given(proposals, batch)
                found = self.network.detect(batch.pixels, batch.image_sizes, config, drop_empty=True, proposals=given)
            resized_size = self.network.preprocess.config.resized_size
            sizes = [resized_size(size, limits.size) for size in batch.original_sizes]
            batch = replace(batch, image_sizes=torch.tensor(sizes, dtype=torch.float32))
            return original_frame(to_host(found), batch, config)

    def _on_device(self, images: Sequence[Tensor]) -> Sequence[Tensor]:
        """Pictures as bytes on the device, if they are resized there: other libraries' ways are the host's."""
        if self.config.preprocess.resampling != "torch":
            return images
        return [to_device(image, self.network.preprocess.mean.device) for image in images]


def to_device(image: Tensor, device: torch.device) -> Tensor:
    """`image` on `device`; for CUDA through pinned memory, and not waited for."""
    if device.type != "cuda" or image.device.type != "cpu":
        return image.to(device)
    return image.contiguous().pin_memory().to(device, non_blocking=True)


def to_host(found: DetectionBatch) -> DetectionBatch:
    """`found` on the host, all tensors in one go."""
    if found.boxes.device.type != "cuda":
        return each_tensor(found, lambda tensor: tensor.cpu())

    def start(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    on_host = each_tensor(found, start)
    torch.cuda.current_stream(found.boxes.device).synchronize()
    return on_host
