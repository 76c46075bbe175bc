"""Fréchet Wavelet Distance: an orthonormal transform, closed forms, batches, sizes."""

import pytest
import torch

from leam_mm.distances.feature_statistics import FeatureMoments
from leam_mm.distances.wavelet_distance import (
    WaveletPackets,
    haar_packets,
    wavelet_distance,
    wavelet_distance_of_moments,
)
from leam_mm.errors import UserError


def images(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def test_packets_are_an_orthonormal_transform() -> None:
    x = images(3).double()
    packets = haar_packets(x, level=2)
    assert packets.shape == (3, 16, 3 * 4 * 4)
    torch.testing.assert_close(packets.square().sum(dim=(1, 2)), x.square().sum(dim=(1, 2, 3)))
    # Packet 0 holds the averages of 4 x 4 pixels, times 2^level.
    means = 4 * torch.nn.functional.avg_pool2d(x, 4).flatten(1)
    torch.testing.assert_close(packets[:, 0], means)
    with pytest.raises(ValueError, match="divisible by 8"):
        haar_packets(images(1, 12).double(), level=3)


def test_one_level_against_its_definition() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).reshape(1, 1, 2, 2)
    average, right, down, both = haar_packets(x, level=1).flatten().tolist()
    assert average == (1 + 2 + 3 + 5) / 2
    assert {right, down, both} == {(1 + 3 - 2 - 5) / 2, (1 + 2 - 3 - 5) / 2, (1 + 5 - 2 - 3) / 2}


def test_brighter_images_differ_in_the_packet_of_averages_only() -> None:
    packets = WaveletPackets(16, level=2)
    dark = images(80) // 2
    first, second = packets.extract(dark), packets.extract(dark + 51)
    assert wavelet_distance(first, first) == pytest.approx(0, abs=1e-9)
    # 0.2 brighter: each of 3 x 4 x 4 coefficients of one of 16 packets moves by 4 x 0.2.
    assert wavelet_distance(first, second) == pytest.approx(48 * 0.8**2 / 16, rel=1e-9)


def test_moments_of_batches_give_the_same() -> None:
    packets = WaveletPackets(16, level=2)
    first, second = packets.extract(images(120)), packets.extract(images(130, seed=1) // 2)
    moments = [
        [FeatureMoments.of_batches(part[:, p] for part in features.split(33)) for p in range(16)]
        for features in (first, second)
    ]
    assert wavelet_distance_of_moments(*moments) == pytest.approx(wavelet_distance(first, second), rel=1e-9)


def test_any_size_is_resized_and_named() -> None:
    packets = WaveletPackets(32)
    assert packets.extract([images(1, 20)[0], images(1, 64)[0]]).shape == (2, 256, 12)
    assert packets.features == 12 and "32" in packets.protocol and "as published" not in packets.protocol
    assert "as published" in WaveletPackets(256).protocol
    with pytest.raises(UserError, match="wavelet size 40: give a multiple of 16"):
        WaveletPackets(40)
