"""Deferred masking (micro_diffusion, Sehwag et al. 2024, 2407.15811; MaskDiT, 2306.09305): most tokens are dropped.

model:
  init_args:
    techniques:
    - class_path: leam_mm.techniques.token_masking.TokenMasking
      init_args: {share: 0.75, mixing_blocks: 2, until_samples: 8000000}

The denoiser's first `mixing_blocks` blocks see all tokens, so that those which stay know something of the others; then
a random share is dropped for all further blocks, and the loss counts only what was seen. The last samples of a training
go without, as the papers' do, since masking shifts what the network expects.

Unlike the paper's, the mixer is no network of its own: it is made of the denoiser's own first blocks, at its full
width, so that nothing foreign is left in the release. And dropped tokens are not stood in for by a learned one, as in
MaskDiT; nothing is reconstructed.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor

from leam_mm.data.sample_order import sample_subset
from leam_mm.denoisers.block_step import BlockStep, Tokens
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.errors import UserError
from leam_mm.techniques.technique import Technique, TrainingStep


class TokenMasking(Technique):
    """Which tokens stay is a function of (seed, sample's number), so a sample's loss does not depend on its batch.

    Args:
        share: Of the tokens that are dropped, in [0, 1).
        mixing_blocks: How many of the first blocks see all tokens.
        until_samples: Samples from this number on are not masked; a batch that holds both kinds is not masked. None
            masks to the end.
    """

    def __init__(self, share: float = 0.75, mixing_blocks: int = 2, until_samples: int | None = None) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not 0 <= share < 1:
            raise UserError(f"TokenMasking: share is {share}, but it is a part of the tokens in [0, 1)")
        self.share, self.mixing_blocks, self.until_samples = share, mixing_blocks, until_samples
        self.seed, self.depth, self.patch_size = 0, 0, 1
        self._index: Tensor | None = None
        self._whole: tuple[Tokens, Tensor] | None = None
        self._seen: Tensor | None = None

    def attach(self, denoiser: Denoiser, seed: int) -> None:
        """Count the blocks."""
        if not 0 <= self.mixing_blocks < denoiser.depth:
            raise UserError(
                f"TokenMasking: mixing_blocks is {self.mixing_blocks}, but a {type(denoiser).__name__} of "
                f"{denoiser.depth} blocks in a row has at least one block less than that to mix with"
            )
        self.seed, self.depth, self.patch_size = seed, denoiser.depth, denoiser.patch_size

    def begin(self, step: TrainingStep) -> None:
        """Keep the samples' numbers where this batch is masked."""
        over = self.until_samples is not None and int(step.index.max()) >= self.until_samples
        self._index = None if over else step.index
        self._whole = self._seen = None

    def block_steps(self) -> list[BlockStep]:
        """Itself, where this batch is masked."""
        return [] if self._index is None else [self]

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        """Drop the tokens before the first block that does not see them."""
        size = tokens.values.shape[1]
        staying = max(1, size - round(self.share * size))
        if number != self.mixing_blocks or staying == size:
            return tokens
        assert self._index is not None
        kept = sample_subset(self.seed, self._index, "token_masking", size, staying).to(tokens.values.device)
        visible = tokens.keep(kept)
        assert visible.positions is not None
        height, width = tokens.grid
        ones = torch.ones_like(visible.positions, dtype=torch.float32)
        seen = ones.new_zeros(len(kept), height * width).scatter(1, visible.positions, ones)
        self._whole, self._seen = (tokens, kept), rearrange(seen, "B (h w) -> B h w", h=height)
        return visible

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        """Fill up after the last block, so that the output has its shape; what stands there is not counted."""
        if number != self.depth - 1 or self._whole is None:
            return tokens
        whole, kept = self._whole
        self._whole = None
        return tokens.join(whole, kept)

    def weigh(self, errors: Tensor, step: TrainingStep) -> Tensor:
        """Count the visible tokens alone, so that the mean over all becomes the mean over them."""
        if self._seen is None:
            return errors
        patch = self.patch_size
        seen = repeat(self._seen, "B h w -> B 1 (h p) (w q)", p=patch, q=patch)
        return errors * (seen / seen.mean((1, 2, 3), keepdim=True))
