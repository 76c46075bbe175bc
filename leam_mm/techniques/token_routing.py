"""Token routing (TREAD, Krause et al. 2025, 2501.04765): in training, part of the tokens passes by the middle blocks.

model:
  init_args:
    techniques:
    - class_path: leam_mm.techniques.token_routing.TokenRouting
      init_args: {share: 0.5, first: 1, last: -2}

A random share of the image tokens leaves after block `first` and joins the others again, unchanged, after block `last`.
In between attention runs over the rest and the caption, so a step costs less; all tokens reach the output, and the
loss counts all of them. Sampling and the released model run whole.
"""

from torch import Tensor

from leam_mm.data.sample_order import sample_subset
from leam_mm.denoisers.block_step import BlockStep, Tokens
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.errors import UserError
from leam_mm.techniques.technique import Technique, TrainingStep


class TokenRouting(Technique):
    """Which tokens leave is a function of (seed, sample's number), so a sample's loss does not depend on its batch.

    Args:
        share: Of the tokens that leave, in [0, 1); 0.5 in the paper.
        first: Number of the block after which they leave; negative numbers count from the last block, -1.
        last: Number of the block after which they are back.
    """

    def __init__(self, share: float = 0.5, first: int = 1, last: int = -2) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not 0 <= share < 1:
            raise UserError(f"TokenRouting: share is {share}, but it is a part of the tokens in [0, 1)")
        self.share, self.first, self.last = share, first, last
        self.seed = 0
        self._index: Tensor | None = None
        self._away: tuple[Tokens, Tensor] | None = None

    def attach(self, denoiser: Denoiser, seed: int) -> None:
        """Find the two blocks."""
        depth = denoiser.depth
        self.seed = seed
        self._leaving, self._back = (number + depth if number < 0 else number for number in (self.first, self.last))
        if not 0 <= self._leaving < self._back < depth:
            raise UserError(
                f"TokenRouting: tokens cannot leave after block {self.first} and be back after block {self.last} of a "
                f"{type(denoiser).__name__} with {depth} blocks in a row: choose first < last, from 0 to {depth - 1}"
            )

    def begin(self, step: TrainingStep) -> None:
        """Keep the samples' numbers."""
        self._index, self._away = step.index, None

    def block_steps(self) -> list[BlockStep]:
        """Itself."""
        return [self]

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        """Nothing happens before a block."""
        return tokens

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        """Take the tokens out after one block, put them back after the other."""
        if number == self._leaving:
            assert self._index is not None
            size = tokens.values.shape[1]
            staying = max(1, size - round(self.share * size))
            if staying < size:
                kept = sample_subset(self.seed, self._index, "token_routing", size, staying).to(tokens.values.device)
                self._away = tokens, kept
                return tokens.keep(kept)
        elif number == self._back and self._away is not None:
            whole, kept = self._away
            self._away = None
            return tokens.join(whole, kept)
        return tokens
