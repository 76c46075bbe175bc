"""The members of a latent sample, and how training reads them.

``latent.npy`` (C, h, w): normalised latent; for a variational codec the mean of the posterior.
``latent_log_variance.npy`` (C, h, w), optional: log-variance of the posterior in the same unit.
``caption_state.npy`` (K, L, D), ``caption_state_1.npy``, ...: one per text encoder, zero beyond each caption's end;
none if captions are stored as texts only.
``image_feature.npy`` (N, D), optional: patch tokens of an image encoder, row by row of the grid given in the json.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from leam_mm.data.array_format import read_array
from leam_mm.data.caption_states import pack_states
from leam_mm.data.sample_order import sample_generator
from leam_mm.errors import UserError

LATENT, LOG_VARIANCE, FEATURE = "latent.npy", "latent_log_variance.npy", "image_feature.npy"
MAX_LOG_VARIANCE = 50.0  # far beyond diffusers' clamp; hostile values must not become infinite


def state_member(encoder: int) -> str:
    """Return the name of the member with the states of a text encoder, given its number."""
    return f"caption_state_{encoder}.npy" if encoder else "caption_state.npy"


def has_texts_only(members: dict[str, bytes], captions: list[dict[str, Any]]) -> bool:
    """Return whether a sample has no states of its captions, and none of them states a length."""
    return state_member(0) not in members and not any("length" in one or "lengths" in one for one in captions)


def read_latent(members: dict[str, bytes], seed: int, index: int) -> Tensor:
    """Return the latent (C, h, w) float32: as stored, or with a log-variance a draw that depends on (seed, index)."""
    latent = read_array(members, LATENT).astype(np.float32)
    if LOG_VARIANCE in members:
        log_variance = np.minimum(read_array(members, LOG_VARIANCE).astype(np.float32), MAX_LOG_VARIANCE)
        if log_variance.shape != latent.shape:
            raise UserError(f"{LOG_VARIANCE} is {log_variance.shape}, {LATENT} {latent.shape}: encode the folder again")
        noise = sample_generator(seed, index, "posterior").standard_normal(latent.shape, dtype=np.float32)
        latent += np.exp(0.5 * log_variance) * noise
    return torch.from_numpy(latent)


def read_caption_state(members: dict[str, bytes], caption: dict[str, Any], number: int) -> Tensor:
    """Return the real tokens (L, D) float32 of one caption from all text encoders; see caption_states.py.

    Args:
        members: Members of the sample.
        caption: Its entry in ``caption_states``: ``length``, or ``lengths`` with several encoders.
        number: Position of that entry.
    """
    lengths = caption.get("lengths", [caption.get("length")])
    if not isinstance(lengths, list) or not lengths or not all(type(n) is int and n >= 0 for n in lengths):
        raise UserError(f"its caption_states has the length {str(lengths)[:80]}: encode the folder again")
    states = []
    for encoder, length in enumerate(lengths):
        array = read_array(members, state_member(encoder))
        if array.ndim != 3 or not number < array.shape[0] or length > array.shape[1]:
            raise UserError(
                f"{state_member(encoder)} is {array.shape} and holds no caption {number} of {length} tokens: "
                "encode the folder again"
            )
        states.append(torch.from_numpy(array[number, :length].astype(np.float32)))
    return pack_states(states)


def read_feature(members: dict[str, bytes]) -> dict[str, Tensor]:
    """Return ``image_feature`` (N, D) float32, if the sample has one."""
    if FEATURE not in members:
        return {}
    return {"image_feature": torch.from_numpy(read_array(members, FEATURE).astype(np.float32))}
