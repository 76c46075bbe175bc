"""Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random numbers without state.

A block of four 32-bit words is a function of a key and a counter. The key names what the numbers are for, the counter
the sample and the position: word w of sample n is word w mod 4 of block n * BLOCKS + w // 4. So all samples of a batch
are drawn at once, on any device, and the numbers of a sample depend on no other sample. The bits are the same
everywhere; what is computed from them with logarithm, sine and cosine is the same to the rounding of these.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leam_mm.errors import UserError

ROUNDS, MULTIPLIERS, KEY_STEPS = 10, (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
BLOCKS = 1 << 24  # of one sample: 64 M words; 2^40 samples fill a counter of 64 bits
PART = 1 << 16  # words that a CPU draws at a time, so that its arrays stay in the cache
THREADED = 1 << 18  # numbers from which threads save more time than they take to start


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four words of each block.

    Args:
        counter: Four words of any one shape, int64 in [0, 2^32).
        key: Two words, int64 in [0, 2^32), that broadcast with the counter's.

    Returns:
        Four words of that shape, int64 in [0, 2^32).
    """
    (a, b, c, d), keys = counter, key
    for _ in range(ROUNDS):
        # The product of two words needs 64 bits; int64 has them, and the shift's copies of the sign are masked.
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = (second >> 32).bitwise_and_(WORD).bitwise_xor_(b).bitwise_xor_(keys[0]), second.bitwise_and_(WORD)
        c, d = (first >> 32).bitwise_and_(WORD).bitwise_xor_(d).bitwise_xor_(keys[1]), first.bitwise_and_(WORD)
        keys = [(word + step) & WORD for word, step in zip(keys, KEY_STEPS, strict=True)]
    return a, b, c, d


def composed_words(rows: Tensor, drawn: Tensor) -> Tensor:
    """Do what `fill_words` does with operations that every backend of torch has."""
    keys, starts = rows[:, :1], rows[:, 1:]
    blocks = starts + torch.arange(drawn.shape[1] // 4, device=rows.device)
    zero = torch.zeros_like(blocks)
    counter, key = (blocks & WORD, (blocks >> 32) & WORD, zero, zero), (keys & WORD, (keys >> 32) & WORD)
    found = torch.stack(philox(counter, key), -1).flatten(1)
    return drawn.copy_((found ^ 0x80000000) - 0x80000000)


def torch_words(rows: Tensor, drawn: Tensor) -> Tensor:
    """Do what `fill_words` does with the kernel of torch.func._random, which is one pass but experimental."""
    return torch.ops.aten._philox_randint_(drawn, rows[:, None].view(torch.uint64))


def fill_words(rows: Tensor, drawn: Tensor) -> Tensor:
    """Fill each row of a tensor with consecutive words.

    Args:
        rows: (B, 2) int64, the 64 bits of each row's key and the number of its first block.
        drawn: (B, W) int32, contiguous, W a multiple of 4; it gets the bits of the words.

    Returns:
        drawn.
    """
    return (torch_words if _kernel_agrees(rows.device.type) else composed_words)(rows, drawn)


def rows_of(key: int, index: Tensor, skipped: int = 0) -> Tensor:
    """Return the rows (B, 2) of `fill_words` for samples (B,) int64, after so many blocks of each."""
    starts = index.long() * BLOCKS + skipped
    return torch.stack([torch.full_like(starts, key - (key >> 63 << 64)), starts], 1)


def words(rows: Tensor, count: int) -> Tensor:
    """Return a new tensor (B, count) int32 of `fill_words`."""
    return fill_words(rows, torch.empty(len(rows), count, dtype=torch.int32, device=rows.device))


@lru_cache
def _kernel_agrees(device: str) -> bool:
    """Return whether this torch has a kernel for a type of device that draws the words defined here."""
    rows = torch.tensor([[0, 0], [-0x299F31D0A4093822, (1 << 62) + 12345], [5, -1]], device=device)
    theirs, ours = torch.zeros(2, 3, 8, dtype=torch.int32, device=device)
    try:
        return torch.equal(torch_words(rows, theirs), composed_words(rows, ours))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


def standard_normal(key: int, index: Tensor, count: int) -> Tensor:
    """Draw standard normal numbers for each sample (Box and Muller 1958).

    Words in the first half of a sample give radii, those in the second half angles: 31 bits of a word give a uniform
    number u in (0, 1], and the largest radius is sqrt(-2 log 2^-32) = 6.66.

    Args:
        key: 64 bits.
        index: (B,) int64, numbers of the samples in [0, 2^40).
        count: Numbers of each sample.

    Returns:
        (B, count) float32, on the device of index.
    """
    half = 4 * math.ceil(count / 8)
    if 2 * half > 4 * BLOCKS:
        raise UserError(f"{count} random numbers for one sample are more than {4 * BLOCKS}: make the samples smaller")
    radius, angle = rows_of(key, index), rows_of(key, index, half // 4)
    if index.device.type == "cpu":
        return _draw_on_cpu(radius, angle, half)[:, :count]
    drawn = torch.empty(len(index), 2 * half, dtype=torch.float32, device=index.device)
    box_muller(torch, words(radius, half).float(), words(angle, half).float(), drawn)
    return drawn[:, :count]


def _draw_on_cpu(radius: Tensor, angle: Tensor, half: int) -> Tensor:
    """Draw rows of normal numbers part by part, with numpy, whose log, sine and cosine take half of torch's time."""
    drawn = np.empty((len(radius), 2 * half), np.float32)  # numpy gets huge pages for large arrays, torch does not
    rows = max(1, PART // max(1, half))
    firsts = range(0, len(drawn), rows)
    threads = min(torch.get_num_threads(), len(firsts)) if drawn.size >= THREADED else 1

    def work(firsts: range) -> None:
        bits = torch.empty(min(rows, len(drawn)), half, dtype=torch.int32)
        signed = np.empty((2, *bits.shape), np.float32)
        for first in firsts:
            part = slice(first, first + rows)
            count = len(drawn[part])
            for side, keys in zip(signed, (radius, angle), strict=True):
                np.copyto(side[:count], fill_words(keys[part], bits[:count]).numpy(), casting="unsafe")
            box_muller(np, signed[0, :count], signed[1, :count], drawn[part])

    if threads <= 1:
        work(firsts)
    else:
        with ThreadPoolExecutor(threads) as pool:  # kernels of torch and numpy release the interpreter lock
            list(pool.map(work, [firsts[thread::threads] for thread in range(threads)]))
    return torch.from_numpy(drawn)


def box_muller(maths: Any, radius: Any, angle: Any, drawn: Any) -> None:
    """Compute normal numbers from words, with the functions of numpy or torch.

    Args:
        maths: The module numpy or torch.
        radius: (B, H) float32, words as signed numbers s; overwritten. |s| / 2^31 is uniform in [0, 1], and its floats
            are dense near 0, where tails are.
        angle: (B, H) float32, words as signed numbers, in steps of pi / 2^31; overwritten.
        drawn: (B, 2 H) float32, gets the results: cosines in its first half, sines in its second.
    """
    half = radius.shape[1]
    maths.abs(radius, out=radius)
    maths.add(radius, 0.5, out=radius)
    maths.multiply(radius, 2.0**-31, out=radius)
    maths.log(radius, out=radius)
    maths.multiply(radius, -2.0, out=radius)
    maths.sqrt(radius, out=radius)
    maths.multiply(angle, math.pi * 2.0**-31, out=angle)
    for function, side in ((maths.cos, drawn[:, :half]), (maths.sin, drawn[:, half:])):
        function(angle, out=side)
        maths.multiply(side, radius, out=side)


def uniform(key: int, index: Tensor) -> Tensor:
    """Draw a uniform number for each sample: an odd multiple of 2^-24 in (0, 1), the same on every device.

    Args:
        key: 64 bits.
        index: (B,) int64, numbers of the samples in [0, 2^40).

    Returns:
        (B,) float32, on the device of index.
    """
    bits = words(rows_of(key, index), 4)[:, 0].to(torch.int64) & WORD
    return ((bits >> 9).float() + 0.5) * 2.0**-23


def subset(key: int, index: Tensor, size: int, kept: int) -> Tensor:
    """Draw ``kept`` of the numbers below ``size`` for each sample, the same on every device.

    Args:
        key: 64 bits.
        index: (B,) int64, numbers of the samples in [0, 2^40).
        size: Numbers to choose from.
        kept: Numbers chosen.

    Returns:
        (B, kept) int64, ascending in each row, on the device of index.
    """
    drawn = words(rows_of(key, index), 4 * math.ceil(size / 4))[:, :size]
    return drawn.argsort(dim=1, stable=True)[:, :kept].sort(dim=1).values
