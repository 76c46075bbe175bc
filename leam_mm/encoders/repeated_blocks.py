"""The repeated blocks of a network: what optimizers, sharding and compilation treat one by one."""

from torch import nn


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists or sequences of modules that have layers of their own.

    So the blocks of a transformer and the stages of a convolutional network; not the layers of a stem or a head, which
    stand in a sequence too, and not embeddings.
    """
    found: list[nn.Module] = []
    for child in module.children():
        members = list(child.children()) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        blocks = [member for member in members if next(member.children(), None) is not None]
        found += blocks if blocks else repeated_blocks(child)
    return found
