"""A recorded body whose convolutions hand codes to one another, with numbers only where another step wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from maskrcnn.engine.calibrate import Range
from maskrcnn.engine.codes import Codes, Coding, coding_of, max_pool
from maskrcnn.engine.conv import FusedConv
from maskrcnn.engine.int8_conv import QuantisedConv


class CodedMaxPool(nn.Module):
    """As the `nn.MaxPool2d` that it is made of, on codes."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = (_same(side) for side in (pool.kernel_size, pool.stride, pool.padding))
        self.ceil_mode = bool(pool.ceil_mode)

    def forward(self, x: Codes) -> Codes:
        return max_pool(x, self.kernel, self.stride, self.padding, self.ceil_mode)


class Decode(nn.Module):
    """Codes to numbers, for a step that knows no codes."""

    dtype = torch.float32

    def forward(self, x: Codes) -> Tensor:
        return x.decoded(self.dtype)


def quantise_graph_(network: fx.GraphModule, name: str, ranges: Mapping[str, Range]) -> bool:
    """Put codes in the place of numbers, from each convolution that can make them to those that can read them.

    network: as `fused_graph` made it, called `name` in the detector that `ranges` are of. What it returns are `Codes`
    where a convolution made them. Returns whether its input is read by such convolutions alone, which want float32.
    A convolution between two steps that know no codes, such as group norms, stays as it is.
    """
    _remove_what_does_nothing(network)
    coded: dict[fx.Node, Coding] = {}
    order = {node: place for place, node in enumerate(network.graph.nodes)}
    read_by = {node: _knows_codes(network, node, name, ranges) for node in network.graph.nodes}
    reads_input: list[fx.Node] = []
    for node in list(network.graph.nodes):
        module, source = _module(network, node), node.args[0] if node.args else None
        if read_by[node] and isinstance(module, FusedConv):
            sources, full_name = cast("tuple[fx.Node, ...]", node.args), f"{name}.{node.target}"
            is_read = len(sources) > 1 or any(read_by[user] for user in node.users)
            if sources[0] not in coded and not is_read:
                continue
            codings = [
                coded.get(node) or coding_of(*ranges[f"{full_name}.{kind}"])
                for kind, node in zip(("given", "added"), sources, strict=False)
            ]
            made = coding_of(*ranges[f"{full_name}.made"]) if is_read else None
            is_last = len(sources) > 1 and all(order.get(user, -1) <= order[node] for user in sources[1].users)
            conv = QuantisedConv(module, codings[0], made, added=codings[-1], may_overwrite=is_last)
            _put(network, str(node.target), conv)
            reads_input.append(sources[0])
            if made is not None:
                coded[node] = made
        elif isinstance(module, nn.MaxPool2d) and read_by[node] and source in coded:
            _put(network, str(node.target), CodedMaxPool(module))
            coded[node] = coded[cast("fx.Node", source)]
        elif node.op != "output":
            for other in node.all_input_nodes:
                if other in coded:
                    node.replace_input_with(other, _decoded(network, other))
    network.recompile()
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    return all(len(node.users) == reads_input.count(node) for node in inputs)


def _knows_codes(network: fx.GraphModule, node: fx.Node, name: str, ranges: Mapping[str, Range]) -> bool:
    module = _module(network, node)
    if isinstance(module, FusedConv):
        return is_quantised(module, f"{name}.{node.target}", ranges) and _calls(network, node) == 1
    return node.op == "output" or (isinstance(module, nn.MaxPool2d) and _is_plain(module))


def _remove_what_does_nothing(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if isinstance(_module(network, node), nn.Identity | nn.Dropout | nn.Dropout2d):
            node.replace_all_uses_with(cast("fx.Node", node.args[0]))
            network.graph.erase_node(node)


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_quantised(conv: FusedConv, name: str, ranges: Mapping[str, Range]) -> bool:
    """Whether a convolution works on codes: it was seen, and is not depthwise or grouped, which is fast as it is."""
    return conv.groups == 1 and {f"{name}.given", f"{name}.made"} <= ranges.keys()


def _decoded(network: fx.GraphModule, source: fx.Node) -> fx.Node:
    for user in source.users:
        if isinstance(_module(network, user), Decode):
            return user
    name = f"{source.name}_decoded"
    network.add_submodule(name, Decode())
    with network.graph.inserting_after(source):
        return network.graph.call_module(name, (source,))


def _calls(network: fx.GraphModule, node: fx.Node) -> int:
    return sum(other.op == "call_module" and other.target == node.target for other in network.graph.nodes)


def _put(network: fx.GraphModule, target: str, module: nn.Module) -> None:
    parent, _, child = target.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _is_plain(pool: nn.MaxPool2d) -> bool:
    sides = (pool.kernel_size, pool.stride, pool.padding)
    square = all(isinstance(side, int) or len(set(side)) == 1 for side in sides)
    return square and pool.dilation in (1, (1, 1)) and not pool.return_indices


def _same(side: Any) -> int:
    return int(side if isinstance(side, int) else side[0])
