"""Errors of communication between ranks: which ones mean that another rank is gone, or was never met."""

import re

import torch.distributed as dist

# Texts of gloo, NCCL, RCCL and torch's stores, which mostly come as a plain RuntimeError.
LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed out|collective|process ?group|heartbeat",
    re.IGNORECASE,
)


def lost_connection(error: BaseException | None) -> bool:
    """Return whether an exception comes from a collective that another rank may have broken."""
    while error is not None:
        if isinstance(error, dist.DistError):
            return True
        if isinstance(error, RuntimeError) and LOST.search(str(error)[:2000]):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
