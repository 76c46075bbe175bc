"""A text tower that learns with the denoiser what it needs of captions (tau_theta of 2112.10752, section 3.3).

A contrastive loss asks which words a caption has; seldom does it ask which belongs to which, or what stands left of
what. Nor can a denoiser easily read out what a frozen tower never put in. This tower starts as the frozen one and is
trained on, averaged and saved with the denoiser; batches bring captions as texts, and stored states are not used.
"""

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, _build_text_tower
from torch import Tensor, nn

from leam_mm.captions.caption_encoder import CaptionEncoder, clean_caption
from leam_mm.checkpoint import load_module
from leam_mm.data.plan_datamodule import PlannedModule
from leam_mm.data.tokenizer import cut_padding
from leam_mm.encoders.dual_encoder import TextTower, tower_config
from leam_mm.encoders.text_forward import PackedReading, text_tower
from leam_mm.errors import UserError

if TYPE_CHECKING:
    from leam_mm.captions.frozen_parts import FrozenParts
    from leam_mm.data.tokenizer import Tokenizer
    from leam_mm.denoisers.denoiser import Denoiser

SIZES = ("context_length", "vocab_size", "width", "heads")


class CaptionTower(nn.Module):
    """A causal text tower of its own, with open_clip's names of weights.

    Args:
        text: Its sizes. All but the layers are those of the encoder that it starts from; layers beyond that
            encoder's stand above them, and hand on what they get until they have learnt something.
        weights: Run or checkpoint of a generator with such a tower, whose average it starts from; None starts from
            the encoder that model.init_args.clip names.
        trained: False keeps it as it is, for a generator that goes on from one whose tower was trained.
        rate: Its learning rates over those of the denoiser. Blocks of CLIP do not normalise queries and keys: at the
            rates that suit a PRX their attention grows hard.
    """

    def __init__(self, text: TextTower, weights: str | None = None, trained: bool = True, rate: float = 0.2) -> None:
        """See the class for the arguments."""
        super().__init__()
        if rate <= 0:
            raise UserError(f"model.init_args.caption_tower.rate is {rate}: give a number above 0, or trained: false")
        self.rate = rate
        self.settings, self.weights, self.reading = text, weights, PackedReading()
        self.text: Any = _build_text_tower(text.width, CLIPTextCfg(**tower_config(text)))
        self.text.text_projection = None  # makes an embedding, which no denoiser asks for
        self.requires_grad_(trained)
        self._empty: tuple[Tensor, ...] | None = None  # tokens of "", made once

    def begin(self, captions: Any) -> None:
        """Take over the weights that it starts from.

        Args:
            captions: The frozen encoder of the generator.
        """
        settings, theirs = self._from_encoder(captions) if self.weights is None else self._from_generator(self.weights)
        for name in (*SIZES, "layers"):
            before, now = getattr(settings, name), getattr(self.settings, name)
            if now != before and (name != "layers" or now < before):
                raise UserError(
                    f"model.init_args.caption_tower: text.{name} is {now}, that of {self.weights or 'the encoder'} is "
                    f"{before}: " + ("give at least as many" if name == "layers" else "write the same")
                )
        with torch.no_grad():
            self.text.positional_embedding.copy_(theirs.positional_embedding)
        for name in ("token_embedding", "ln_final"):
            getattr(self.text, name).load_state_dict(getattr(theirs, name).state_dict())
        blocks = self.text.transformer.resblocks
        for block, known in zip(blocks, theirs.transformer.resblocks, strict=False):
            block.load_state_dict(known.state_dict())
        for block in blocks[settings.layers :]:
            for last in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def _from_encoder(self, captions: Any) -> tuple[TextTower, Any]:
        encoder = captions.encoder if isinstance(captions, CaptionEncoder) else None
        if encoder is None or not isinstance(encoder.text, TextTower):
            raise UserError(
                "model.init_args.caption_tower starts from the text tower of one encoder of ours, and "
                "model.init_args.clip names another kind, or several: name a ContrastiveModule's run, or drop "
                "caption_tower"
            )
        config = encoder.config()
        told = {name: value for name, value in config["text_cfg"].items() if "tokenizer" not in name}
        if config.get("quick_gelu") or told != tower_config(encoder.text):
            raise UserError(
                "model.init_args.caption_tower is built from sizes alone; the text tower of model.init_args.clip has "
                "more to it (another activation, or another mask): name an encoder trained with a TextTower, or drop it"
            )
        return encoder.text, text_tower(encoder.plain_clip())

    def _from_generator(self, weights: str) -> tuple[TextTower, Any]:
        from leam_mm.diffusion_module import LatentDiffusionModule  # it imports this file

        tower = load_module(weights, LatentDiffusionModule).ema_denoiser().caption_tower
        if tower is None:
            raise UserError(f"{weights} has no caption tower: drop model.init_args.caption_tower.weights")
        return tower.settings, tower.text

    def rate_shares(self) -> dict[nn.Parameter, float]:
        """Share of the learning rate for each weight."""
        return dict.fromkeys(self.parameters(), self.rate)

    def forward(self, text: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """State (B, L, D) after the final layer norm, and mask (B, L) bool, of token ids (B, L) and lengths (B,)."""
        mask = torch.arange(text.shape[1], device=text.device) < length[:, None]
        return self.reading.states(self, text), mask

    def read(self, batch: dict[str, Any], dropped: Tensor, tokenizer: "Tokenizer") -> tuple[Tensor, Tensor]:
        """State and mask of the captions of a batch, "" in the place of those that are dropped.

        Args:
            batch: With ``prompt`` and ``prompt_length`` of read_in_workers, or with captions that are tokenized here.
            dropped: (B,) bool.
            tokenizer: Of the encoder that it starts from.
        """
        device, known = self.text.positional_embedding.device, "prompt" in batch
        told = (batch["prompt"], batch["prompt_length"]) if known else prompt_tokens(batch["caption"], tokenizer)
        if self._empty is None or self._empty[0].device != device:
            self._empty = tuple(part.to(device) for part in prompt_tokens([""], tokenizer))
        (text, length), (no_text, no_length) = [part.to(device) for part in told], self._empty
        columns = max(text.shape[1], no_text.shape[1])
        text, no_text = (F.pad(part, (0, columns - part.shape[1]), value=tokenizer.pad) for part in (text, no_text))
        dropped = dropped.to(device)
        return self(torch.where(dropped[:, None], no_text, text), torch.where(dropped, no_length, length))

    def as_encoder(self, captions: CaptionEncoder) -> CaptionEncoder:
        """The frozen encoder with this text tower in the place of its own: it draws and is released like any other."""
        encoder, clip = _other(captions.encoder), _other(captions.encoder.clip)
        for name in ("token_embedding", "transformer", "ln_final", "positional_embedding"):
            setattr(clip, name, getattr(self.text, name))
        encoder.clip, encoder.text = clip, self.settings
        encoder._config = encoder._config | {"text_cfg": tower_config(self.settings)}
        found = _other(captions)
        found.encoder = encoder
        return found


def prompt_tokens(captions: list[str], tokenizer: "Tokenizer") -> tuple[Tensor, Tensor]:
    """Token ids (B, l) of captions as the released pipeline would read them, and their lengths (B,)."""
    text, length = tokenizer.encode([clean_caption(caption) for caption in captions])
    return cut_padding(text, length), length


def read_in_workers(trainer: Any, captions: CaptionEncoder) -> None:
    """Let the loader's processes clean and tokenize captions: 0.2 ms each, which a GPU would have to wait for.

    Args:
        trainer: Its PlannedModule is told; batches from elsewhere are tokenized when they come.
        captions: The frozen encoder of the generator.
    """
    if isinstance(trainer.datamodule, PlannedModule):
        trainer.datamodule.decode.prompts = partial(prompt_tokens, tokenizer=captions.tokenizer)


def begin_tower(denoiser: "Denoiser", averages: "list[Denoiser]", frozen: "FrozenParts") -> None:
    """Begin the caption tower of a denoiser that has one, and refuse that one is missing.

    Args:
        denoiser: What is trained, before its first step.
        averages: Of it; their towers become the same.
        frozen: Where the encoder is opened.
    """
    tower = denoiser.caption_tower
    if tower is None:
        if denoiser.origin().get("caption_tower"):
            raise UserError(
                "the base of this training reads captions with a tower of its own: give model.init_args.caption_tower "
                "the base's text sizes and weights (python -m leam_mm.finetune_plan does)"
            )
        return
    tower.begin(frozen.caption_encoder(denoiser.context_dim))
    for average in averages:
        assert average.caption_tower is not None
        average.caption_tower.load_state_dict(tower.state_dict())


def _other(module: Any) -> Any:
    """Another module with the same parts, of which some may be put in its place."""
    other = copy.copy(module)
    for kind in ("_modules", "_parameters", "_buffers"):
        other.__dict__[kind] = dict(module.__dict__[kind])
    return other
