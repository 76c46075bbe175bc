"""Tokens between the blocks of a transformer, and steps that look at them or change them there."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from leam_mm.errors import UserError


@dataclass
class Tokens:
    """The image tokens between two blocks.

    Args:
        values: (B, N, E), the image tokens.
        rotary: (B or 1, 1, N, ...), the rotation of each token by its position, selected along with the values; None
            if the values carry their positions themselves.
        grid: (h, w) of the whole image in tokens.
        positions: (B, N) int64, the number of each token in the whole image, row by row; None if all tokens are
            present, in order.
    """

    values: Tensor
    rotary: Tensor | None
    grid: tuple[int, int]
    positions: Tensor | None = None

    def keep(self, kept: Tensor) -> "Tokens":
        """Return some of these tokens.

        Args:
            kept: (B, n) int64, indices into the N tokens.
        """
        batch = torch.arange(len(kept), device=kept.device)[:, None]
        rotary = self.rotary
        if rotary is not None:
            rotary = rotary.expand(len(kept), *rotary.shape[1:])[batch, 0, kept][:, None]
        positions = kept if self.positions is None else self.positions[batch, kept]
        return Tokens(self.values[batch, kept], rotary, self.grid, positions)

    def join(self, whole: "Tokens", kept: Tensor) -> "Tokens":
        """Put these tokens back where they were taken from; the others keep their values.

        Args:
            whole: The tokens on which `keep` was called.
            kept: The argument of that call.
        """
        if self.values.shape[1] != kept.shape[1]:
            raise UserError(
                f"{self.values.shape[1]} tokens come back where {kept.shape[1]} were taken: two techniques leave out "
                "tokens, and the blocks of one begin inside those of the other but end outside; nest them"
            )
        index = kept[..., None].expand_as(self.values)
        # Under autocast a block may return a wider type than it was given.
        base = whole.values.to(torch.promote_types(whole.values.dtype, self.values.dtype))
        return replace(whole, values=base.scatter(1, index, self.values.to(base.dtype)))


class BlockStep(Protocol):
    """Looks at the tokens between two blocks, or changes them; see techniques/technique.py."""

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        """Return the input of block ``number``."""

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        """Return what replaces the output of block ``number``."""


def run_blocks(
    blocks: Iterable[nn.Module],
    tokens: Tokens,
    steps: Sequence[BlockStep],
    run: Callable[[nn.Module, Tokens], Tensor],
) -> Tokens:
    """Run blocks one after another, with steps before and after each of them.

    Args:
        blocks: In their order.
        tokens: Input of the first block.
        steps: Called before and after each block, in this order.
        run: Runs one block on the tokens and returns their new values (B, N, E).
    """
    for number, block in enumerate(blocks):
        for step in steps:
            tokens = step.enter(number, tokens)
        tokens = replace(tokens, values=run(block, tokens))
        for step in steps:
            tokens = step.leave(number, tokens)
    return tokens
