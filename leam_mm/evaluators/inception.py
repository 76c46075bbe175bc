"""The Inception network of published FID numbers: `pt_inception-2015-12-05`, not torchvision's inception_v3.

Layers are named as in the published weights (the layout of pytorch-fid and torch-fidelity). The differences from
Inception v3 (Szegedy et al. 1512.00567) come from the frozen TensorFlow graph of 2015: average pools do not count the
padding, the last block has a max pool, batch norm has eps 1e-3, and there are 1008 classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SPATIAL_CHANNELS = 7  # of sFID


class Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple, stride: int = 1, padding: int | tuple = 0
    ) -> None:
        """Take the sizes of `nn.Conv2d`."""
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, outputs, h', w')."""
        return functional.relu(self.bn(self.conv(x)))


def average_pool(x: Tensor) -> Tensor:
    """Return the 3 x 3 average at stride 1, without counting the padding."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    """Return the 3 x 3 maximum at stride 1, which the last block uses in place of the average."""
    return functional.max_pool2d(x, 3, stride=1, padding=1)


class BlockA(nn.Module):
    """35 x 35 block."""

    def __init__(self, inputs: int, pool: int) -> None:
        """Take the number of input channels and the width of the pooled branch."""
        super().__init__()
        self.branch1x1 = Convolution(inputs, 64, 1)
        self.branch5x5_1 = Convolution(inputs, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate four branches."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average_pool(x))], dim=1)


class BlockB(nn.Module):
    """Block that reduces 35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        """Take the number of input channels."""
        super().__init__()
        self.branch3x3 = Convolution(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(inputs, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate three branches."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """17 x 17 block with 7 x 1 and 1 x 7 kernels."""

    def __init__(self, inputs: int, width: int) -> None:
        """Take the number of input channels and the width of the factored branches."""
        super().__init__()
        row: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
        column: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Convolution(inputs, 192, 1)
        self.branch7x7_1 = Convolution(inputs, width, 1)
        self.branch7x7_2 = Convolution(width, width, **row)
        self.branch7x7_3 = Convolution(width, 192, **column)
        self.branch7x7dbl_1 = Convolution(inputs, width, 1)
        self.branch7x7dbl_2 = Convolution(width, width, **column)
        self.branch7x7dbl_3 = Convolution(width, width, **row)
        self.branch7x7dbl_4 = Convolution(width, width, **column)
        self.branch7x7dbl_5 = Convolution(width, 192, **row)
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate four branches."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average_pool(x))], dim=1)


class BlockD(nn.Module):
    """Block that reduces 17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        """Take the number of input channels."""
        super().__init__()
        self.branch3x3_1 = Convolution(inputs, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(inputs, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate three branches."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, functional.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """8 x 8 block."""

    def __init__(self, inputs: int, pool: Callable[[Tensor], Tensor]) -> None:
        """Take the number of input channels and the pool of the last branch: first average, then maximum."""
        super().__init__()
        self.pool = pool
        self.branch1x1 = Convolution(inputs, 320, 1)
        self.branch3x3_1 = Convolution(inputs, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Convolution(inputs, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate six branches."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(self.pool(x))]
        return torch.cat(parts, dim=1)


class InceptionNetwork(nn.Module):
    """Maps images (B, 3, 299, 299) in about [-1, 1] to features."""

    def __init__(self) -> None:
        """Build with random weights; `fc` exists because the published file has it."""
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, average_pool)
        self.Mixed_7c = BlockE(2048, max_pool)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last pool."""
        return self.outputs(x)["features"]

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return all that published numbers are made of.

        Returns:
            ``features`` (B, 2048) of the last pool. ``spatial`` (B, 2023): the first 7 channels of the 1 x 1 branch of
            Mixed_6d, `mixed_6/conv` of the TensorFlow graph, at 17 x 17 positions, of which sFID is made (Nash et al.
            2103.03841). ``logits`` (B, 1008) without the bias of the last layer, as in the Inception Score.
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(functional.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        spatial = x[:, :SPATIAL_CHANNELS].flatten(1)
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x)))).mean(dim=(2, 3))
        return {"features": features, "spatial": spatial, "logits": features @ self.fc.weight.T}
