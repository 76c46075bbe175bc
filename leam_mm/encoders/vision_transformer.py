"""Tokens of open_clip's vision transformer: positions for any size of image, and tokens left out in training.

The weights, and the embeddings of whole images at the stored size, are open_clip's own. Positions for another size are
interpolated from the stored grid, as open_clip does when it loads weights at another size. Which tokens a sample loses
depends on the sample's number alone, so that no rank, part of a batch or restart changes it.
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from leam_mm.errors import UserError

# SplitMix64's constants (Steele et al. 2014) as signed numbers, for torch has no unsigned arithmetic.
GOLDEN, FIRST, SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def image_tokens(tower: VisionTransformer, image: Tensor, sample_index: Tensor | None, dropout: float) -> Tensor:
    """The input of the transformer: (B, 3, H, W) -> (B, 1 + tokens, E).

    Args:
        tower: Of open_clip.
        image: Normalised; H and W are multiples of the patch size.
        sample_index: (B,) number of each sample in the training, which says what it loses; None draws it anew from the
            global random numbers, as open_clip does.
        dropout: Share of tokens left out, in [0, 1).
    """
    kernels = tower.conv1(image)  # (B, E, h, w)
    tokens = kernels.flatten(2).transpose(1, 2)
    place = resize_positions(tower.positional_embedding, tower.grid_size, (kernels.shape[2], kernels.shape[3]))
    place = place.to(tokens.dtype)
    first = (tower.class_embedding.to(tokens.dtype) + place[0]).expand(len(tokens), 1, -1)
    tokens = tokens + place[1:]
    if dropout:
        index = torch.randint(1 << 62, (len(tokens),)).to(tokens.device) if sample_index is None else sample_index
        kept = kept_tokens(index, tokens.shape[1], dropout)
        tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
    return tower.ln_pre(torch.cat([first, tokens], dim=1))


def image_features(tower: VisionTransformer, image: Tensor, sample_index: Tensor | None, dropout: float) -> Tensor:
    """The tower's features of an image of any size: (B, 3, H, W) -> (B, D). Arguments as of `image_tokens`."""
    states = tower.transformer(image_tokens(tower, image, sample_index, dropout))
    return tower._pool(states)[0] @ tower.proj


@torch.no_grad()
def check_size(tower: nn.Module, size: int) -> None:
    """Refuse a size that a tower cannot take, before it comes up in the midst of a training."""
    if isinstance(tower, VisionTransformer):
        if size % tower.patch_size[0]:
            raise UserError(
                f"images of {size} x {size} pixels are no multiple of the patch size {tower.patch_size[0]}: "
                "choose other sizes in data.init_args.stages"
            )
        return
    modes = [layer for layer in tower.modules() if layer.training]
    weight = next(tower.parameters())
    try:
        tower.eval()(torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype))
    except Exception as error:  # each tower of timm raises its own
        raise UserError(
            f"{type(tower).__name__} cannot take images of {size} x {size} pixels ({str(error).splitlines()[:1]}): "
            "choose other sizes in data.init_args.stages"
        ) from None
    finally:
        for layer in modes:
            layer.training = True


def resize_positions(table: Tensor, stored: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Positions of another grid by bicubic interpolation; the class token's stays, and so do all for the stored grid.

    Args:
        table: (1 + h w, E).
        stored: h, w of the table.
        wanted: Of the image.
    """
    if stored == wanted:
        return table
    grid = table[1:].float().unflatten(0, stored).permute(2, 0, 1)[None]  # (1, E, h, w)
    grid = F.interpolate(grid, wanted, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])


def kept_tokens(sample_index: Tensor, tokens: int, dropout: float) -> Tensor:
    """Which tokens each sample keeps, in ascending order: (B,) int64 -> (B, kept) int64.

    As many as open_clip's PatchDropout keeps (FLIP, 2212.00794), chosen by a hash of sample and token.
    """
    number = torch.arange(tokens, device=sample_index.device)
    # A hash of the sample's hash and the token: of a plain sum, neighbouring samples would share numbers.
    rank = _hash(_hash(sample_index)[:, None] + number)
    return rank.argsort(dim=1)[:, : max(1, int(tokens * (1 - dropout)))].sort(dim=1).values


def _hash(value: Tensor) -> Tensor:
    """SplitMix64: spreads every bit of an int64 over the whole word."""
    mixed = value * GOLDEN
    mixed = (mixed ^ _shift(mixed, 30)) * FIRST
    mixed = (mixed ^ _shift(mixed, 27)) * SECOND
    return mixed ^ _shift(mixed, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, where torch would repeat the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
