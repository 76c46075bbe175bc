"""Repeated blocks of a network, the units of layer decay, Muon, sharding and compilation."""

from torch import nn


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the members of the outermost ModuleList and Sequential modules that have submodules.

    These are the blocks of a transformer or the stages of a convolutional network. Embeddings are not included, nor are
    the single layers in the Sequential of a stem or head.
    """
    found: list[nn.Module] = []
    for child in module.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        blocks = [member for member in members if next(member.children(), None) is not None]
        found += blocks if blocks else repeated_blocks(child)
    return found
