"""The networks of the grid. A new one is a function here, its name in ARCHITECTURES and in `experiment/config.py`.

Its parameters are the image's shape (channels, height, width), the classes, and the knobs that it takes, by name; its
last Linear layer is named `head`. Built without touching the global random state: the modules are made on the meta
device, then filled from a generator.
"""

import inspect
import math
from itertools import count, pairwise

import torch
from torch import Tensor, nn

from rankcollapse.errors import InputError
from rankcollapse.library.norms import NORMALIZATIONS, NORMS


def _add(net: nn.Sequential, name: str, layer: nn.Module, normalization: str, relu: bool = True) -> None:
    """Append the layer, the norm of its outputs, and ReLU.

    The norm's shift takes the place of the layer's bias. Before `rms`, which has none, the layer keeps its bias, and
    what is normalised is W h + b: no channel has fewer parameters than under the other norms.
    """
    net.add_module(name, layer)
    if normalization != "none":
        norm = NORMALIZATIONS[normalization](len(layer.weight), isinstance(layer, nn.Conv2d))
        if hasattr(norm, "bias"):
            layer.bias = None
        net.append(norm)
    if relu:
        net.append(nn.ReLU())


def mlp(shape: tuple[int, int, int], classes: int, width: int, depth: int | None, normalization: str) -> nn.Module:
    """`depth` hidden layers of `width` units with ReLU, 3 for None, then the classifier `head`."""
    sizes = [math.prod(shape)] + [width] * (3 if depth is None else depth)
    net = nn.Sequential(nn.Flatten())
    for i, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        _add(net, f"hidden{i}", nn.Linear(inputs, outputs), normalization)
    net.add_module("head", nn.Linear(width, classes))
    return net


# Of each stage of a cnn the channels, in multiples of the width, and the stride; by depth, where that is below four.
STAGES = (1, 2), (2, 2), (2, 2), (4, 2)
FEWER = {2: ((1, 4), (4, 4)), 3: ((1, 2), (2, 2), (4, 4))}


def cnn(shape: tuple[int, int, int], classes: int, width: int, depth: int | None, normalization: str) -> nn.Module:
    """`depth` 3x3 convolutions, 4 for None, flattened into the `head`. Raises ValueError for fewer than two.

    Four have stride 2 and `width` times 1, 2, 2, 4 channels: a stage each. More than four add convolutions of stride 1
    at the ends of the stages, in equal shares, the last stages first. Fewer leave out stages of 2 `width` channels, and
    one that stays has stride 4 for each that is gone. Pictures shrink 16-fold at any depth, so that the classifier has
    as many inputs, and the first convolution has `width` channels.
    """
    channels, height, breadth = shape
    depth = 4 if depth is None else depth
    if depth < 2:
        raise ValueError(f"depth is {depth}, but a cnn has two convolutions or more")
    stages = FEWER.get(depth, STAGES)
    net, layers = nn.Sequential(), count(1)
    for i, (factor, stride) in enumerate(stages):
        for step in [stride] + [1] * ((depth + i) // len(stages) - 1):
            convolution = nn.Conv2d(channels, factor * width, 3, step, padding=1)
            _add(net, f"conv{next(layers)}", convolution, normalization)
            channels, height, breadth = factor * width, math.ceil(height / step), math.ceil(breadth / step)
    net.append(nn.Flatten())
    net.add_module("head", nn.Linear(channels * height * breadth, classes))
    return net


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, normalization: str):
        super().__init__()
        self.residual, self.shortcut = nn.Sequential(), nn.Sequential()
        _add(self.residual, "conv1", nn.Conv2d(inputs, outputs, 3, stride, padding=1), normalization)
        _add(self.residual, "conv2", nn.Conv2d(outputs, outputs, 3, padding=1), normalization, relu=False)
        if stride != 1 or inputs != outputs:
            _add(self.shortcut, "conv", nn.Conv2d(inputs, outputs, 1, stride), normalization, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


# Kernel, stride and padding of resnet18's first convolution. After ImageNet's come ReLU and max-pooling.
STEMS = {"cifar": (3, 1, 1), "cifar2": (3, 2, 1), "imagenet": (7, 2, 3)}


def resnet18(shape: tuple[int, int, int], classes: int, width: int, stem: str, normalization: str) -> nn.Module:
    """ResNet-18 (He et al. 2016), its first convolution and what follows it as STEMS says."""
    net = nn.Sequential()
    _add(net, "stem", nn.Conv2d(shape[0], width, *STEMS[stem]), normalization)
    if stem == "imagenet":
        net.append(nn.MaxPool2d(3, stride=2, padding=1))
    sizes = [width, *(width * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8))]
    for i, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        net.add_module(f"block{i}", BasicBlock(inputs, outputs, outputs // inputs, normalization))
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    net.add_module("head", nn.Linear(8 * width, classes))
    return net


def freeze(net: nn.Sequential, learning: int | None) -> None:
    """Let the last `learning` blocks and the classifier learn, in place; None: all. Raises InputError beyond them.

    A block is a child with a name, and the nameless ones after it.
    """
    if learning is None:
        return
    starts = [i for i, (name, _) in enumerate(net.named_children()) if not name.isdigit()]  # the classifier's is last
    if learning >= len(starts):
        what = f"learning_blocks is {learning}, but the network has {len(starts) - 1} blocks before its classifier"
        raise InputError(f"{what}; it must be {len(starts) - 1} or less")
    net[: starts[-1 - learning]].requires_grad_(False)


ARCHITECTURES = {"mlp": mlp, "cnn": cnn, "resnet18": resnet18}


def init_weight(weight: Tensor, generator: torch.Generator) -> Tensor:
    """PyTorch's own law for Linear and Conv2d, U(-1/√fan_in, 1/√fan_in), in place. Feedback weights share it."""
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


def initialize(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Fill a model from `generator`: by PyTorch's laws all weights, then all biases, and 1 and 0 for norm layers.

    So a net with norm layers, which has fewer biases, starts with the weights of the one without.

    Raises ValueError for any other layer that has values of its own: they would be whatever the memory held.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            init_weight(module.weight, generator)
        elif isinstance(module, NORMS):
            module.reset_parameters()  # constants: draws nothing
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            what = f"layer {name!r} is a {type(module).__name__}"
            raise ValueError(f"{what}, whose law models.initialize does not know: add it there")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            bound = 1 / math.sqrt(math.prod(module.weight.shape[1:]))
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
    return model


def skeleton(architecture: str, shape: tuple[int, int, int], classes: int, **knobs: object) -> nn.Module:
    """A network of ARCHITECTURES on the meta device: shapes without memory or randomness. Takes of `knobs` its own."""
    make = ARCHITECTURES[architecture]
    mine = [name for name in inspect.signature(make).parameters if name not in ("shape", "classes")]
    with torch.device("meta"):
        return make(shape, classes, **{knob: knobs[knob] for knob in mine})


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The forward weights by layer name, in the order of the model: those of Linear and Conv2d layers."""
    return {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
