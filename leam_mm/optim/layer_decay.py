"""Layer-wise learning-rate decay for fine-tuning: lower layers get smaller rates (BEiT, 2106.08254)."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from leam_mm.encoders.repeated_blocks import repeated_blocks
from leam_mm.errors import UserError

RATE_SHARE = "rate_share"  # key of a group; its rate is this share of the recipe's
# Parts of the names of layers before the blocks.
STEMS = ("embed", "cls_token", "conv1", "bn1", "stem", "ln_pre", "norm_pre")


@dataclass(frozen=True)
class LayerDecay:
    """Factor of the learning rate from a block to the one below it.

    Args:
        image: Factor in the image tower, in (0, 1]; 1 gives all layers the same rate.
        text: Factor in the text tower, in (0, 1].
    """

    image: float = 1.0
    text: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in (("image", self.image), ("text", self.text)):
            if not 0 < value <= 1:
                raise UserError(f"model.init_args.layer_decay.{name} is {value}, but must be in (0, 1]")


def rate_shares(module: nn.Module, decay: LayerDecay) -> dict[nn.Parameter, float]:
    """Return each weight's share of the learning rate.

    In a tower of n blocks, block i (from 0) has the share decay^(n - i), layers after the blocks 1, and layers before
    them decay^(n + 1).

    Args:
        module: Two towers; names in the image tower contain ``visual``.
        decay: Factors of both towers.
    """
    names = {block: name for name, block in module.named_modules()}
    numbers: dict[str, int] = {}  # block -> its number in its tower
    depth = {True: 0, False: 0}
    for block in repeated_blocks(module):
        name = names[block]
        numbers[name] = depth[_is_image(name)]
        depth[_is_image(name)] += 1
    if not numbers:
        raise UserError("model.init_args.layer_decay: the network has no repeated blocks; remove layer_decay")
    shares = {}
    for name, weight in module.named_parameters():
        parts, blocks = name.split("."), depth[_is_image(name)]
        above = (".".join(parts[:end]) for end in range(1, len(parts)))
        number = next((numbers[prefix] for prefix in above if prefix in numbers), None)
        if number is not None:
            below = blocks - number
        else:
            below = blocks + 1 if any(word in part for word in STEMS for part in parts) else 0
        shares[weight] = (decay.image if _is_image(name) else decay.text) ** below
    return shares


def _is_image(name: str) -> bool:
    return "visual" in name.split(".")


def split_by_share(groups: list[dict[str, Any]], shares: dict[nn.Parameter, float]) -> list[dict[str, Any]]:
    """Split each group into groups of equal share, the largest share first; other settings stay."""
    return [
        {**group, "params": [weight for weight in group["params"] if shares[weight] == share], RATE_SHARE: share}
        for group in groups
        for share in sorted({shares[weight] for weight in group["params"]}, reverse=True)
    ]


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply each group's rate by its share. Call it once, before a schedule reads the base rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group.get(RATE_SHARE, 1.0)
