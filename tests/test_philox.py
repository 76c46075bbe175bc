"""Philox 4x32-10: published words, every way of drawing them, and what is computed from them."""

import numpy as np
import pytest
import torch
from scipy import stats

from leam_mm.data import philox
from leam_mm.data.philox import (
    BLOCKS,
    box_muller,
    composed_words,
    rows_of,
    standard_normal,
    subset,
    torch_words,
    uniform,
    words,
)
from leam_mm.errors import UserError

# Counter, key and words of philox4x32 with 10 rounds in tests/kat_vectors of Random123 (DEShawResearch/random123).
PUBLISHED = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)
SOME = 0x299F31D0A4093822


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_published_words(counter: str, key: str, expected: str) -> None:
    words, keys = ([torch.tensor([word]) for word in numbers(text)] for text in (counter, key))
    assert [int(word) for word in philox.philox(words, keys)] == numbers(expected)


def empty(rows: int, count: int) -> torch.Tensor:
    return torch.zeros(rows, count, dtype=torch.int32)


def scalar_words(key: int, block: int) -> list[int]:
    """One block by Python's own integers, written from the paper."""
    a, b, c, d, low, high = block & 0xFFFFFFFF, block >> 32, 0, 0, key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = second >> 32 ^ b ^ low, second & 0xFFFFFFFF, first >> 32 ^ d ^ high, first & 0xFFFFFFFF
        low, high = low + 0x9E3779B9 & 0xFFFFFFFF, high + 0xBB67AE85 & 0xFFFFFFFF
    return [a, b, c, d]


def test_all_ways_draw_the_same_bits() -> None:
    starts = [0, 7, (1 << 40) * BLOCKS - 5, 12345 * BLOCKS]
    for key in (0, SOME, (1 << 64) - 3):
        expected = [[word for block in range(3) for word in scalar_words(key, first + block)] for first in starts]
        rows = torch.tensor([[number - (number >> 63 << 64) for number in (key, first)] for first in starts])
        for drawn in (composed_words(rows, empty(4, 12)), words(rows, 12)):
            assert (drawn.long() & 0xFFFFFFFF).tolist() == expected


@pytest.mark.skipif(not philox._kernel_agrees("cpu"), reason="this torch has no kernel for the stream")
def test_kernel_of_torch_draws_the_same_bits() -> None:
    rows = torch.randint(-(2**63), 2**63 - 1, (50, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch_words(rows, empty(50, 64)), composed_words(rows, empty(50, 64)))


@pytest.mark.gpu
def test_a_gpu_draws_the_same_bits_and_normals() -> None:
    index = torch.tensor([0, 3, 1 << 39])
    rows = rows_of(SOME, index)
    assert torch.equal(composed_words(rows.cuda(), empty(3, 64).cuda()).cpu(), composed_words(rows, empty(3, 64)))
    assert torch.equal(words(rows.cuda(), 64).cpu(), words(rows, 64))
    assert torch.equal(uniform(SOME, index.cuda()).cpu(), uniform(SOME, index))
    assert torch.equal(subset(SOME, index.cuda(), 40, 9).cpu(), subset(SOME, index, 40, 9))
    torch.testing.assert_close(standard_normal(SOME, index.cuda(), 999).cpu(), standard_normal(SOME, index, 999))


def test_torch_and_numpy_compute_the_same_normals_to_rounding() -> None:
    index = torch.arange(40)
    ours = standard_normal(SOME, index, 4096)
    radius, angle = (words(rows_of(SOME, index, skipped), 2048).float() for skipped in (0, 512))
    theirs = torch.empty_like(ours)
    box_muller(torch, radius, angle, theirs)  # what a device does
    # A float32 near 2 has a step of 2.4e-7; three functions with a rounding each.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_normals_follow_their_closed_form() -> None:
    drawn = standard_normal(SOME, torch.tensor([5]), 16)[0].double().numpy()
    signed = composed_words(rows_of(SOME, torch.tensor([5])), empty(1, 16))[0].double().numpy()
    radius = np.sqrt(-2 * np.log((np.abs(signed[:8]) + 0.5) * 2.0**-31))
    angle = signed[8:] * np.pi * 2.0**-31
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=2e-6)


def test_a_sample_draws_alone_what_it_draws_in_any_batch_order_or_thread() -> None:
    index = torch.arange(100, 200)
    whole = standard_normal(SOME, index, 4096)  # more than THREADED numbers
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    for chosen in (order, order[:7], torch.tensor([99]), torch.arange(31, 64)):
        assert torch.equal(standard_normal(SOME, index[chosen], 4096), whole[chosen])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(standard_normal(SOME, index, 4096), whole)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(uniform(SOME, index[order]), uniform(SOME, index)[order])


def test_any_size_is_drawn() -> None:
    for count in (1, 3, 8, 9, 50):
        drawn = standard_normal(SOME, torch.tensor([3, 9]), count)
        assert drawn.shape == (2, count) and torch.equal(drawn[1:], standard_normal(SOME, torch.tensor([9]), count))
    assert standard_normal(SOME, torch.arange(0), 8).shape == (0, 8)
    with pytest.raises(UserError, match="make the samples smaller"):
        standard_normal(SOME, torch.arange(1), 4 * BLOCKS + 1)


def test_extreme_words_give_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = [0, 1, -1, 2**31 - 1, -(2**31), 2**30, 255, 256]

    def fixed(rows: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        return drawn.copy_(torch.tensor([extremes]))

    monkeypatch.setattr(philox, "fill_words", fixed)
    drawn = standard_normal(0, torch.tensor([0]), 16)
    assert drawn.isfinite().all() and 6.6 < drawn.abs().max() < 6.7
    for word in extremes:
        monkeypatch.setattr(philox, "words", lambda *given, word=word: torch.tensor([[word] * 4], dtype=torch.int32))
        number = uniform(0, torch.tensor([0]))
        assert 0 < number < 1 and float(number) * 2**24 % 2 == 1  # exact


def test_normals_pass_tests_of_normality() -> None:
    drawn = standard_normal(SOME, torch.arange(500), 4096).double()
    count = drawn.numel()
    moments = [float((drawn**power).mean()) for power in (1, 2, 3, 4)]
    # Standard errors of the first four moments are sqrt(1, 2, 15, 96) / sqrt(n): one wrong alarm in a million.
    for moment, expected, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - expected) < 5 * (variance / count) ** 0.5
    assert stats.kstest(drawn.flatten()[:400_000].numpy(), "norm").pvalue > 1e-4
    tail = int((drawn.abs() > 4).sum())
    expected = 2 * stats.norm.sf(4) * count
    assert abs(tail - expected) < 5 * expected**0.5
    assert len(drawn.unique()) > 0.9 * count  # 24 bits of a float repeat some; equal blocks would repeat half


def test_samples_positions_and_keys_are_uncorrelated() -> None:
    index = torch.arange(64)
    drawn, other = (standard_normal(key, index, 8192).double() for key in (SOME, SOME + 1))
    limit = 5 / 8192**0.5
    for left, right in (
        (drawn[1:], drawn[:-1]),  # neighbouring samples
        (drawn[:, 1:], drawn[:, :-1]),  # neighbouring positions
        (drawn[:, :4096], drawn[:, 4096:]),  # the two numbers of a pair
        (drawn[:, :4096] ** 2 - 1, drawn[:, 4096:] ** 2 - 1),
        (drawn, other),  # purposes
    ):
        assert float((left * right).mean(1).abs().max()) < 2 * limit
        assert abs(float((left * right).mean())) < limit / 4
    blocks = {tuple(row) for row in words(rows_of(SOME, index), 64).view(-1, 4).tolist()}
    assert len(blocks) == 64 * 16


def test_uniforms_are_uniform() -> None:
    drawn = uniform(SOME, torch.arange(100_000)).double().numpy()
    assert stats.kstest(drawn, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.02


def test_all_subsets_are_equally_likely() -> None:
    chosen = subset(SOME, torch.arange(20_000), 5, 2)
    assert (chosen.diff(dim=1) > 0).all() and chosen.min() >= 0 and chosen.max() < 5
    counts = (chosen[:, 0] * 5 + chosen[:, 1]).bincount()
    assert stats.chisquare(counts[counts > 0].numpy()).pvalue > 1e-4 and int((counts > 0).sum()) == 10
