"""The networks of a release as modules with named tensors in and out, as ONNX describes a network.

| file | inputs | output |
|---|---|---|
| vision_model | pixel_values (B, 3, H, W), normalised | image_embeds (B, D), of unit length |
| text_model | input_ids (B, L) | text_embeds (B, D), of unit length |
| text_encoder | input_ids (B, L), and attention_mask (B, L) if transformers' | last_hidden_state (B, L, E) |
| denoiser | sample (B, C, h, w), time (B,), encoder_hidden_states (B, L, E), | prediction (B, C, h, w) |
|          | encoder_attention_mask (B, L) | |
| vae_decoder | latent (B, C, h, w), normalised | image (B, 3, H, W) in [-1, 1] |
| vae_encoder | image (B, 3, H, W) in [-1, 1] | latent (B, C, h, w), normalised |

Token ids are int64, masks bool, everything else float32. Times run from 0 (data) to 1 (noise).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.denoisers.attention import choose_attention
from leam_mm.denoisers.denoiser import SCHEDULER_STEPS, Denoiser
from leam_mm.denoisers.sd3_denoiser import pool
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.encoders.text_forward import GroupedForward, PackedForward, TextForward, text_tower

Sizes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class OnnxPart:
    """One network to export.

    Args:
        name: Name of the file, without ending.
        network: Takes the inputs by name, and returns one tensor.
        inputs: An example of each input, in the order in which the network takes them.
        others: Another example with other sizes, for the comparison with onnxruntime.
        output: Name of the output.
        sizes: Dimensions of each input that may vary, and their names; the others are fixed.
    """

    name: str
    network: nn.Module
    inputs: dict[str, Tensor]
    others: dict[str, Tensor]
    output: str
    sizes: Sizes = field(default_factory=dict)


class VisionModel(nn.Module):
    """Normalised images to embeddings."""

    def __init__(self, clip: Any) -> None:
        """Take the model of open_clip."""
        super().__init__()
        self.visual = clip.visual

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed: (B, 3, H, W) -> (B, D)."""
        return F.normalize(self.visual(pixel_values), dim=-1)


class TextModel(nn.Module):
    """Token ids to embeddings, with the pooling of the tower."""

    def __init__(self, clip: Any, reading: TextForward, end: int) -> None:
        """Take the model of open_clip, how its text tower is read, and the id of the end token."""
        super().__init__()
        self.clip, self.reading, self.end = clip, reading, end

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed: (B, L) -> (B, D)."""
        if isinstance(self.reading, PackedForward):
            states, tower = self.reading.states(self.clip, input_ids), text_tower(self.clip)
            place = (input_ids == self.end).int().argmax(-1)
            last = states[torch.arange(states.shape[0], device=states.device), place]
            projection = tower.text_projection
            if projection is not None:
                last = projection(last) if isinstance(projection, nn.Module) else last @ projection
            return F.normalize(last, dim=-1)
        if isinstance(self.reading, GroupedForward):
            return F.normalize(self.clip.text(input_ids), dim=-1)
        return self.clip.encode_text(input_ids, normalize=True)


class CaptionStates(nn.Module):
    """Token ids to the hidden states of our text tower."""

    def __init__(self, captions: CaptionEncoder) -> None:
        """Take the caption encoder of a generator."""
        super().__init__()
        self.clip, self.reading = captions.encoder.clip, captions.encoder.text_forward

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode: (B, L) -> (B, L, E)."""
        return self.reading.states(self.clip, input_ids)


class MaskedStates(nn.Module):
    """Token ids and their mask to the hidden states of a text encoder of transformers."""

    def __init__(self, captions: HuggingFaceCaptions) -> None:
        """Take the caption encoder of a generator."""
        super().__init__()
        self.model = captions.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode: (B, L), (B, L) bool -> (B, L, E), zero in the padding."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state
        return states * attention_mask[..., None]


class Prediction(nn.Module):
    """A denoiser's network of diffusers behind one call, with plain attention."""

    def __init__(self, denoiser: Denoiser) -> None:
        """Take a copy of the network."""
        super().__init__()
        self.model: Any = denoiser.plain_model().to("cpu").eval()
        self.kind = type(self.model)
        choose_attention(self.model, torch.device("cpu"), torch.float32, "sdpa")

    def forward(
        self, sample: Tensor, time: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> Tensor:
        """Predict: (B, C, h, w), (B,), (B, L, E), (B, L) bool -> (B, C, h, w)."""
        states, mask, model = encoder_hidden_states, encoder_attention_mask, self.model
        if self.kind is UNet2DConditionModel:
            steps = time * SCHEDULER_STEPS
            return model(sample, steps, states, encoder_attention_mask=mask, return_dict=False)[0]
        if self.kind is SD3Transformer2DModel:
            inputs = states, pool(states, mask), time * SCHEDULER_STEPS
            return model(sample, *inputs, joint_attention_kwargs={"attention_mask": mask}, return_dict=False)[0]
        return model(sample, time, states, attention_mask=mask, return_dict=False)[0]


class Decoding(nn.Module):
    """Normalised latents to images."""

    def __init__(self, codec: LatentCodec) -> None:
        """Take the codec."""
        super().__init__()
        self.codec = codec

    def forward(self, latent: Tensor) -> Tensor:
        """Decode: (B, C, h, w) -> (B, 3, H, W) in [-1, 1]."""
        return self.codec.decode(latent)


class Encoding(Decoding):
    """Images to normalised latents; of AutoencoderKL, the mode."""

    def forward(self, image: Tensor) -> Tensor:
        """Encode: (B, 3, H, W) in [-1, 1] -> (B, C, h, w)."""
        return self.codec.encode(image)


def encoder_parts(module: ContrastiveModule) -> Iterator[OnnxPart]:
    """Yield both towers of an encoder."""
    encoder = module.ema_encoder()
    clip: Any = copy.deepcopy(encoder.plain_clip())
    clip = clip.to("cpu", memory_format=torch.contiguous_format).float().eval()
    side, batch = encoder.image_size, {0: "batch"}
    pixels = [torch.randn(count, 3, side, side) for count in (2, 3)]
    yield _part("vision_model", VisionModel(clip), "image_embeds", {"pixel_values": batch}, pixel_values=pixels)
    reading, length = encoder.text_forward, encoder.context_length
    packed = isinstance(reading, PackedForward | GroupedForward)  # others read the padding, so that L is fixed
    ids = [module.tokenizer.encode(texts)[0] for texts in (["a", "b c d"], ["d", "", "c c c c"])]
    if packed:
        ids = [ids[0][:, : length - 1], ids[1]]
    sizes = batch | ({1: "tokens"} if packed else {})
    text_model = TextModel(clip, reading, module.tokenizer.end)
    yield _part("text_model", text_model, "text_embeds", {"input_ids": sizes}, input_ids=ids)


def generator_parts(module: LatentDiffusionModule) -> Iterator[OnnxPart]:
    """Yield text encoder, denoiser, and both halves of the codec of a generator."""
    captions: Any = module.caption_encoder
    texts, batch = {0: "batch", 1: "tokens"}, {0: "batch"}
    masks = [torch.arange(length) < torch.tensor(real)[:, None] for length, real in ((7, [3, 7]), (9, [9, 2, 5]))]
    ids = [torch.where(mask, torch.randint(1, 9, mask.shape), 0) for mask in masks]
    if isinstance(captions, HuggingFaceCaptions):
        sizes = {"input_ids": texts, "attention_mask": texts}
        states = MaskedStates(captions)
        yield _part("text_encoder", states, "last_hidden_state", sizes, input_ids=ids, attention_mask=masks)
    elif isinstance(captions, CaptionEncoder):
        yield _part("text_encoder", CaptionStates(captions), "last_hidden_state", {"input_ids": texts}, input_ids=ids)
    denoiser, codec = module.ema_denoiser(), module.codec
    patch, channels, side = denoiser.patch_size, denoiser.in_channels, module.latent_size
    spatial = {0: "batch", 2: "height", 3: "width"}
    step = 4 * patch  # halved by each resolution of a U-Net
    latents = [torch.randn(2, channels, side, side), torch.randn(3, channels, side, side + step)]
    yield _part(
        "denoiser",
        Prediction(denoiser),
        "prediction",
        {"sample": spatial, "time": batch, "encoder_hidden_states": texts, "encoder_attention_mask": texts},
        sample=latents,
        time=[torch.tensor([0.2, 0.7]), torch.tensor([0.1, 0.5, 1.0])],
        encoder_hidden_states=[torch.randn(*mask.shape, denoiser.context_dim) for mask in masks],
        encoder_attention_mask=masks,
    )
    codec = copy.deepcopy(codec).to("cpu").float().eval()
    yield _part("vae_decoder", Decoding(codec), "image", {"latent": spatial}, latent=latents)
    images = [torch.rand(len(z), 3, *(codec.downscale * size for size in z.shape[2:])) * 2 - 1 for z in latents]
    yield _part("vae_encoder", Encoding(codec), "latent", {"image": spatial}, image=images)


def _part(name: str, network: nn.Module, output: str, sizes: Sizes, **pairs: list[Tensor]) -> OnnxPart:
    # A view of a larger tensor would make the export depend on that one.
    first, second = ({key: pair[number].clone() for key, pair in pairs.items()} for number in (0, 1))
    return OnnxPart(name, network.eval(), first, second, output, sizes)
