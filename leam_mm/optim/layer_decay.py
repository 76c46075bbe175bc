"""Layer-wise learning rates: the deeper a layer lies below the output, the smaller its steps (BEiT, 2106.08254).

For fine-tuning a trained encoder, whose early layers need little change.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from leam_mm.encoders.repeated_blocks import repeated_blocks
from leam_mm.errors import UserError

RATE_SHARE = "rate_share"  # the key of a group whose rate is that share of the recipe's
# In names of what stands before the blocks.
STEMS = (
    "embed",
    "cls_token",
    "conv1",
    "bn1",
    "stem",
    "ln_pre",
    "norm_pre",
)


@dataclass(frozen=True)
class LayerDecay:
    """Factor from a block to the one below it, in each tower.

    Args:
        image: In (0, 1]; 1 gives all layers the same rate.
        text: Likewise.
    """

    image: float = 1.0
    text: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in (("image", self.image), ("text", self.text)):
            if not 0 < value <= 1:
                raise UserError(f"model.init_args.layer_decay.{name} is {value}: it lies in (0, 1]")


def rate_shares(module: nn.Module, decay: LayerDecay) -> dict[nn.Parameter, float]:
    """Share of the learning rate for each weight.

    With n blocks in a tower, what follows them has share 1, block i (from 0) decay^(n - i), and what stands before them
    decay^(n + 1).

    Args:
        module: Two towers; all of that for images has ``visual`` in its name.
        decay: Of each tower.
    """
    names = {block: name for name, block in module.named_modules()}
    numbers: dict[str, int] = {}  # of each block in its tower
    depth = {True: 0, False: 0}
    for block in repeated_blocks(module):
        name = names[block]
        numbers[name] = depth[_is_image(name)]
        depth[_is_image(name)] += 1
    if not numbers:
        raise UserError("layer_decay: the network has no repeated blocks, and so no depth; leave it out")
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
    """Groups of equal share within each of the given groups, the largest share first; other settings are kept."""
    return [
        {**group, "params": [weight for weight in group["params"] if shares[weight] == share], RATE_SHARE: share}
        for group in groups
        for share in sorted({shares[weight] for weight in group["params"]}, reverse=True)
    ]


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply the rate of each group by its share; once, before a schedule takes it for its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group.get(RATE_SHARE, 1.0)
