"""Patch features of a frozen image encoder, for representation alignment (REPA, 2410.06940).

The encoder is a run or checkpoint of contrastive training, weights of open_clip, or a folder with a vision transformer
saved by transformers (DINOv2, DINOv3, SigLIP; safetensors only). Nothing is downloaded.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from leam_mm.checkpoint import is_run, load_part
from leam_mm.encoders.hugging_face_text import folder_sha256, transformers_model
from leam_mm.encoders.pretrained_encoder import PretrainedEncoder
from leam_mm.encoders.vision_transformer import image_tokens
from leam_mm.errors import UserError

Read = Callable[[Tensor], Tensor]  # (B, 3, H, W) normalised -> (B, N, D)


class PatchFeatures(nn.Module):
    """Patch tokens after the last norm, without class tokens; frozen, always in evaluation mode.

    Args:
        tower: Network that ``read`` uses, registered as a submodule.
        read: Function from normalised images (B, 3, H, W) to tokens (B, N, D).
        patch: Pixels per side of a patch.
        size: Side in pixels of the square images of the tower's training.
        mean: Mean per channel, in [0, 1].
        std: Standard deviation per channel, in [0, 1].
        sha256: SHA-256 of the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, tower: nn.Module, read: Read, patch: int, size: int, mean: Tensor, std: Tensor, sha256: str
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.tower = tower.requires_grad_(False).eval()
        self.read, self.patch, self.size, self.sha256 = read, patch, size, sha256
        self.register_buffer("mean", mean.detach().float().cpu().clone(), persistent=False)
        self.register_buffer("std", std.detach().float().cpu().clone(), persistent=False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return h, w in tokens, with the image's aspect ratio and about as many tokens as in the tower's training."""
        scale = self.size / (math.sqrt(height * width) * self.patch)
        return max(1, round(height * scale)), max(1, round(width * scale))

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Return the patch tokens of images, resized to whole patches.

        Args:
            image: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, N, D) float32, N = h w of `grid`, in row-major order.

        Raises:
            UserError: The encoder does not support this size, or returns no patch tokens.
        """
        h, w = self.grid(*image.shape[-2:])
        wanted = (h * self.patch, w * self.patch)
        if tuple(image.shape[-2:]) != wanted:
            image = F.interpolate(image, wanted, mode="bicubic", antialias=True).clamp(-1, 1)
        try:
            tokens = self.read((image / 2 + 0.5 - self.mean[:, None, None]) / self.std[:, None, None])
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"the image encoder cannot take images of {wanted[1]} x {wanted[0]} pixels "
                f"({str(error).strip().split(chr(10))[0][:160]}): give --feature-size, or use an encoder that "
                "interpolates positions"
            ) from None
        if tokens.shape[1] != h * w:
            raise UserError(
                f"the image encoder gives {tokens.shape[1]} tokens for {h} x {w} patches: use a vision transformer"
            )
        return tokens.float()

    def train(self, mode: bool = True) -> "PatchFeatures":
        """Stay in evaluation mode."""
        return super().train(False)


def open_patch_features(path: str, size: int | None = None) -> PatchFeatures:
    """Load the image encoder at a path.

    Args:
        path: Run or checkpoint of contrastive training; release; folder, file or NAME:TAG of open_clip; or a folder
            saved by transformers.
        size: Side of the images in pixels; None uses the encoder's own.
    """
    folder = Path(path)
    checkpoint = is_run(folder)
    if not checkpoint and (folder / "config.json").is_file() and not (folder / "open_clip_config.json").is_file():
        features = _from_transformers(folder)
    elif checkpoint:
        encoder = load_part(path, "ema_encoder")
        features = _from_dual_encoder(encoder, encoder.checkpoint_evidence["sha256"])
    else:
        encoder = PretrainedEncoder(path)
        features = _from_dual_encoder(encoder, encoder.origin()["sha256"])
    if size is not None:
        if size % features.patch:
            raise UserError(
                f"--feature-size {size} is not a multiple of the encoder's patch size of {features.patch} pixels"
            )
        features.size = size
    return features


def _from_dual_encoder(encoder: Any, sha256: str) -> PatchFeatures:
    """Return the patch features of an open_clip image tower."""
    tower, own = encoder.clip.visual, (encoder.image_size, encoder.image_mean, encoder.image_std, sha256)
    if isinstance(tower, VisionTransformer):
        return PatchFeatures(tower, lambda image: _open_clip_tokens(tower, image), tower.patch_size[0], *own)
    trunk: Any = tower.trunk if isinstance(tower, TimmModel) else None
    patch = getattr(getattr(trunk, "patch_embed", None), "patch_size", None)
    if patch is None or not hasattr(trunk, "num_prefix_tokens"):
        raise UserError(
            f"the image tower {type(trunk or tower).__name__} has no patch tokens: use a vision transformer"
        )
    return PatchFeatures(
        tower, lambda image: trunk.forward_features(image)[:, trunk.num_prefix_tokens :], patch[0], *own
    )


def _open_clip_tokens(tower: VisionTransformer, image: Tensor) -> Tensor:
    """Return the patch tokens of the last block, after the norm that open_clip applies to the class token."""
    states = tower.transformer(image_tokens(tower, image, None, 0.0))
    if tower.attn_pool is None and not tower.final_ln_after_pool:
        states = tower.ln_post(states)
    return states[:, 1:]


def _from_transformers(folder: Path) -> PatchFeatures:
    """Return the patch features of a vision transformer saved by transformers with its preprocessing config."""
    model = transformers_model(str(folder), texts=False)
    tower: Any = getattr(model, "vision_model", model)
    config, file = tower.config, folder / "preprocessor_config.json"
    try:
        patch, size = int(config.patch_size), int(config.image_size)
        preprocessing = json.loads(file.read_text(encoding="utf-8"))
        mean, std = (torch.tensor([float(value) for value in preprocessing[f"image_{key}"]]) for key in ("mean", "std"))
        if min(patch, size) < 1 or mean.shape != (3,) or std.shape != (3,) or not bool((std > 0).all()):
            raise ValueError("sizes, image_mean or image_std are out of range")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is not a vision transformer with a {file.name} ({type(error).__name__}: {error}): "
            "copy the whole folder"
        ) from None
    # Class and register tokens, if any, come first.
    return PatchFeatures(
        tower,
        lambda image: tower(image).last_hidden_state[:, -(image.shape[2] // patch) * (image.shape[3] // patch) :],
        patch,
        size // patch * patch,
        mean,
        std,
        folder_sha256(folder),
    )
