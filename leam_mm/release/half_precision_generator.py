"""How far a generator in 16 bits is from the one in float32."""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from leam_mm.codecs.float16_range import fit_float16
from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.release.half_precision import VARIANTS, HalfPrecision, require_finite
from leam_mm.release.onnx_parts import Prediction

if TYPE_CHECKING:
    from leam_mm.diffusion_module import LatentDiffusionModule

log = logging.getLogger(__name__)
PROBES = 4  # captions, each with latents and a time of its own


@torch.no_grad()
def generator_differences(
    module: "LatentDiffusionModule", variants: Sequence[HalfPrecision]
) -> Mapping[str, dict[str, float | str]]:
    """Return how far predictions and decoded images in 16 bits are from those in float32, both computed on the CPU.

    Args:
        module: The trained generator.
        variants: Precisions to compare.

    Returns:
        For each precision ``prediction_relative_difference``, root mean square over that of the prediction, and
        ``image_largest_difference`` of decoded colours in [0, 1]; or the ``generator_error`` where an operation
        has no implementation in it or overflows.
    """
    denoiser, side = module.ema_denoiser(), module.latent_size
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(PROBES, denoiser.in_channels, side, side, generator=generator)
    state, mask = (part.cpu() for part in module.caption_encoder.encode(list(LANGUAGE_NAMES.values())[:PROBES]))
    time = torch.linspace(0.2, 0.95, PROBES)
    network = Prediction(denoiser)
    codec = copy.deepcopy(module.codec).to("cpu").float().eval()
    exact, image = network(latent, time, state, mask), codec.decode(latent)
    found: dict[str, dict[str, float | str]] = {}
    for variant in variants:
        dtype = VARIANTS[variant][1]
        try:
            prediction = _half(network, dtype)(latent.to(dtype), time, state.to(dtype), mask)
            decoder = copy.deepcopy(codec)
            if variant == "float16":
                fit_float16(decoder.autoencoder, float(decoder.scale))
            decoded = _half(decoder, dtype).decode(latent.to(dtype))
            require_finite(prediction, "predictions of the denoiser")
            require_finite(decoded, "images of the codec")
        except (RuntimeError, ArithmeticError) as error:  # some operations have no implementation in 16 bits on a CPU
            found[variant] = {"generator_error": str(error).splitlines()[0][:200]}
            log.warning("the generator in %s: %s", variant, found[variant]["generator_error"])
            continue
        found[variant] = {"image_largest_difference": (decoded.float() - image).abs().max().item() / 2}
        if size := _root_mean_square(exact):  # an untrained network predicts zeros
            found[variant]["prediction_relative_difference"] = _root_mean_square(prediction.float() - exact) / size
    return found


def _half(network: nn.Module, dtype: torch.dtype) -> Any:
    return copy.deepcopy(network).to(dtype)


def _root_mean_square(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()
