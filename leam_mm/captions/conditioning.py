"""How a generator reads the captions of a batch: one object for training, validation and sampling.

Caption states come from one of four sources:

- stored states (``caption_state`` of a latent shard),
- the frozen text encoder, if a batch brings texts alone,
- the caption tower that is trained with the denoiser, on texts tokenized here,
- the same tower on tokens that loader workers made (``prompt`` of a batch).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leam_mm.captions.caption_encoder import Caption, CaptionEncoder, caption_tokens
from leam_mm.captions.caption_tower import CaptionTower
from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.data.caption_states import fit_length
from leam_mm.data.plan_datamodule import PlannedModule
from leam_mm.data.random_stream import PhiloxStream, RandomStream
from leam_mm.errors import UserError


class CaptionReader(Protocol):
    """The part of a denoiser that conditioning needs; denoisers/denoiser.py has the class."""

    context_dim: int
    caption_tower: CaptionTower | None

    def origin(self) -> dict[str, Any]:
        """Return what the denoiser started from."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights."""


class Conditioning:
    """Reads captions, drops some of them in training, and knows the empty caption.

    Args:
        frozen: Opens the frozen text encoder.
        denoiser: The trained network; its caption tower, if it has one, reads the captions in training.
        averages: Averages of the denoiser; the tower of the first one reads captions in validation and sampling.
        seed: With a sample's number it decides whether the caption is dropped.
        dropout: Share of samples that see the empty caption, for classifier-free guidance (0.1 in 2207.12598).
    """

    def __init__(
        self, frozen: FrozenParts, denoiser: CaptionReader, averages: Sequence[CaptionReader], seed: int, dropout: float
    ) -> None:
        """See the class for the arguments."""
        self.frozen, self.denoiser, self.averages = frozen, denoiser, averages
        self.seed, self.dropout = seed, dropout
        self.stream: RandomStream = PhiloxStream()  # a resumed run may have another
        self._empty: Caption | None = None
        self._empty_tokens: Caption | None = None

    @property
    def device(self) -> torch.device:
        """Device of the denoiser, to which captions are moved."""
        return next(self.denoiser.parameters()).device

    def encoder(self) -> CaptionEncoder:
        """Return the text encoder for sampling: the frozen one, or one with the average of the trained tower."""
        frozen = self._frozen_encoder()
        tower = (*self.averages, self.denoiser)[0].caption_tower
        return (frozen if tower is None else tower.as_encoder(frozen)).to(self.device)

    def start(self, new_run: bool) -> None:
        """Fail before the first training step if a text encoder or a caption tower is missing.

        Args:
            new_run: Initialise the caption tower; otherwise its weights came from a checkpoint.
        """
        if new_run:
            self.start_tower()
        if self.dropout > 0:
            self.empty()

    def tokenize_in_workers(self, datamodule: object) -> None:
        """Let loader workers tokenize captions for the tower: 0.2 ms each, for which a GPU would have to wait.

        Args:
            datamodule: If it is no PlannedModule, captions are tokenized when they are read.
        """
        if isinstance(datamodule, PlannedModule):
            datamodule.decode.prompts = partial(caption_tokens, tokenizer=self._frozen_encoder().tokenizer)

    def start_tower(self) -> None:
        """Initialise the caption tower and its averages, or check that none is needed; see CaptionTower.start."""
        tower = self.denoiser.caption_tower
        if tower is not None:
            tower.start(self._frozen_encoder())
            for average in self.averages:
                assert average.caption_tower is not None
                average.caption_tower.load_state_dict(tower.state_dict())
        elif self.denoiser.origin().get("caption_tower"):
            raise UserError(
                "the base of this run reads captions with a caption tower: give model.init_args.caption_tower the "
                "base's text sizes and weights (python -m leam_mm.finetune_plan does)"
            )

    def _frozen_encoder(self) -> CaptionEncoder:
        return self.frozen.caption_encoder(self.denoiser.context_dim)

    def read(self, batch: dict[str, Any], learning: bool = False) -> Caption:
        """Return the captions of a batch as the denoiser takes them.

        Args:
            batch: With ``sample_index`` (B,), and ``caption_state`` (B, L, D) with ``caption_length`` (B,),
                ``caption`` (B texts), or ``prompt`` (B, L) with ``prompt_length`` (B,).
            learning: Read for a training step: with the trained tower, and with dropped captions.

        Returns:
            state (B, L, D) and mask (B, L) bool, True at real tokens.
        """
        tower = self.denoiser.caption_tower
        if tower is not None and learning:
            return self._read_with_tower(tower, batch)
        if tower is None and "caption_state" in batch:
            state = batch["caption_state"]
            caption = state, torch.arange(state.shape[1], device=state.device) < batch["caption_length"][:, None]
        else:
            caption = self.encoder().encode(batch["caption"])
        if caption[0].shape[-1] != self.denoiser.context_dim:
            raise UserError(
                f"caption states have {caption[0].shape[-1]} channels, the denoiser expects "
                f"{self.denoiser.context_dim}: set model.init_args.denoiser.init_args.context_dim"
            )
        return self.drop(caption, batch["sample_index"]) if learning else caption

    def empty(self) -> Caption:
        """Return state (1, L, D) and mask (1, L) of "", the negative prompt of the released pipeline."""
        if self._empty is None or self.denoiser.caption_tower is not None:  # a trained tower changes its states
            self._empty = self.encoder().encode([""])
        state, mask = self._empty
        self._empty = state.to(self.device), mask.to(self.device)
        return self._empty

    def drop(self, caption: Caption, index: Tensor) -> Caption:
        """Replace the captions of some samples by the empty one.

        Args:
            caption: state (B, L, D) and mask (B, L).
            index: (B,) int64, the samples' numbers.
        """
        if self.dropout <= 0:
            return caption
        dropped, empty = self._dropped(index, caption[0].device), self.empty()
        # All captions of a batch may be shorter than the empty one: several encoders each add begin and end tokens.
        length = max(caption[0].shape[1], int(empty[1].sum()))
        state, mask, empty_state, empty_mask = (fit_length(part, length) for part in (*caption, *empty))
        state = torch.where(dropped[:, None, None], empty_state.to(state.dtype), state)
        return state, torch.where(dropped[:, None], empty_mask, mask)

    def _dropped(self, index: Tensor, device: torch.device) -> Tensor:
        """Return which samples (B,) see the empty caption."""
        return self.stream.uniform(self.seed, index, "caption_dropout").to(device) < self.dropout

    def _read_with_tower(self, tower: CaptionTower, batch: dict[str, Any]) -> Caption:
        tokenizer, device = self._frozen_encoder().tokenizer, self.device
        if "prompt" in batch:
            tokens = batch["prompt"], batch["prompt_length"]
        else:
            tokens = caption_tokens(batch["caption"], tokenizer)
        empty_text, empty_length = self._empty_tokens or caption_tokens([""], tokenizer)
        self._empty_tokens = empty_text, empty_length = empty_text.to(device), empty_length.to(device)
        text, length = (part.to(device) for part in tokens)
        columns = max(text.shape[1], empty_text.shape[1])
        text, empty_text = (
            F.pad(part, (0, columns - part.shape[1]), value=tokenizer.pad) for part in (text, empty_text)
        )
        dropped = self._dropped(batch["sample_index"], device)
        return tower(torch.where(dropped[:, None], empty_text, text), torch.where(dropped, empty_length, length))
