"""A text tower that is trained with the denoiser to encode captions (tau_theta of 2112.10752, section 3.3).

A contrastive loss mostly asks which words a caption has, and seldom which word belongs to which or stands left of
which; a denoiser cannot read from a frozen tower what it does not encode. This tower starts as a copy of the frozen
one and is trained, averaged and saved with the denoiser. Batches bring captions as texts; stored states are not used.
"""

import copy
from typing import Any

import torch
from open_clip.model import CLIPTextCfg, _build_text_tower
from torch import Tensor, nn

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.checkpoint import load_part
from leam_mm.encoders.dual_encoder import TextTower, tower_config
from leam_mm.encoders.text_forward import PackedForward, text_tower
from leam_mm.errors import UserError

SIZES = ("context_length", "vocab_size", "width", "heads")


class CaptionTower(nn.Module):
    """A causal text tower whose weights have open_clip's names.

    Args:
        text: Sizes of the tower, equal to those of the encoder that it starts from. It may have more layers: they
            come last, and start as the identity.
        weights: Run or checkpoint of a generator with such a tower, whose average it starts from; None starts from
            the encoder that model.init_args.frozen.clip names.
        trained: False freezes it, for a generator that starts from one whose tower was trained.
        rate: Learning rate relative to that of the denoiser. Blocks of CLIP do not normalise queries and keys: at the
            rates that suit a PRX their attention saturates.
    """

    def __init__(self, text: TextTower, weights: str | None = None, trained: bool = True, rate: float = 0.2) -> None:
        """See the class for the arguments."""
        super().__init__()
        if rate <= 0:
            raise UserError(f"model.init_args.caption_tower.rate is {rate}: give a number above 0, or trained: false")
        self.rate = rate
        self.settings, self.weights, self.reading = text, weights, PackedForward()
        self.text: Any = _build_text_tower(text.width, CLIPTextCfg(**tower_config(text)))
        self.text.text_projection = None  # it makes an embedding, which a denoiser does not need
        self.requires_grad_(trained)

    def start(self, captions: Any) -> None:
        """Copy the weights that the tower starts from.

        Args:
            captions: The frozen caption encoder of the generator.
        """
        settings, source = self._from_encoder(captions) if self.weights is None else self._from_generator(self.weights)
        for name in (*SIZES, "layers"):
            expected, found = getattr(settings, name), getattr(self.settings, name)
            if found != expected and (name != "layers" or found < expected):
                raise UserError(
                    f"model.init_args.caption_tower: text.{name} is {found}, that of {self.weights or 'the encoder'} "
                    f"is {expected}: " + ("give at least as many" if name == "layers" else "write the same")
                )
        with torch.no_grad():
            self.text.positional_embedding.copy_(source.positional_embedding)
        for name in ("token_embedding", "ln_final"):
            getattr(self.text, name).load_state_dict(getattr(source, name).state_dict())
        blocks = self.text.transformer.resblocks
        for block, source_block in zip(blocks, source.transformer.resblocks, strict=False):
            block.load_state_dict(source_block.state_dict())
        for block in blocks[settings.layers :]:
            for last in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def _from_encoder(self, captions: Any) -> tuple[TextTower, Any]:
        encoder = captions.encoder if isinstance(captions, CaptionEncoder) else None
        if encoder is None or not isinstance(encoder.text, TextTower):
            raise UserError(
                "model.init_args.caption_tower starts from the text tower of one of our encoders, and "
                "model.init_args.frozen.clip names another kind, or several: name a ContrastiveModule's run, or drop "
                "caption_tower"
            )
        config = encoder.config()
        sizes = {name: value for name, value in config["text_cfg"].items() if "tokenizer" not in name}
        if config.get("quick_gelu") or sizes != tower_config(encoder.text):
            raise UserError(
                "model.init_args.caption_tower is built from sizes alone, but the text tower of "
                "model.init_args.frozen.clip has another activation or another mask: name an encoder trained with a "
                "TextTower, or drop caption_tower"
            )
        return encoder.text, text_tower(encoder.plain_clip())

    def _from_generator(self, weights: str) -> tuple[TextTower, Any]:
        tower = load_part(weights, "ema_denoiser").caption_tower
        if tower is None:
            raise UserError(f"{weights} has no caption tower: drop model.init_args.caption_tower.weights")
        return tower.settings, tower.text

    def rate_shares(self) -> dict[nn.Parameter, float]:
        """Return the learning rate of each weight relative to that of the denoiser."""
        return dict.fromkeys(self.parameters(), self.rate)

    def forward(self, text: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Encode tokens.

        Args:
            text: (B, L) int64, token ids.
            length: (B,) int64, number of real tokens.

        Returns:
            state (B, L, D) after the final layer norm, and mask (B, L) bool, True at real tokens.
        """
        mask = torch.arange(text.shape[1], device=text.device) < length[:, None]
        return self.reading.states(self, text), mask

    def as_encoder(self, captions: CaptionEncoder) -> CaptionEncoder:
        """Return the frozen encoder with its text tower replaced by this one, for sampling and release."""
        encoder, clip = _shallow_copy(captions.encoder), _shallow_copy(captions.encoder.clip)
        for name in ("token_embedding", "transformer", "ln_final", "positional_embedding"):
            setattr(clip, name, getattr(self.text, name))
        encoder.clip, encoder.text = clip, self.settings
        encoder._config = encoder._config | {"text_cfg": tower_config(self.settings)}
        copied = _shallow_copy(captions)
        copied.encoder = encoder
        return copied


def _shallow_copy(module: Any) -> Any:
    """Return another module with the same parts, which can be replaced without changing the original."""
    copied = copy.copy(module)
    for kind in ("_modules", "_parameters", "_buffers"):
        copied.__dict__[kind] = dict(module.__dict__[kind])
    return copied
