"""A generator as a folder that ``DiffusionPipeline.from_pretrained`` loads without leam_mm and without remote code.

The pipeline is diffusers' PRXPipeline: it cleans captions as our training does, passes their mask to the network, and
takes every codec and scheduler that we release. A PRX transformer needs nothing more. Those of other kinds lie in the
same place, and a few lines on the card (loading_generator.md.jinja) tell them what it passes: the pipelines that
diffusers has for U-Nets and for Stable Diffusion 3 pass no mask, so their images would differ.

Our text tower becomes a CLIPTextModel of transformers: the same weights under other names, so captions give the same
hidden states. The scheduler takes the timesteps of our sampler.
"""

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, PRXPipeline
from open_clip.model import CLIP
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.samplers import TRAINING_STEPS
from leam_mm.diffusion.time_shift import TimeShift
from leam_mm.diffusion.variance_preserving import BETA_END, BETA_START, TABLE_STEPS, VariancePreserving
from leam_mm.encoders.dual_encoder import DualEncoder, TextTower
from leam_mm.errors import UserError
from leam_mm.release.clip_weight_names import text_weights
from leam_mm.release.open_clip_folder import plain_weights
from leam_mm.release.transformers_versions import make_loadable

if TYPE_CHECKING:
    from leam_mm.diffusion_module import LatentDiffusionModule

log = logging.getLogger(__name__)


def write_diffusers_folder(generator: "LatentDiffusionModule", folder: Path) -> None:
    """Write the generator (the averaged denoiser if an average is kept) in diffusers' layout.

    Args:
        generator: The trained module, with its codec and caption encoder.
        folder: Existing or new; files of other libraries in it stay.
    """
    codec = generator.codec
    size = generator.latent_size * codec.downscale
    sizes = generator.denoiser.size_conditioning
    if sizes is not None and sizes.side != size:
        log.warning("the released denoiser is conditioned on images of %d pixels, and generates %d", sizes.side, size)
    pipeline = build_pipeline(generator.ema_denoiser(), generator.process, generator.caption_encoder, codec, size)
    pipeline.save_pretrained(folder, safe_serialization=True)
    make_loadable(folder)


def build_pipeline(
    denoiser: Denoiser,
    process: DiffusionProcess,
    captions: CaptionEncoder | HuggingFaceCaptions,
    codec: LatentCodec,
    image_size: int,
) -> Any:
    """Build diffusers' PRXPipeline from copies of our parts, on the CPU.

    Args:
        denoiser: Any Denoiser.
        process: A process that `released_scheduler` supports.
        captions: The frozen caption encoder that the denoiser was trained with.
        codec: The autoencoder; its statistics become scaling_factor and shift_factor.
        image_size: H = W in pixels of an image if the caller gives no size.

    Returns:
        The PRXPipeline (diffusers hides its methods from type checkers).

    Raises:
        UserError: No pipeline of diffusers samples this generator as it was trained.
    """
    scheduler = released_scheduler(process, (image_size // codec.downscale) ** 2)
    text_encoder, tokenizer = released_captions(captions)
    for part, model in [("denoiser", denoiser), ("codec", codec)]:
        check_weights(part, model)
    autoencoder = copy.deepcopy(codec.autoencoder).to("cpu")
    autoencoder.register_to_config(**codec.export_config())
    return PRXPipeline(
        transformer=denoiser.plain_model().to("cpu"),
        scheduler=scheduler,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=autoencoder,
        default_sample_size=image_size,
    )


def check_weights(part: str, model: Any) -> None:
    """Refuse weights that are not finite."""
    try:
        plain_weights(model)
    except UserError as error:
        raise UserError(f"{part}: {error}") from None


def released_captions(captions: CaptionEncoder | HuggingFaceCaptions) -> tuple[Any, Any]:
    """Return a copy of the text encoder as a model of transformers, and its tokenizer.

    Raises:
        UserError: The pipeline has no place for these captions.
    """
    if isinstance(captions, HuggingFaceCaptions):
        model, tokenizer = copy.deepcopy(captions.model).to("cpu"), copy.deepcopy(captions.tokenizer)
        tokenizer.model_max_length = captions.context_length
        return model, tokenizer
    if not isinstance(captions, CaptionEncoder):
        raise UserError(
            "a generator with several text encoders cannot be released for diffusers: a PRXPipeline has one; train the "
            "generator with one"
        )
    check_weights("text tower", captions.encoder)
    path = captions.tokenizer.path
    return clip_text_model(captions.encoder, path), load_tokenizer(path, captions.encoder.context_length)


def released_scheduler(process: DiffusionProcess, positions: int) -> Any:
    """Return the scheduler of diffusers that takes the steps of our sampler in a PRXPipeline.

    Args:
        process: A RectifiedFlow, or a VariancePreserving of any prediction with Stable Diffusion's schedule.
        positions: h w of the latents if the caller gives no size.

    Raises:
        UserError: No scheduler samples as the process was trained.
    """
    if isinstance(process, VariancePreserving) and process.schedule == "sd_linear":
        return DPMSolverMultistepScheduler(
            num_train_timesteps=TABLE_STEPS,
            beta_start=BETA_START,
            beta_end=BETA_END,
            beta_schedule="scaled_linear",
            prediction_type=process.prediction_type,
            final_sigmas_type="sigma_min",  # the first step of the table, as ours: the remaining noise stays
            lower_order_final=False,
        )
    if type(process) is RectifiedFlow:  # subclasses predict something else
        if isinstance(process.shift, TimeShift):
            log.warning(
                "the released scheduler has the constant shift %.4g, that of %d latent positions: at other sizes its "
                "images differ from those of our own sampler",
                process.shift_at(positions),
                positions,
            )
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAINING_STEPS, shift=process.shift_at(positions))
    fix = "VariancePreserving's schedule sd_linear" if isinstance(process, VariancePreserving) else "RectifiedFlow"
    raise UserError(
        f"a generator trained with this {type(process).__name__} cannot be released for diffusers: no scheduler in its "
        f"PRXPipeline takes the same steps at the same times; train with {fix} to release one"
    )


def load_tokenizer(path: Path, context_length: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the length to which the pipeline pads."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    tokenizer.model_max_length = context_length
    return tokenizer


def clip_text_model(encoder: DualEncoder, tokenizer_path: Path) -> CLIPTextModel:
    """Return our text tower as transformers' CLIPTextModel, whose last hidden states are our ``text_states``.

    Args:
        encoder: The towers.
        tokenizer_path: Their tokenizer, for the ids of the special tokens.
    """
    tokenizer = load_tokenizer(tokenizer_path, encoder.context_length)
    if not isinstance(encoder.clip, CLIP) or not isinstance(encoder.text, TextTower):
        raise UserError(
            f"a generator with captions from a {type(encoder.clip).__name__} cannot be released for diffusers: its "
            "PRXPipeline takes a plain CLIP text tower; train the generator with one"
        )
    weights = plain_weights(encoder.plain_clip())
    width = encoder.text.width
    config = CLIPTextConfig(
        vocab_size=encoder.text.vocab_size,
        hidden_size=width,
        intermediate_size=weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        projection_dim=encoder.embed_dim,
        num_hidden_layers=encoder.text.layers,
        num_attention_heads=encoder.text.heads,
        max_position_embeddings=encoder.context_length,
        # open_clip's default is the exact GELU; that of transformers is quick_gelu
        hidden_act="quick_gelu" if encoder.config().get("quick_gelu") else "gelu",
        layer_norm_eps=encoder.clip.ln_final.eps,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = CLIPTextModel(config)
    model.load_state_dict(text_weights(weights))
    return model.eval()
