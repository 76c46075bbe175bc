"""Conversion of pixel values between the bytes of a batch and the range that networks take."""

import torch
from torch import Tensor


def signed(image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map pixels of any shape from [0, 255] to ``dtype`` in [-1, 1]."""
    return image.to(dtype) / 127.5 - 1
