"""Autoencoders of diffusers with the statistics that normalise their latents to unit size.

Diffusion on latents without normalisation fails silently, so the statistics are buffers of the codec and part of every
checkpoint. In YAML:

    codec:
      class_path: leam_mm.codecs.latent_codec.DCCodec
      init_args: {latent_channels: 16, widths: [32, 64, 128, 128], layers: [0, 1, 1, 2]}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from leam_mm.errors import UserError

STATISTICS = ("shift", "scale", "latent_mean", "latent_std", "latent_count")


@dataclass(frozen=True)
class LatentStatistics:
    """Count, mean and sum of squared deviations per channel, merged exactly (Chan, Golub and LeVeque 1979).

    Args:
        count: Number of latent positions (images times h times w).
        mean: (C,) float64.
        deviation: (C,) float64, the sum of squared distances from the mean.
    """

    count: int
    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, latent: torch.Tensor) -> "LatentStatistics":
        """Return the statistics of one batch of raw latents (B, C, h, w)."""
        values = latent.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)  # (C, B*h*w)
        mean = values.mean(1)
        return cls(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def merge(self, other: "LatentStatistics") -> "LatentStatistics":
        """Return the statistics of both sets; the order of merging matters for rounding only."""
        count = self.count + other.count
        gap = other.mean - self.mean
        deviation = self.deviation + other.deviation + gap.square() * (self.count * other.count / count)
        return LatentStatistics(count, self.mean + gap * (other.count / count), deviation)

    @property
    def std(self) -> torch.Tensor:
        """(C,) standard deviation over all positions."""
        return (self.deviation / self.count).sqrt()


def merge_statistics(first: LatentStatistics | None, second: LatentStatistics) -> LatentStatistics:
    """Merge statistics where the first set may still be empty."""
    return second if first is None else first.merge(second)


class LatentCodec(nn.Module):
    """Autoencoder of diffusers with the normalisation of its latents: latent = (z - shift) * scale.

    Args:
        autoencoder: diffusers' AutoencoderKL or AutoencoderDC; names of weights and files stay diffusers'.
    """

    shift: torch.Tensor
    scale: torch.Tensor
    latent_mean: torch.Tensor
    latent_std: torch.Tensor
    latent_count: torch.Tensor

    def __init__(self, autoencoder: AutoencoderKL | AutoencoderDC) -> None:
        """Take the normalisation from the autoencoder's config; see the class for the arguments."""
        super().__init__()
        if not isinstance(autoencoder, AutoencoderKL | AutoencoderDC):
            raise UserError(
                f"the codec got a {type(autoencoder).__name__}: give diffusers' AutoencoderKL or AutoencoderDC"
            )
        self.autoencoder = cast(Any, autoencoder)
        self.variational = isinstance(autoencoder, AutoencoderKL)
        config = self.autoencoder.config
        self.channels = int(config["latent_channels"])
        widths = config["block_out_channels"] if self.variational else config["encoder_block_out_channels"]
        self.downscale = 2 ** (len(widths) - 1)
        self.register_buffer("shift", torch.tensor(float(config.get("shift_factor") or 0.0)))
        self.register_buffer("scale", torch.tensor(float(config["scaling_factor"])))
        self.register_buffer("latent_mean", torch.zeros(self.channels))
        self.register_buffer("latent_std", torch.ones(self.channels))
        self.register_buffer("latent_count", torch.tensor(0))  # 0: never measured

    @property
    def last_layer(self) -> torch.Tensor:
        """The kernel of the output layer, at which gradients of losses are compared."""
        kernels = [part.weight for part in self.autoencoder.decoder.conv_out.modules() if isinstance(part, nn.Conv2d)]
        return kernels[-1]

    def freeze_encoder(self) -> None:
        """Train only the layers after the latents, so that the latents keep their meaning."""
        for name, weight in self.autoencoder.named_parameters():
            weight.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))

    def set_tile(self, tile: int | None) -> None:
        """Bound the memory of large images: process one image at a time, in overlapping tiles that are blended.

        The results differ from those of the whole image. A tile has no information from beyond its edge, and group
        norms and attention of AutoencoderKL work on one tile instead of the whole image. An AutoencoderDC of residual
        blocks differs only near the seams, an AutoencoderKL slightly everywhere; the tests measure how much. An image
        no larger than a tile gives the same result. Not for training.

        Args:
            tile: Side of a tile in pixels, a multiple of 4 times the downscale (neighbours overlap by a quarter); None
                processes whole images again.
        """
        network = self.autoencoder
        if tile is None:
            network.disable_tiling()
            network.disable_slicing()
            return
        if tile < 1 or tile % (4 * self.downscale):
            raise UserError(f"tile is {tile}: with this codec, choose a multiple of {4 * self.downscale} pixels")
        network.enable_slicing()
        if self.variational:
            # By default diffusers takes the config's sample_size, which for a new codec is 32 pixels.
            network.tile_sample_min_size, network.tile_latent_min_size = tile, tile // self.downscale
            network.tile_overlap_factor = 0.25
            network.enable_tiling()
        else:
            network.enable_tiling(tile, tile, tile * 3 // 4, tile * 3 // 4)

    def posterior(self, image: torch.Tensor) -> DiagonalGaussianDistribution:
        """Return the Gaussian over raw latents that AutoencoderKL predicts.

        Args:
            image: (B, 3, H, W) in [-1, 1].
        """
        if not self.variational:
            raise UserError("this codec is an AutoencoderDC and has no posterior: set kl_weight to 0 or use KLCodec")
        self._check(image)
        return self.autoencoder.encode(image).latent_dist

    def encode_raw(self, image: torch.Tensor) -> torch.Tensor:
        """Encode without normalisation; of AutoencoderKL, return the mode.

        Args:
            image: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, C, h, w) with h = H / downscale.
        """
        if self.variational:
            return self.posterior(image).mode()
        self._check(image)
        return self.autoencoder.encode(image, return_dict=False)[0]

    def decode_raw(self, raw: torch.Tensor) -> torch.Tensor:
        """Decode raw latents (B, C, h, w) to (B, 3, H, W), not clamped: colours out of range need gradients."""
        return self.autoencoder.decode(raw, return_dict=False)[0]

    def encode(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Encode to normalised latents.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            noise: (B, C, h, w) standard normal, to sample AutoencoderKL's posterior; None takes the mode.

        Returns:
            (B, C, h, w), unit-sized once the statistics are set.
        """
        if noise is None:
            return self.normalise(self.encode_raw(image))
        posterior = self.posterior(image)
        return self.normalise(posterior.mean + posterior.std * noise)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode normalised latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1]."""
        return self.decode_raw(self.denormalise(latent)).clamp(-1, 1)

    def normalise(self, raw: torch.Tensor) -> torch.Tensor:
        """Convert raw latents to unit-sized ones."""
        return (raw - self.shift) * self.scale

    def denormalise(self, latent: torch.Tensor) -> torch.Tensor:
        """Convert unit-sized latents to raw ones."""
        return latent / self.scale + self.shift

    def measure(self, raw: torch.Tensor) -> None:
        """Set the statistics from raw latents (B, C, h, w)."""
        self.set_statistics(LatentStatistics.of(raw))

    def set_statistics(self, statistics: LatentStatistics) -> None:
        """Store the statistics per channel, and derive shift and scale.

        AutoencoderKL gets the mean over all values and the inverse standard deviation. diffusers has no shift for
        AutoencoderDC, which gets the inverse root mean square, as its config documents.
        """
        mean, variance = statistics.mean, statistics.deviation / statistics.count
        shift = mean.mean() if self.variational else mean.new_zeros(())
        power = (variance + (mean - shift).square()).mean()
        if not torch.isfinite(power) or power <= 0:
            raise UserError(
                f"the latents' mean square is {float(power)}: the codec is untrained or diverged; train it again"
            )
        self.shift.fill_(float(shift))
        self.scale.fill_(float(power.rsqrt()))
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(statistics.std)
        self.latent_count.fill_(statistics.count)

    def statistics(self) -> dict[str, Any]:
        """Return the content of codec_statistics.json: shift, scale, mean and std per channel, number of positions."""
        if not int(self.latent_count):
            raise UserError(
                "the codec's latent statistics were never measured: train it, or run data_tools/encode_latents.py"
            )
        return {
            "shift": float(self.shift),
            "scale": float(self.scale),
            "mean": self.latent_mean.tolist(),
            "std": self.latent_std.tolist(),
            "count": int(self.latent_count),
        }

    def load_statistics(self, source: Path | Mapping[str, Any]) -> None:
        """Set the buffers from codec_statistics.json, so that sampling and release use the data set's statistics.

        Args:
            source: The file, the folder of latents with it, or its content.
        """
        name = "codec statistics"
        try:
            if isinstance(source, Path):
                name = str(source / "codec_statistics.json" if source.is_dir() else source)
                content = json.loads(Path(name).read_text(encoding="utf-8"))
            else:
                content = dict(source)
            mean, std = (torch.tensor([float(value) for value in content[key]]) for key in ("mean", "std"))
            shift, scale, count = float(content["shift"]), float(content["scale"]), int(content["count"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{name} cannot be read ({error!r}): write it again with data_tools/encode_latents.py"
            ) from None
        if mean.shape != (self.channels,) or std.shape != (self.channels,):
            raise UserError(
                f"{name} holds {len(mean)} channels, this codec has {self.channels}: use the codec that encoded them"
            )
        if not self.variational and shift != 0:
            raise UserError(f"{name} has shift {shift}, but AutoencoderDC takes none: use the codec that encoded them")
        self.shift.fill_(shift)
        self.scale.fill_(scale)
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)
        self.latent_count.fill_(count)

    def export_config(self) -> dict[str, float]:
        """Return the keys of the diffusers config with which any pipeline undoes the normalisation."""
        scaling = {"scaling_factor": float(self.scale)}
        return scaling | {"shift_factor": float(self.shift)} if self.variational else scaling

    def save(self, folder: Path) -> None:
        """Write the autoencoder as a folder of diffusers (config.json, safetensors) with the normalisation."""
        self.autoencoder.register_to_config(**self.export_config())
        self.autoencoder.save_pretrained(folder, safe_serialization=True)

    def _check(self, image: torch.Tensor) -> None:
        height, width = image.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise UserError(
                f"images of {width}x{height} pixels do not fit a codec of downscale {self.downscale}: "
                f"choose a size that is a multiple of {self.downscale}"
            )


class DCCodec(LatentCodec):
    """A new deep compression autoencoder (DC-AE, 2410.10733) built from its sizes.

    Args:
        latent_channels: Channels of the latents; the last width must be a multiple.
        widths: Channels at each resolution, from the image down; n widths give downscale 2 to the n-1.
        layers: Encoder blocks at each resolution; a first 0 skips the full resolution, which takes most time.
        decoder_layers: The same for the decoder; None takes those of the encoder.
        blocks: Kind of block at each resolution: residual convolutions or EfficientViT's linear attention.
        attention_head_dim: Channels per head in EfficientViT blocks.
    """

    def __init__(
        self,
        latent_channels: int,
        widths: list[int],
        layers: list[int],
        decoder_layers: list[int] | None = None,
        blocks: list[Literal["ResBlock", "EfficientViTBlock"]] | None = None,
        attention_head_dim: int = 32,
    ) -> None:
        """Build the autoencoder with fresh weights; see the class for the arguments."""
        kinds = tuple(blocks or ["ResBlock"] * len(widths))
        decoder_layers = decoder_layers or layers
        if not len(widths) == len(layers) == len(decoder_layers) == len(kinds):
            raise UserError("DCCodec: widths, layers, decoder_layers and blocks must have one entry per resolution")
        if min(*layers[1:], *decoder_layers[1:], 1) < 1:
            raise UserError(f"DCCodec: layers {layers} and {decoder_layers} may hold 0 only at the first resolution")
        if widths[-1] % latent_channels:
            raise UserError(f"DCCodec: the last width {widths[-1]} is no multiple of latent_channels {latent_channels}")
        scales = tuple((5,) if kind == "EfficientViTBlock" else () for kind in kinds)
        super().__init__(
            AutoencoderDC(
                latent_channels=latent_channels,
                attention_head_dim=attention_head_dim,
                encoder_block_types=kinds,  # type: ignore[arg-type]  # diffusers' hint says one, its code takes one each
                decoder_block_types=kinds,  # type: ignore[arg-type]
                encoder_block_out_channels=tuple(widths),
                decoder_block_out_channels=tuple(widths),
                encoder_layers_per_block=tuple(layers),
                decoder_layers_per_block=tuple(decoder_layers),
                encoder_qkv_multiscales=scales,
                decoder_qkv_multiscales=scales,
            )
        )


class KLCodec(LatentCodec):
    """A new variational autoencoder of the latent diffusion kind (2112.10752) built from its sizes.

    Args:
        latent_channels: Channels of the latents.
        widths: Channels at each resolution, from the image down; n widths give downscale 2 to the n-1.
        layers: Residual blocks at each resolution.
        norm_groups: Groups of the group norms; each width must be a multiple.
    """

    def __init__(self, latent_channels: int, widths: list[int], layers: int = 2, norm_groups: int = 32) -> None:
        """Build the autoencoder with fresh weights; see the class for the arguments."""
        if any(width % norm_groups for width in widths):
            raise UserError(f"KLCodec: each of the widths {widths} must be a multiple of norm_groups {norm_groups}")
        super().__init__(
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * len(widths),  # type: ignore[arg-type]
                up_block_types=("UpDecoderBlock2D",) * len(widths),  # type: ignore[arg-type]
                block_out_channels=tuple(widths),  # type: ignore[arg-type]
                layers_per_block=layers,
                latent_channels=latent_channels,
                norm_num_groups=norm_groups,
                scaling_factor=1.0,
                shift_factor=0.0,
            )
        )
