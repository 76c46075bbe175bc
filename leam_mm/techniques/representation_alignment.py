"""Representation alignment: the denoiser's early tokens learn to predict an image encoder's features of the image.

model:
  init_args:
    techniques:
    - class_path: leam_mm.techniques.representation_alignment.RepresentationAlignment
      init_args: {feature_size: 768, depth: 8}

REPA (Yu et al. 2410.06940). The batch holds the features (`image_feature`, stored by data_tools/encode_latents.py
--features), or a frozen encoder computes them from its images.
"""

import logging
import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from leam_mm.data.image_range import signed
from leam_mm.denoisers.block_step import BlockStep, Tokens
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.encoders.patch_features import PatchFeatures, open_patch_features
from leam_mm.errors import UserError
from leam_mm.losses.representation_alignment import alignment, resample_features, spread_features
from leam_mm.optim.sharding import shard_blocks
from leam_mm.techniques.technique import Technique, TrainingStep

log = logging.getLogger(__name__)


class RepresentationAlignment(Technique):
    """Adds the negative mean cosine of projected tokens and image features, times a weight, to the loss (eq. 8 and 9).

    An MLP of three layers with SiLU projects each token (section 3.2 and appendix of the paper). Features are
    resampled to the tokens' grid (losses/representation_alignment.py). Tokens that another technique has left out do
    not count; list this technique first if both work after the same block.

    Args:
        feature_size: D of the features.
        depth: Number of blocks after which the tokens are aligned, from 1 on (8 of 28 in the paper).
        weight: lambda of eq. 9.
        width: Width of the projection's two hidden layers.
        until_samples: Samples from this number on are not aligned, since alignment helps most early. None has no end.
        spatial_share: Spatial normalisation of the features by this share of their mean, as in iREPA (2512.10794);
            None has no such normalisation.
        encoder: For batches of images without stored features: run or checkpoint of a ContrastiveModule, folder of
            open_clip or of transformers (DINOv2); see encoders/patch_features.py.
    """

    def __init__(
        self,
        feature_size: int,
        depth: int,
        weight: float = 0.5,
        width: int = 2048,
        until_samples: int | None = None,
        spatial_share: float | None = None,
        encoder: str | None = None,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        if min(feature_size, depth, width) < 1 or (until_samples is not None and until_samples < 1):
            raise UserError(
                f"RepresentationAlignment: feature_size {feature_size}, depth {depth}, width {width} and until_samples "
                f"{until_samples} must be at least 1"
            )
        if spatial_share is not None and not 0 <= spatial_share <= 1:
            raise UserError(f"RepresentationAlignment: spatial_share is {spatial_share}, but a share lies in [0, 1]")
        self.feature_size, self.depth, self.weight, self.width = feature_size, depth, weight, width
        self.until_samples, self.spatial_share, self.encoder_path = until_samples, spatial_share, encoder
        self._encoder: list[PatchFeatures] = []  # in a list, which keeps it out of the state dict and of training
        self._tokens: Tokens | None = None

    def attach(self, denoiser: Denoiser, seed: int) -> None:
        """Create the projection for tokens of the denoiser's width."""
        if self.depth > denoiser.depth:
            raise UserError(
                f"RepresentationAlignment: depth is {self.depth}, but a {type(denoiser).__name__} of {denoiser.depth} "
                "blocks in a row has fewer: choose one of the first half of a transformer"
            )
        sizes = (denoiser.width, self.width, self.width, self.feature_size)
        layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
        self.projection = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard the projection."""
        shard_blocks(self.projection, mesh)

    def frozen_record(self) -> dict[str, dict[str, str]]:
        """Return path and digest of the image encoder, if there is one."""
        if self.encoder_path is None:
            return {}
        return {"image_encoder": {"path": self.encoder_path, "sha256": self.encoder.sha256}}

    def begin(self, step: TrainingStep) -> None:
        """Drop the tokens of the previous step."""
        self._tokens = None

    def block_steps(self) -> list[BlockStep]:
        """Return itself; it looks at tokens and changes none."""
        return [self]

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        """Return the tokens unchanged."""
        return tokens

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        """Keep the tokens of the chosen depth."""
        if number == self.depth - 1:
            self._tokens = tokens
        return tokens

    def loss(self, step: TrainingStep) -> Tensor:
        """Return the weighted alignment (B,), exactly 0 for samples from until_samples on."""
        tokens, self._tokens = self._tokens, None
        assert tokens is not None, "the denoiser did not call the block steps"
        before = None if self.until_samples is None else step.index < self.until_samples
        if before is not None and not before.any():
            # The projection takes part in every step, or DDP would wait for its gradients.
            return 0 * self.projection(tokens.values[:, :1]).flatten(1).sum(1)
        feature = self._feature(step, tokens)
        losses = self.weight * alignment(self.projection(tokens.values), feature)
        return losses if before is None else torch.where(before, losses, 0 * losses)

    @torch.no_grad()
    def _feature(self, step: TrainingStep, tokens: Tokens) -> Tensor:
        """Return the features (B, N, D) at the tokens' positions."""
        feature, grid = self._stored(step.batch)
        if feature.shape[-1] != self.feature_size:
            raise UserError(
                f"the image features have {feature.shape[-1]} channels, RepresentationAlignment expects "
                f"{self.feature_size}: set its feature_size"
            )
        if self.spatial_share is not None:
            feature = spread_features(feature, self.spatial_share)
        feature = resample_features(feature, grid, tokens.grid)
        if tokens.positions is not None:
            feature = feature.gather(1, tokens.positions[..., None].expand(-1, -1, feature.shape[-1]))
        return feature

    def _stored(self, batch: dict[str, Any]) -> tuple[Tensor, tuple[int, int]]:
        """Return the features (B, N, D) of the batch, stored or computed, and their grid (h, w)."""
        if "image_feature" in batch:
            feature = batch["image_feature"].float()
            return feature, feature_grid(feature.shape[1], *batch["latent"].shape[-2:])
        if "image" not in batch:
            raise UserError(
                "RepresentationAlignment: the latents hold no image_feature: write them with data_tools/"
                "encode_latents.py --features ENCODER, or train on images with an encoder"
            )
        image = batch["image"]
        encoder = self.encoder.to(image.device)
        return encoder.encode(signed(image)), encoder.grid(*image.shape[-2:])

    @property
    def encoder(self) -> PatchFeatures:
        """The frozen image encoder, opened on first use."""
        if not self._encoder:
            if self.encoder_path is None:
                raise UserError(
                    "RepresentationAlignment: batches of images need an image encoder: set its encoder to a run "
                    "folder, or to a folder of open_clip or transformers"
                )
            opened = open_patch_features(self.encoder_path)
            log.info("image features are computed by %s, patches of %d pixels", self.encoder_path, opened.patch)
            self._encoder.append(opened)
        return self._encoder[0]


def feature_grid(count: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of the features of an image: the two factors whose ratio is nearest to the image's.

    Args:
        count: N, number of features.
        height: Height of the image or its latent, in any unit.
        width: Width in the same unit.
    """
    factors = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return min(factors, key=lambda grid: abs(math.log(grid[0] * width / (grid[1] * height))))
