"""Dual encoder of open_clip: an image tower and a text tower, with open_clip's own parameter names.

Padding of captions is not computed where the tower allows it. The embeddings equal open_clip's (see text_forward.py).
"""

import math
import re
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from leam_mm.checkpoint import REBUILDING
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.hugging_face_text import HuggingFaceText, transformers_folder
from leam_mm.encoders.low_rank import LowRank
from leam_mm.encoders.text_forward import choose_text_forward
from leam_mm.encoders.vision_transformer import check_size, image_features, skip_unread_tokens
from leam_mm.errors import UserError


@dataclass
class ImageTower:
    """Settings of an image tower of open_clip.

    Args:
        image_size: H = W in pixels.
        patch_size: Pixels per side of a patch of the vision transformer.
        width: E, channels of the vision transformer.
        layers: Blocks of the vision transformer.
        head_width: Channels per attention head.
        pool_type: tok (class token) or avg.
        patch_dropout: Share of patches dropped during training, in [0, 1).
        timm_model_name: Name of a timm model that replaces the vision transformer.
        timm_pool: Pooling of the timm model (avg, abs_attn, ...; empty for the model's default).
        timm_proj: Projection of the timm model's features (linear, mlp).
    """

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    head_width: int = 64
    pool_type: str = "tok"
    patch_dropout: float = 0.0
    timm_model_name: str | None = None
    timm_pool: str = "avg"
    timm_proj: str = "linear"


@dataclass
class TextTower:
    """Settings of open_clip's causal text transformer.

    Args:
        context_length: L, tokens per caption.
        vocab_size: Number of tokens, as in the tokenizer's report.
        width: E, channels.
        heads: Attention heads.
        layers: Blocks.
    """

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12


def check_timm_name(name: str | None) -> None:
    """Raise UserError if a name is not that of a timm model in this environment: timm also takes hubs and folders."""
    from timm import is_model

    if name is not None and (not re.fullmatch(r"[\w.]+", name) or not is_model(name)):
        raise UserError(f"timm_model_name {name[:80]!r} is no model of timm: see timm.list_models()")


def tower_config(tower: ImageTower | TextTower) -> dict[str, Any]:
    """Return the settings as a dict for open_clip, without those that are None (a timm tower requires this)."""
    return {field.name: getattr(tower, field.name) for field in fields(tower) if getattr(tower, field.name) is not None}


class DualEncoder(nn.Module):
    """Image tower and text tower with a shared embedding space.

    Args:
        embed_dim: D, size of the shared embedding.
        vision: Image tower.
        text: Text tower: open_clip's causal transformer, or one of Hugging Face.
        init_scale: Initial inverse temperature (1/0.07 for the softmax loss, 10 for the sigmoid loss).
        init_bias: Initial bias of the sigmoid loss (-10); None for no bias.
        image_mean: Mean per channel, in [0, 1].
        image_std: Standard deviation per channel, in [0, 1].
        low_rank: Train low-rank additions to some matrices only; None trains all parameters.
    """

    image_mean: Tensor
    image_std: Tensor
    stage_sizes: tuple[int, ...] = ()  # allowed image sizes besides image_size, see allow_sizes

    def __init__(
        self,
        embed_dim: int,
        vision: ImageTower,
        text: TextTower | HuggingFaceText,
        init_scale: float = 1 / 0.07,
        init_bias: float | None = None,
        image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711),
        low_rank: LowRank | None = None,
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        check_timm_name(vision.timm_model_name)
        self.text = text
        config = {"embed_dim": embed_dim, "vision_cfg": tower_config(vision), "text_cfg": {}}
        scalars = {"init_logit_scale": math.log(init_scale), "init_logit_bias": init_bias}
        clip: Any
        if isinstance(text, HuggingFaceText):
            text.check()
            config["text_cfg"] = text.text_config(text.model)
            text_cfg = CLIPTextCfg(**text.text_config(str(transformers_folder(text.model))))  # type: ignore[arg-type]
            text_cfg.hf_model_pretrained = text.pretrained and not REBUILDING.get()
            clip = CustomTextCLIP(embed_dim, CLIPVisionCfg(**tower_config(vision)), text_cfg, **scalars)
        else:
            config["text_cfg"] = tower_config(text)
            clip = CLIP(embed_dim, CLIPVisionCfg(**tower_config(vision)), CLIPTextCfg(**tower_config(text)), **scalars)
        self._hold(clip, config, image_mean, image_std, low_rank)

    def _hold(
        self,
        clip: Any,
        config: dict[str, Any],
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        low_rank: LowRank | None,
    ) -> None:
        """Set the attributes from a model of open_clip and the ``model_cfg`` that it was built from."""
        self.clip, self._config, self.low_rank = clip, config, low_rank
        self.embed_dim, self.image_size = int(config["embed_dim"]), int(config["vision_cfg"]["image_size"])
        self.context_length = int(config["text_cfg"]["context_length"])
        self.text_forward = choose_text_forward(clip, self.context_length, int(config["text_cfg"].get("pad_id", 0)))
        skip_unread_tokens(clip.visual)
        # Convolutions run faster in channels-last format (three times for a small residual network on a CPU).
        clip.visual.to(memory_format=torch.channels_last)
        self.register_buffer("image_mean", torch.tensor(image_mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std), persistent=False)
        self._batch_norms = low_rank.add_to(clip) if low_rank is not None else []

    def train(self, mode: bool = True) -> "DualEncoder":
        """Set the training mode; batch norms of a frozen network stay in evaluation mode."""
        super().train(mode)
        for layer in self._batch_norms:
            layer.eval()
        return self

    def config(self) -> dict[str, Any]:
        """Return the ``model_cfg`` of an open_clip_config.json that rebuilds these towers."""
        config = self._config | {"init_logit_scale": self.clip.logit_scale.item()}
        if self.clip.logit_bias is not None:
            config["init_logit_bias"] = self.clip.logit_bias.item()
        return config

    def plain_clip(self) -> nn.Module:
        """Return the model of open_clip, or a copy with the low-rank additions merged into its weights."""
        return self.low_rank.merged(self.clip) if self.low_rank is not None else self.clip

    def origin(self) -> dict[str, str]:
        """Return path and SHA-256 of the initial weights; empty if the weights were initialised at random."""
        return {}

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise UserError if the tokenizer's vocabulary, end token or padding does not fit the text tower."""
        rows = self.text.vocab_size
        if tokenizer.vocabulary > rows or (self._own_vocabulary and tokenizer.vocabulary != rows):
            raise UserError(
                f"model.encoder.text.vocab_size is {rows}, but the tokenizer in {tokenizer.path} has "
                f"{tokenizer.vocabulary} tokens: "
                + ("write that number into the recipe" if self._own_vocabulary else "use the tokenizer of this tower")
            )
        self.text_forward.check(self.clip, tokenizer)

    @property
    def _own_vocabulary(self) -> bool:
        """Whether the recipe sets the vocabulary size, which must then equal the tokenizer's."""
        return isinstance(self.text, TextTower)

    def normalise(self, image: Tensor) -> Tensor:
        """Return normalised images: (B, 3, H, W) uint8 -> float, (x / 255 - mean) / std per channel."""
        if image.shape[-1] != image.shape[-2] or image.shape[-1] not in (self.image_size, *self.stage_sizes):
            raise UserError(
                f"images are {image.shape[-1]} x {image.shape[-2]} pixels, but the encoder takes {self.image_size}: "
                "set data.init_args.image.init_args.image_size"
            )
        scale, shift = 1 / (255 * self.image_std), self.image_mean / self.image_std
        # (image / 255 - mean) / std in two passes over the batch and one allocation, instead of four and four.
        return (image * scale[:, None, None]).sub_(shift[:, None, None])

    def allow_sizes(self, sizes: list[int]) -> None:
        """Allow further image sizes, in pixels; raise UserError if the tower cannot take one of them."""
        for size in sizes:
            check_size(self.clip.visual, size)
        self.stage_sizes = tuple(sizes)

    def encode_image(
        self, image: Tensor, sample_index: Tensor | None = None, patch_dropout: float | None = None
    ) -> Tensor:
        """Embed normalised images: (B, 3, H, W) -> (B, D) of unit length.

        Args:
            image: H = W is ``image_size``, or for a vision transformer another multiple of the patch size.
            sample_index: (B,) index of each sample in the run, which seeds its patch dropout; None uses the global
                random number generator, as open_clip does.
            patch_dropout: Share of patches dropped during training; None uses the tower's setting.
        """
        tower = self.clip.visual
        if not isinstance(tower, VisionTransformer):
            return self.clip.encode_image(image, normalize=True)
        share = getattr(tower.patch_dropout, "prob", 0.0) if patch_dropout is None else patch_dropout
        return F.normalize(image_features(tower, image, sample_index, share if tower.training else 0.0), dim=-1)

    def text_states(self, text: Tensor) -> Tensor:
        """Return hidden states after the final layer norm: (B, L) int64 -> (B, L, E)."""
        return self.text_forward.states(self.clip, text)

    def encode_text(self, text: Tensor, text_length: Tensor) -> Tensor:
        """Embed captions: (B, L) int64 with text_length (B,) -> (B, D) of unit length.

        Padding is skipped if ``text_length`` is on the CPU; ``text`` may be on any device. If it is on a GPU, all
        columns of ``text`` are computed to avoid a synchronisation (``captions.cut_padding`` removes columns).
        """
        return F.normalize(self.text_forward.embed(self.clip, text, text_length), dim=-1)

    @property
    def scale(self) -> Tensor:
        """Inverse temperature, a scalar."""
        return self.clip.logit_scale.exp()

    @property
    def bias(self) -> Tensor | None:
        """Bias of the sigmoid loss, a scalar; None without one."""
        return self.clip.logit_bias
