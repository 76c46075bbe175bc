"""Floating-point operations counted on the module of a recipe, with torch's FlopCounterMode on the meta device.

Nothing is computed and no memory is used: tensors on the meta device have shapes only. One multiply-accumulate counts
as two operations. This covers what has no closed form (U-Nets, autoencoders, timm's towers, towers of transformers)
and checks transformer_flops.py.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from leam_mm.callbacks.compilation import trained_blocks
from leam_mm.captions.caption_tower import CaptionTower
from leam_mm.checkpoint import REBUILDING, build_module
from leam_mm.codec_module import LatentCodecModule
from leam_mm.config_error import innermost
from leam_mm.denoisers.denoiser import UNetDenoiser
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.encoders.dual_encoder import DualEncoder
from leam_mm.errors import UserError
from leam_mm.techniques.representation_alignment import RepresentationAlignment
from leam_mm.techniques.technique import TrainingStep

META = torch.device("meta")
DEFAULT_CAPTION = 64  # tokens of a caption that a generator reads, where neither recipe nor option says it
PAIR = 2  # images at a time: batch norm in training takes no single one


def count(run: Callable[[], object]) -> int:
    """Return the FLOP of the matrix products and convolutions of a call, those of its backward pass included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def meta_module(model: Mapping[str, Any]) -> Any:
    """Build the module of a recipe's ``model:`` section without memory for its weights; weights files are not opened.

    Raises:
        UserError: The module cannot be built, or names a class that is not trusted.
    """
    encoder = str(model.get("class_path", "")).endswith("ContrastiveModule")
    rebuilding = REBUILDING.set({"shapes": "only"} if encoder else None)  # published encoders then open no weights
    try:
        with META:
            return build_module(dict(model))
    except UserError:
        raise
    except Exception as error:  # jsonargparse and the constructors raise many kinds of exceptions
        raise UserError(
            f"model.class_path {model.get('class_path')}: cannot be built ({innermost(str(error))})"
        ) from None
    finally:
        REBUILDING.reset(rebuilding)


@contextmanager
def recomputing(module: nn.Module, every: int = 1) -> Iterator[None]:
    """Context in which trained blocks recompute their activations, as callbacks.GradientCheckpointing makes them.

    Args:
        module: The training module.
        every: Recompute every n-th block.
    """
    chosen = trained_blocks(module)[::every]
    for block in chosen:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in chosen:
            del block.forward  # removes the instance attribute; the class method remains


def count_image(encoder: DualEncoder, image_size: int, dropout: float | None = None, backward: bool = False) -> int:
    """Return the FLOP of the image tower for one image.

    Args:
        encoder: On the meta device.
        image_size: H = W in pixels.
        dropout: Share of patches that are dropped; None takes the tower's own.
        backward: Count the backward pass, too.
    """
    image = torch.zeros(PAIR, 3, image_size, image_size, device=META)
    index = torch.zeros(PAIR, dtype=torch.int64)
    return count(lambda: _backward(encoder.encode_image(image, index, dropout), backward)) // PAIR


def count_text(encoder: DualEncoder, tokens: int, backward: bool = False) -> int:
    """Return the FLOP of the text tower for one caption of ``tokens`` tokens.

    Args:
        encoder: On the meta device.
        tokens: Tokens of the caption, at most the context length.
        backward: Count the backward pass, too.
    """
    text = torch.zeros(1, tokens, dtype=torch.int64, device=META)
    length = torch.full((1,), tokens, dtype=torch.int64, device=META)
    return count(lambda: _backward(encoder.encode_text(text, length), backward))


def count_denoiser(
    module: LatentDiffusionModule, size: tuple[int, int], caption: int, sample: int = 0, backward: bool = False
) -> int:
    """Return the FLOP of the denoiser for one latent in a training step, with the recipe's techniques.

    Args:
        module: On the meta device.
        size: h, w of the latent.
        caption: Tokens of the caption.
        sample: Number of the sample in the run; some techniques end after a number of samples.
        backward: Count the backward pass, too.
    """
    return count(lambda: _backward(run_denoiser(module, size, caption, sample=sample), backward))


def run_denoiser(
    module: LatentDiffusionModule,
    size: tuple[int, int],
    caption: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    sample: int = 0,
) -> Tensor:
    """Run the denoiser of a training step on the meta device, with the recipe's techniques.

    Args:
        module: On the meta device.
        size: h, w of the latents.
        caption: Tokens of each caption.
        batch: Number of latents.
        dtype: Type of latents and weights.
        sample: Number of the samples in the run.

    Returns:
        The output, or a scalar from which gradients reach all trained weights.
    """
    denoiser, index = module.denoiser, torch.full((batch,), sample)
    latent = torch.zeros(batch, denoiser.in_channels, *size, device=META, dtype=dtype)
    time = torch.zeros(batch, device=META, dtype=dtype)
    state = torch.zeros(batch, caption, denoiser.context_dim, device=META, dtype=dtype)
    mask = torch.ones(batch, caption, dtype=torch.bool)  # on the host, where captions are trimmed
    step = TrainingStep({}, index, latent, latent, time, latent, module.process)
    techniques: list[Any] = list(module.techniques)
    for technique in techniques:
        technique.begin(step)
    steps = [block_step for technique in techniques for block_step in technique.block_steps()]
    if isinstance(denoiser, UNetDenoiser):  # autocast, which it asks for, has no meta device
        return denoiser.model(latent, time, encoder_hidden_states=state, return_dict=False)[0]
    output = denoiser(latent, time, state, mask, steps)
    for technique in techniques:
        if isinstance(technique, RepresentationAlignment) and _aligned(technique, sample):
            assert technique._tokens is not None
            output = output.sum() + technique.projection(technique._tokens.values).sum()
    return output


def count_caption_tower(tower: CaptionTower) -> int:
    """Return the FLOP of a trained caption tower for one caption of its full context length."""
    text = torch.zeros(1, tower.settings.context_length, dtype=torch.int64, device=META)
    return count(lambda: tower.reading.states(tower, text))


def count_codec(module: LatentCodecModule, image_size: int) -> dict[str, int]:
    """Return the FLOP of a forward pass for one image of encoder, decoder, perceptual loss and discriminator."""
    image = torch.zeros(1, 3, image_size, image_size, device=META)
    autoencoder: Any = module.codec.autoencoder
    latent = torch.zeros(1, module.codec.channels, image_size // module.codec.downscale,
                         image_size // module.codec.downscale, device=META)  # fmt: skip
    parts: dict[str, Callable[[], object]] = {
        "encoder": lambda: autoencoder.encode(image),
        "decoder": lambda: autoencoder.decode(latent),
    }
    perceptual, discriminator = module.perceptual, module.discriminator
    if perceptual is not None:
        parts["perceptual"] = lambda: perceptual(image, image)
    if discriminator is not None:
        parts["discriminator"] = lambda: discriminator(image)
    return {name: count(part) for name, part in parts.items()}


def parameters(module: nn.Module, trained: bool = True) -> int:
    """Return the number of weights of a module, the trained ones only or all."""
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad or not trained)


def _aligned(technique: RepresentationAlignment, sample: int) -> bool:
    return technique.until_samples is None or sample < technique.until_samples


def _backward(output: Tensor, wanted: bool) -> None:
    if wanted:
        output.sum().backward()
