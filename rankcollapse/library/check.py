"""Does a converted model learn by its rule? Its gradients beside those of an explicit reference, on any model."""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from rankcollapse.library.feedback import Broadcast, FeedbackLinear, feedback_layers

TOLERANCE = 1e-6  # of the largest entry of a gradient; both sides are in float64


def check(model: nn.Module, *inputs: object) -> list[str]:
    """Names, with the reason, of every layer whose gradient is not that of feedback weights; empty if all are.

    `inputs` are those of the model's forward pass. The model and the global random state are left as they are. In the
    reference, plain autograd in float64, a layer's output is W h, its derivative by h is B, and its W is a copy: a
    gradient that reaches the original took another way. Under dfa its derivative by h is 0, and that of the
    output of the model, or of the part that was converted, is B. Raises ValueError for a model that is not converted.

    >>> from rankcollapse import convert
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> check(convert(net, "fa", torch.Generator().manual_seed(0)), torch.ones(5, 4))
    []
    """
    if not feedback_layers(model):
        raise ValueError("the model has no feedback weights: convert it, by rule fa, say, then check it")
    found, called = _gradients(copy.deepcopy(model), inputs)
    reference = copy.deepcopy(model).double()
    copies: dict[nn.Parameter, nn.Parameter] = {}  # layers that share a weight share its copy
    sent: dict[Broadcast, list[Tensor]] = {}  # what is added to the output of the model, or of its part, under dfa
    for module in reference.modules():
        for owner in [getattr(hook, "__self__", None) for hook in module._forward_hooks.values()]:
            if isinstance(owner, Broadcast):
                module.register_forward_hook(partial(_add, sent.setdefault(owner, [])))
    for layer in feedback_layers(reference).values():
        _make_explicit(layer, sent, copies.setdefault(layer.weight, nn.Parameter(layer.weight.detach().clone())))
    others = [m for m in reference.modules() if m not in feedback_layers(reference).values()]
    elsewhere = {p for module in others for p in module.parameters(recurse=False)}  # as a tied embedding, say
    expected, _ = _gradients(reference, inputs)
    wrong = [f"{name}: it was not called" for name in feedback_layers(model) if name not in called]
    for name, parameter in reference.named_parameters():
        layer, _, kind = name.rpartition(".")
        if layer in feedback_layers(model) and layer not in called:
            continue
        if parameter in copies and parameter not in elsewhere and expected[name] is not None:
            wrong.append(f"{layer}: its weight is used outside of it, and learns by backpropagation there")
        elif not _equal(found[name], _sum(expected[name], copies[parameter].grad if parameter in copies else None)):
            wrong.append(f"{layer or name}: the gradient of its {kind} is not that of its rule")
    return wrong


def _gradients(model: nn.Module, inputs: tuple) -> tuple[dict[str, Tensor | None], set[str]]:
    """Every parameter's gradient of a random projection of the outputs, and the feedback layers that were called."""
    model.double().requires_grad_(True).zero_grad()  # frozen weights tell as well
    called: set[str] = set()
    for name, layer in feedback_layers(model).items():
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
        layer.called = True  # the guard of `convert` would raise for the first; here all are named
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)  # dropout alike on both sides
        inputs = tree_map_only(Tensor, lambda x: x.detach().double() if x.is_floating_point() else x, inputs)
        outputs = [y for y in tree_leaves(model(*inputs)) if isinstance(y, Tensor) and y.requires_grad]
        generator = torch.Generator().manual_seed(0)
        sum((y * torch.randn(y.shape, generator=generator).to(y)).sum() for y in outputs).backward()
    return {name: p.grad for name, p in model.named_parameters()}, called


def _add(sent: list[Tensor], model: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """The output and what the layers of this pass have sent to it."""
    output = sum(sent, output)
    sent.clear()
    return output


def _make_explicit(layer: nn.Module, sent: dict[Broadcast, list[Tensor]], weight: nn.Parameter) -> None:
    """Give the layer a forward pass whose derivatives are the rule's, by autograd alone, with `weight` for W; under dfa
    it puts into `sent` what is added to an output.
    """
    product = F.linear if isinstance(layer, FeedbackLinear) else layer._conv_forward

    def forward(x: Tensor) -> Tensor:
        if layer.broadcast:
            back = torch.einsum("n...,o...->no", x, layer.feedback)
            sent[layer.broadcast].append(back - back.detach())
            return product(x.detach(), weight, layer.bias)
        back = product(x, layer.feedback, None)
        return product(x.detach(), weight, layer.bias) + (back - back.detach())

    layer.forward = forward


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return float((a - b).abs().max()) <= TOLERANCE * max(float(b.abs().max()), torch.finfo(b.dtype).tiny)
