"""The door to open_clip: an image tower and a text tower with open_clip's own weights' names.

Text runs on the columns that hold tokens only; open_clip runs on all of its context length. The states of a causal
tower do not depend on what follows, so the embeddings are the same.
"""

import math
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from leam_mm.errors import UserError

LENGTH_GROUPS = 4


@dataclass
class ImageTower:
    """Settings of open_clip's image towers.

    Args:
        image_size: H = W in pixels.
        patch_size: Pixels per side of a token of the vision transformer.
        width: E, channels of the vision transformer.
        layers: Its blocks.
        head_width: Channels per attention head.
        pool_type: tok (class token) or avg.
        patch_dropout: Share of tokens left out in training, in [0, 1).
        timm_model_name: A timm model takes the place of the vision transformer.
        timm_pool: Pooling of the timm model (avg, abs_attn, ...; empty for the model's own).
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
        vocab_size: As the tokenizer's report says.
        width: E, channels.
        heads: Attention heads.
        layers: Blocks.
    """

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12


def _differing(tower: ImageTower | TextTower) -> dict[str, object]:
    """What open_clip must be told; a timm tower's silent vision-transformer settings stay out."""
    return {field.name: getattr(tower, field.name) for field in fields(tower) if getattr(tower, field.name) is not None}


class DualEncoder(nn.Module):
    """Two towers whose embeddings of an image and its caption meet.

    Args:
        embed_dim: D, size of the shared embedding.
        vision: Image tower.
        text: Text tower.
        init_scale: Initial inverse temperature (1/0.07 for the softmax loss, 10 for the sigmoid loss).
        init_bias: Initial bias of the sigmoid loss (-10); None has no bias.
        image_mean: Per channel, in [0, 1].
        image_std: Per channel, in [0, 1].
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        embed_dim: int,
        vision: ImageTower,
        text: TextTower,
        init_scale: float = 1 / 0.07,
        init_bias: float | None = None,
        image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711),
    ) -> None:
        """See the class for the arguments."""
        super().__init__()
        self.embed_dim, self.vision, self.text = embed_dim, vision, text
        self.image_size, self.context_length = vision.image_size, text.context_length
        self.clip = CLIP(
            embed_dim,
            CLIPVisionCfg(**_differing(vision)),
            CLIPTextCfg(**_differing(text)),
            init_logit_scale=math.log(init_scale),
            init_logit_bias=init_bias,
        )
        # Convolutions run faster on interleaved channels (three times, for a small residual network on a CPU).
        self.clip.visual.to(memory_format=torch.channels_last)
        self.register_buffer("image_mean", torch.tensor(image_mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(image_std), persistent=False)

    def config(self) -> dict[str, object]:
        """The ``model_cfg`` of an open_clip_config.json that rebuilds these towers."""
        config: dict[str, object] = {
            "embed_dim": self.embed_dim,
            "vision_cfg": _differing(self.vision),
            "text_cfg": _differing(self.text),
            "init_logit_scale": self.clip.logit_scale.item(),
        }
        if self.clip.logit_bias is not None:
            config["init_logit_bias"] = self.clip.logit_bias.item()
        return config

    def settings(self) -> dict[str, object]:
        """Constructor arguments as plain values, for evidence."""
        return {"embed_dim": self.embed_dim, "vision": asdict(self.vision), "text": asdict(self.text)}

    def normalise(self, image: Tensor) -> Tensor:
        """Pixels to the towers' range: (B, 3, H, W) uint8 -> float."""
        if image.shape[-1] != self.image_size or image.shape[-2] != self.image_size:
            raise UserError(
                f"images are {image.shape[-1]} x {image.shape[-2]} pixels, the encoder wants {self.image_size}: "
                "set data.init_args.image.init_args.image_size"
            )
        scale, shift = 1 / (255 * self.image_std), self.image_mean / self.image_std
        # (image / 255 - mean) / std in two passes over the batch and one allocation, instead of four and four.
        return (image * scale[:, None, None]).sub_(shift[:, None, None])

    def encode_image(self, image: Tensor) -> Tensor:
        """Embed normalised images: (B, 3, H, W) -> (B, D) of unit length."""
        return self.clip.encode_image(image, normalize=True)

    def text_states(self, text: Tensor) -> Tensor:
        """Hidden states after the final layer norm: (B, L) int64 -> (B, L, E)."""
        length = text.shape[1]
        states = self.clip.token_embedding(text) + self.clip.positional_embedding[:length]
        mask = self.clip.attn_mask[:length, :length].to(states.dtype)
        return self.clip.ln_final(self.clip.transformer(states, attn_mask=mask))

    def encode_text(self, text: Tensor, text_length: Tensor) -> Tensor:
        """Embed captions: (B, L) int64 with text_length (B,) -> (B, D) of unit length.

        Captions go through the tower in groups of similar length, each as wide as its longest: a third less to compute
        with four groups. A GPU is better off with one large batch, and is not asked for the lengths, which would make
        it wait: there the columns of ``text`` are what is computed (``captions.cut_padding`` cuts them).
        """
        if text.device.type != "cpu":
            return F.normalize(self._last_state(text, text_length) @ self.clip.text_projection, dim=-1)
        order = text_length.argsort()
        pooled = torch.cat(
            [
                self._last_state(text[part, : int(text_length[part].max())], text_length[part])
                for part in order.chunk(LENGTH_GROUPS)
            ]
        )
        return F.normalize(pooled[order.argsort()] @ self.clip.text_projection, dim=-1)

    def _last_state(self, text: Tensor, text_length: Tensor) -> Tensor:
        """The state of each caption's last token, (B, E)."""
        states = self.text_states(text)
        return states[torch.arange(len(states), device=states.device), text_length - 1]

    @property
    def scale(self) -> Tensor:
        """The inverse temperature."""
        return self.clip.logit_scale.exp()

    @property
    def bias(self) -> Tensor | None:
        """The bias of the sigmoid loss, if there is one."""
        return self.clip.logit_bias
