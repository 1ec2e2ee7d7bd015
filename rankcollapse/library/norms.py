"""Normalisation of hidden activities, each a function of the channels, and of whether they are those of convolutions.

All scale each channel by a gain, `weight`, and all but `rms` add a shift, `bias`, which begin at 1 and 0. A new one is
a function here, its name in NORMALIZATIONS and in `experiment/config.py`, and its class in NORMS.
"""

import torch
from torch import Tensor, nn

EPS, MOMENTUM = 1e-5, 0.1  # as PyTorch's own
SIZE = 16  # channels of a group


def batch(channels: int, convolutional: bool) -> nn.Module:
    """Of each channel by mean and variance over images and pixels (Ioffe & Szegedy 2015, arXiv:1502.03167).

    In evaluation by running ones.
    """
    return nn.BatchNorm2d(channels) if convolutional else nn.BatchNorm1d(channels)


def layer(channels: int, convolutional: bool) -> nn.Module:
    """By mean and variance over all features of one image, channels and pixels (Ba et al. 2016, arXiv:1607.06450)."""
    return nn.GroupNorm(1, channels) if convolutional else nn.LayerNorm(channels)


def group(channels: int, convolutional: bool) -> nn.Module:
    """By mean and variance over a group of channels of one image, with their pixels (Wu & He 2018, arXiv:1803.08494).

    A group has about SIZE channels: the divisor of `channels` nearest to it that leaves two groups or more, of four
    channels or more. Where there is none, as below 8 channels, all are one group.

    >>> [group(channels, True).num_groups for channels in (6, 8, 16, 32, 100, 512)]
    [1, 2, 2, 2, 5, 32]
    """
    sizes = [size for size in range(4, channels // 2 + 1) if channels % size == 0]
    return nn.GroupNorm(channels // min(sizes, key=lambda size: abs(size - SIZE), default=channels), channels)


def rms(channels: int, convolutional: bool) -> nn.Module:
    """By the root mean square over all features of one image (Zhang & Sennrich 2019, arXiv:1910.07467); no shift."""
    return RMSNorm(channels)


def whiten(channels: int, convolutional: bool) -> nn.Module:
    """By mean and covariance of a group of channels over images and pixels (Huang et al. 2019, arXiv:1904.03441)."""
    return Whitening(channels)


NORMALIZATIONS = {"batch": batch, "layer": layer, "group": group, "rms": rms, "whiten": whiten}


class RMSNorm(nn.Module):
    """x [n, channels, ...] over its root mean square in each image, over channels and pixels; a gain per channel.

    `nn.RMSNorm` takes the last dimensions, and a gain for each pixel. Computed in float32 or wider.

    >>> RMSNorm(2)(torch.tensor([[3.0, 4.0]]))  # the root of 12.5 is 3.536
    tensor([[0.8485, 1.1314]], grad_fn=<MulBackward0>)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        square = wide.square().mean(tuple(range(1, x.dim())), keepdim=True)
        return (wide * ((square + EPS).rsqrt() * self.weight.view(-1, *[1] * (x.dim() - 2)))).to(x.dtype)


class Whitening(nn.Module):
    """Channels of x [n, channels, ...] made uncorrelated and of variance 1 in each group, by iterative normalisation.

    "Hidden activity normalisation ... promotes orthogonal activations", says the abstract of arXiv:2606.11123: this is
    the sentence taken at its word. y = Σ^-½ (x - μ), with mean and covariance over images and pixels, Σ^-½ by
    Newton-Schulz (IterNorm, Huang et al. 2019, arXiv:1904.03441, algorithm 1), then a gain and a shift per channel.
    Evaluation takes running averages of μ and of Σ^-½. The backward pass is autograd's, through the statistics too.

    A group has as many channels as divide them all, SIZE at most: so many have a covariance of full rank in a small
    batch, and five steps come close, to a variance of 0.97 where Σ is the identity. A variance far below its group's
    mean stays below 1, which keeps noise small. Computed in float32 or wider, under autocast too: bfloat16's rounding
    alone would be as large as the small variances.

    Raises ValueError, in training, for a single row: it has no covariance.

    >>> rows = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    >>> mixed = rows @ torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> Whitening(2, steps=20)(mixed).T.cov(correction=0).allclose(torch.eye(2), atol=0.001)
    True
    """

    def __init__(self, channels: int, steps: int = 5):
        """steps: of Newton-Schulz, T in the paper."""
        super().__init__()
        size = max(size for size in range(1, SIZE + 1) if channels % size == 0)
        self.steps = steps
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels // size, 1, size))
        self.register_buffer("running_matrix", torch.empty(channels // size, size, size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.weight.fill_(1)
        self.bias.zero_()
        self.running_mean.zero_()
        self.running_matrix.copy_(torch.eye(self.running_matrix.shape[-1]))

    def forward(self, x: Tensor) -> Tensor:
        groups, _, size = self.running_mean.shape
        with torch.autocast(x.device.type, enabled=False):
            pixels = _wide(x).movedim(1, -1)
            rows = pixels.reshape(-1, groups, size).transpose(0, 1)  # [groups, rows, size]
            centred, matrix = self._train(rows) if self.training else (rows - self.running_mean, self.running_matrix)
            gain, shift = (_wide(own).view(groups, 1, size) for own in (self.weight, self.bias))
            white = torch.baddbmm(shift, centred, matrix.mT * gain).transpose(0, 1)
            y = white.reshape(pixels.shape).movedim(-1, 1).to(x.dtype)
        return y.contiguous() if x.is_contiguous() else y

    def _train(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [groups, n, size] less their mean, and their Σ^-½ [groups, size, size]; the running averages move."""
        if rows.shape[1] < 2:
            raise ValueError("whitening in training was given one row, which has no covariance; it needs two or more")
        mean = rows.mean(1, keepdim=True)
        centred = rows - mean
        noise = EPS * torch.eye(rows.shape[2], dtype=rows.dtype, device=rows.device)
        matrix = inverse_root(centred.mT @ centred / rows.shape[1] + noise, self.steps)
        for running, now in ((self.running_mean, mean), (self.running_matrix, matrix)):
            running.lerp_(now.detach().to(running.dtype), MOMENTUM)
        return centred, matrix


# What `initialize`, the rules and the signals take for a norm layer, those of other people's models too.
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RMSNorm, Whitening)


def inverse_root(matrix: Tensor, steps: int) -> Tensor:
    """Σ^-½ of positive definite Σ [..., n, n] by Newton-Schulz steps, from the identity, on Σ over its trace.

    An eigenvalue λ of that goes to 1 as s -> s (3 - s²) / 2 goes from s = √λ; a tiny one grows by 2.25 a step. Coupled:
    P -> P (3 - P² Σ) / 2, as the paper has it, is the same but for rounding, which it blows up when steps are many.

    >>> inverse_root(4 * torch.eye(2), steps=20)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    left, root = matrix / trace, eye  # what goes to the root of Σ over its trace, and to the inverse of that
    for _ in range(steps):
        factor = 1.5 * eye - 0.5 * root @ left
        left, root = left @ factor, factor @ root
    return root / trace.sqrt()


def _wide(x: Tensor) -> Tensor:
    """x in float32, or in the wider type that it has."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
