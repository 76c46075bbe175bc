"""Deferred masking (micro_diffusion, Sehwag et al. 2024, 2407.15811; MaskDiT, 2306.09305): drops most tokens.

model:
  init_args:
    techniques:
    - class_path: leam_mm.techniques.token_masking.TokenMasking
      init_args: {share: 0.75, mixing_blocks: 2, until_samples: 8000000}

The denoiser's first `mixing_blocks` blocks see all tokens, so that the kept ones get information of the others. Then a
random share is dropped for all further blocks, and the loss counts the kept tokens only. The last samples of a run are
not masked, as in the papers, since masking shifts the network's predictions.

Unlike in the paper, the mixer is no separate network but the denoiser's first blocks at full width, so that a release
holds nothing else. Dropped tokens are not replaced by a learned one, as in MaskDiT, and nothing is reconstructed.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor

from leam_mm.data.random_stream import PhiloxStream, RandomStream
from leam_mm.denoisers.block_step import BlockStep, Tokens
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.errors import UserError
from leam_mm.techniques.technique import Technique, TrainingStep


class TokenMasking(Technique):
    """Drops tokens by a function of (seed, sample's number), so that a sample's loss does not depend on its batch.

    Args:
        share: Share of the tokens that are dropped, in [0, 1).
        mixing_blocks: Number of first blocks that see all tokens.
        until_samples: Samples from this number on are not masked, nor is a batch that holds one of them. None masks
            to the end.
    """

    def __init__(self, share: float = 0.75, mixing_blocks: int = 2, until_samples: int | None = None) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not 0 <= share < 1:
            raise UserError(f"TokenMasking: share is {share}: give a share in [0, 1)")
        self.share, self.mixing_blocks, self.until_samples = share, mixing_blocks, until_samples
        self.seed, self.depth, self.patch_size = 0, 0, 1
        self._index: Tensor | None = None
        self._stream: RandomStream = PhiloxStream()
        self._whole: tuple[Tokens, Tensor] | None = None
        self._seen: Tensor | None = None

    def attach(self, denoiser: Denoiser, seed: int) -> None:
        """Count the blocks."""
        if not 0 <= self.mixing_blocks < denoiser.depth:
            raise UserError(
                f"TokenMasking: mixing_blocks is {self.mixing_blocks}, but a {type(denoiser).__name__} has "
                f"{denoiser.depth} blocks in a row: choose fewer than that"
            )
        self.seed, self.depth, self.patch_size = seed, denoiser.depth, denoiser.patch_size

    def begin(self, step: TrainingStep) -> None:
        """Keep the samples' numbers if this batch is masked."""
        self._stream = step.stream
        over = self.until_samples is not None and int(step.index.max()) >= self.until_samples
        self._index = None if over else step.index
        self._whole = self._seen = None

    def block_steps(self) -> list[BlockStep]:
        """Return itself if this batch is masked."""
        return [] if self._index is None else [self]

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        """Drop tokens before the first masked block."""
        size = tokens.values.shape[1]
        count = max(1, size - round(self.share * size))
        if number != self.mixing_blocks or count == size:
            return tokens
        assert self._index is not None
        kept = self._stream.subset(self.seed, self._index, "token_masking", size, count).to(tokens.values.device)
        visible = tokens.keep(kept)
        assert visible.positions is not None
        height, width = tokens.grid
        ones = torch.ones_like(visible.positions, dtype=torch.float32)
        seen = ones.new_zeros(len(kept), height * width).scatter(1, visible.positions, ones)
        self._whole, self._seen = (tokens, kept), rearrange(seen, "B (h w) -> B h w", h=height)
        return visible

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        """Restore the number of tokens after the last block; the dropped ones do not count in the loss."""
        if number != self.depth - 1 or self._whole is None:
            return tokens
        whole, kept = self._whole
        self._whole = None
        return tokens.join(whole, kept)

    def weigh(self, errors: Tensor, step: TrainingStep) -> Tensor:
        """Turn the mean over all tokens into the mean over the visible ones."""
        if self._seen is None:
            return errors
        patch = self.patch_size
        seen = repeat(self._seen, "B h w -> B 1 (h p) (w q)", p=patch, q=patch)
        return errors * (seen / seen.mean((1, 2, 3), keepdim=True))
