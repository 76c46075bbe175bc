"""What flows between the blocks of a transformer, and what may look at it or change it there."""

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
        rotary: (B or 1, 1, N, ...), the rotation of each token's place; it must be cut wherever the values are. None
            where the values carry their places themselves.
        grid: (h, w) of the whole picture in tokens.
        places: (B, N) int64, where in the picture, row by row, each token stands; None where all tokens are here, in
            order.
    """

    values: Tensor
    rotary: Tensor | None
    grid: tuple[int, int]
    places: Tensor | None = None

    def keep(self, kept: Tensor) -> "Tokens":
        """Return some of these tokens alone.

        Args:
            kept: (B, n) int64, positions in the present row.
        """
        batch = torch.arange(len(kept), device=kept.device)[:, None]
        rotary = self.rotary
        if rotary is not None:
            rotary = rotary.expand(len(kept), *rotary.shape[1:])[batch, 0, kept][:, None]
        places = kept if self.places is None else self.places[batch, kept]
        return Tokens(self.values[batch, kept], rotary, self.grid, places)

    def join(self, whole: "Tokens", kept: Tensor) -> "Tokens":
        """Put these tokens back to where they were taken from; the others stand there as they were.

        Args:
            whole: What `keep` was called on.
            kept: What it was called with.
        """
        if self.values.shape[1] != kept.shape[1]:
            raise UserError(
                f"{self.values.shape[1]} tokens come back where {kept.shape[1]} went: two techniques leave out tokens, "
                "and the blocks of the one begin inside those of the other but end outside; nest them"
            )
        places = kept[..., None].expand_as(self.values)
        # Autocast may answer in a wider type than it was asked in.
        base = whole.values.to(torch.promote_types(whole.values.dtype, self.values.dtype))
        return replace(whole, values=base.scatter(1, places, self.values.to(base.dtype)))


class BlockStep(Protocol):
    """Something that looks at the tokens between two blocks, or changes them; see techniques/technique.py."""

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        """Return what block ``number`` gets, before it runs."""

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        """Return what follows block ``number``, after it ran."""


def walk_blocks(
    blocks: Iterable[nn.Module],
    tokens: Tokens,
    steps: Sequence[BlockStep],
    run: Callable[[nn.Module, Tokens], Tensor],
) -> Tokens:
    """Send the tokens through a row of blocks, with the steps around each of them.

    Args:
        blocks: In their order.
        tokens: What the first one gets.
        steps: Called before and after each block, in this order.
        run: One block on the tokens -> their new values (B, N, E).
    """
    for number, block in enumerate(blocks):
        for step in steps:
            tokens = step.enter(number, tokens)
        tokens = replace(tokens, values=run(block, tokens))
        for step in steps:
            tokens = step.leave(number, tokens)
    return tokens
