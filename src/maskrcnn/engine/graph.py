"""A network as a graph of steps, in which convolution, norm, residual sum and ReLU become one step each."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from maskrcnn.engine.conv import FusedConv, fused_conv, is_batch_norm

_ADDITIONS = {operator.add, operator.iadd, torch.add}
_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_}


def fused_graph(network: nn.Module, example: Tensor) -> nn.Module:
    """`network`, in evaluation, with its convolutions fused; itself where its code cannot be recorded.

    The recorded network shares its weights with `network`, but for those that a norm was folded into. example: an
    input, which shows that the results are the same shapes and which sums are of equal shapes.
    """
    try:
        graph = _Tracer().trace(network)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError):
        return network  # its code asks for values that only a picture gives
    recorded = fx.GraphModule(network, graph)
    with torch.no_grad():
        ShapeProp(recorded).propagate(example)
    for node in list(recorded.graph.nodes):
        if isinstance(_module(recorded, node), nn.Conv2d):
            _fuse(recorded, node)
    recorded.graph.eliminate_dead_code()
    _reuse_sums(recorded)
    recorded.delete_all_unused_submodules()
    recorded.recompile()
    return recorded


class _Tracer(fx.Tracer):
    """Norms stay whole, timm's own too, so that they can be folded."""

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        whole = hasattr(module, "running_var") or super().is_leaf_module(module, module_qualified_name)
        return bool(whole)


def _fuse(network: fx.GraphModule, start: fx.Node) -> None:
    """The convolution at `start` and what follows it as one step, as far as it goes."""
    conv = _module(network, start)
    assert isinstance(conv, nn.Conv2d)
    if len(start.args) != 1 or start.kwargs or _times_called(network, start) > 1:
        return
    chain, inputs = [start], [start.args[0]]
    after = _only_user(network, start)
    norm: nn.Module | None = None
    if after is not None and (found := _module(network, after)) is not None and is_batch_norm(found):
        norm = found
        chain.append(after)
        after = _only_user(network, after)
    fused = fused_conv(conv, norm)
    if fused is None:
        return
    if after is not None and (other := _other_term(after, chain[-1])) is not None:
        inputs.append(other)
        chain.append(after)
        after = _only_user(network, after)
    if after is not None and _is_relu(network, after):
        fused.relu = True
        chain.append(after)
    _replace_module(network, str(start.target), fused)
    with network.graph.inserting_after(chain[-1]):
        step = network.graph.call_module(str(start.target), tuple(inputs))
    step.meta = dict(chain[-1].meta)
    chain[-1].replace_all_uses_with(step)
    for node in reversed(chain):
        network.graph.erase_node(node)


def _reuse_sums(network: fx.GraphModule) -> None:
    """Let a step write over the map that it adds, where another step has made it and nobody reads it afterwards."""
    order = {node: i for i, node in enumerate(network.graph.nodes)}
    for node in network.graph.nodes:
        step = _module(network, node)
        if not isinstance(step, FusedConv) or len(node.args) != 2:
            continue
        x, add = node.args
        made_by_step = isinstance(add, fx.Node) and isinstance(_module(network, add), FusedConv)
        if made_by_step and x is not add and all(order[user] <= order[node] for user in add.users):
            step.overwrites = True


def _times_called(network: fx.GraphModule, node: fx.Node) -> int:
    return sum(other.op == "call_module" and other.target == node.target for other in network.graph.nodes)


def _only_user(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The one step that reads `node`, modules that do nothing skipped (and removed)."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if not isinstance(_module(network, user), nn.Identity | nn.Dropout | nn.Dropout2d):
            return user
        user.replace_all_uses_with(node)
        network.graph.erase_node(user)
    return None


def _other_term(node: fx.Node, term: fx.Node) -> fx.Node | None:
    """The other input of a sum of two maps of equal shape; None if `node` is anything else."""
    if node.op != "call_function" or node.target not in _ADDITIONS or len(node.args) != 2 or node.kwargs:
        return None
    others = [value for value in node.args if value is not term]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    other = others[0]
    return other if _shape(other) == _shape(node) == _shape(term) and _shape(node) is not None else None


def _shape(node: fx.Node) -> Any:
    facts = node.meta.get("tensor_meta")
    return getattr(facts, "shape", None)


def _is_relu(network: fx.GraphModule, node: fx.Node) -> bool:
    by_function = node.op == "call_function" and node.target in _RELUS
    by_method = node.op == "call_method" and node.target in ("relu", "relu_")
    return by_function or by_method or isinstance(_module(network, node), nn.ReLU)


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _replace_module(network: fx.GraphModule, name: str, module: FusedConv) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
