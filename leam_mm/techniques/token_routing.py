"""Token routing (TREAD, Krause et al. 2025, 2501.04765): in training, some tokens skip the middle blocks.

model:
  init_args:
    techniques:
    - class_path: leam_mm.techniques.token_routing.TokenRouting
      init_args: {share: 0.5, first: 1, last: -2}

A random share of the image tokens is taken out after block `first` and put back, unchanged, after block `last`. In
between, attention runs over the rest and the caption, which makes a step cheaper. The loss counts all tokens. Sampling
and the released model use all tokens in all blocks.
"""

from torch import Tensor

from leam_mm.data.random_stream import PhiloxStream, RandomStream
from leam_mm.denoisers.block_step import BlockStep, Tokens
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.errors import UserError
from leam_mm.techniques.technique import Technique, TrainingStep


class TokenRouting(Technique):
    """Routes tokens by a function of (seed, sample's number), so that a sample's loss does not depend on its batch.

    Args:
        share: Share of the tokens that skip blocks, in [0, 1); 0.5 in the paper.
        first: Number of the block after which they are taken out; negative numbers count from the last block, -1.
        last: Number of the block after which they are put back.
    """

    def __init__(self, share: float = 0.5, first: int = 1, last: int = -2) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not 0 <= share < 1:
            raise UserError(f"TokenRouting: share is {share}: give a share in [0, 1)")
        self.share, self.first, self.last = share, first, last
        self.seed = 0
        self._index: Tensor | None = None
        self._stream: RandomStream = PhiloxStream()
        self._away: tuple[Tokens, Tensor] | None = None

    def attach(self, denoiser: Denoiser, seed: int) -> None:
        """Find the two blocks."""
        depth = denoiser.depth
        self.seed = seed
        self._leaving, self._back = (number + depth if number < 0 else number for number in (self.first, self.last))
        if not 0 <= self._leaving < self._back < depth:
            raise UserError(
                f"TokenRouting: tokens cannot skip from block {self.first} to block {self.last} of a "
                f"{type(denoiser).__name__} with {depth} blocks in a row: choose first < last, from 0 to {depth - 1}"
            )

    def begin(self, step: TrainingStep) -> None:
        """Keep the samples' numbers."""
        self._index, self._stream, self._away = step.index, step.stream, None

    def block_steps(self) -> list[BlockStep]:
        """Return itself."""
        return [self]

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        """Return the tokens unchanged."""
        return tokens

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        """Take tokens out after one block, and put them back after the other."""
        if number == self._leaving:
            assert self._index is not None
            size = tokens.values.shape[1]
            count = max(1, size - round(self.share * size))
            if count < size:
                kept = self._stream.subset(self.seed, self._index, "token_routing", size, count)
                kept = kept.to(tokens.values.device)
                self._away = tokens, kept
                return tokens.keep(kept)
        elif number == self._back and self._away is not None:
            whole, kept = self._away
            self._away = None
            return tokens.join(whole, kept)
        return tokens
