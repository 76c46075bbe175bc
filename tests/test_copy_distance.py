"""Distances of copies: closed forms, equal to a search by brute force, and near for altered copies."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from leam_mm.audits.altered_copies import altered_copies
from leam_mm.audits.copy_distance import FeatureAngle, LowFrequencies, Tiles
from leam_mm.audits.nearest_training import nearest_training, relative_distance
from leam_mm.controls.smooth_images import smooth_images, write_image_shards
from leam_mm.evaluators.image_features import ImageFeatures


def root_mean_square(one: Tensor, other: Tensor) -> Tensor:
    return ((one.float() - other.float()) / 255).square().flatten(1).mean(1).sqrt()


def test_all_frequencies_give_the_root_mean_square_of_pixels() -> None:
    one, other = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    distance = LowFrequencies(32)
    found = distance.between(distance.parts(one), distance.parts(other)).diagonal()
    torch.testing.assert_close(found, root_mean_square(one, other))


def test_low_frequencies_ignore_what_is_fine() -> None:
    flat = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    board = flat.clone()
    board[..., ::2, ::2] += 40
    board[..., 1::2, 1::2] += 40
    brighter = flat + 20
    distance = LowFrequencies(8)
    first, second = (distance.between(distance.parts(flat), distance.parts(each)) for each in (board, brighter))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)  # the board is only its mean


def test_the_distance_of_tiles_is_that_of_the_tile_that_differs_most() -> None:
    one = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    other = one.clone()
    other[..., 8:16, 24:32] = 51
    other[..., 0:8, 0:4] = 255
    distance = Tiles()
    found = float(distance.between(distance.parts(one), distance.parts(other)))
    assert found == pytest.approx((1 / 2) ** 0.5)  # half of the first tile differs by all levels


def test_features_are_compared_by_angle() -> None:
    class Mean(ImageFeatures):
        def extract(self, images: Tensor) -> Tensor:
            return images.double().mean((2, 3))

    one = torch.tensor([200, 0, 0], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 8, 8)
    distance = FeatureAngle(Mean())
    assert distance.between(distance.parts(one), distance.parts(one // 2)).item() == pytest.approx(0, abs=1e-3)
    assert distance.between(distance.parts(one), distance.parts(one.flip(1))).item() == pytest.approx(2**0.5)


def test_the_pass_over_shards_finds_what_brute_force_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leam_mm.audits.nearest_training.CHUNK", 7)
    training, queries = smooth_images(30, 1), smooth_images(5, 2)
    shards = write_image_shards(tmp_path / "train", training, ["x"] * 30)
    distances = [LowFrequencies(), Tiles()]
    found = nearest_training(shards, 32, distances, queries, 4)
    for distance, nearest in zip(distances, found, strict=True):
        expected = distance.between(distance.parts(queries), distance.parts(training)).sort(1).values[:, :4]
        torch.testing.assert_close(nearest, expected)
    assert nearest_training(shards, 32, distances, queries, 50)[0].shape == (5, 30)
    torch.testing.assert_close(relative_distance(found[0]), found[0][:, 0] / found[0].mean(1))


@pytest.mark.parametrize("distance", [LowFrequencies(), Tiles()], ids=lambda distance: distance.name)
def test_altered_copies_are_nearer_than_other_images(distance: LowFrequencies | Tiles) -> None:
    images = smooth_images(40, 1)
    parts = distance.parts(images)
    others = distance.between(parts, parts).fill_diagonal_(9).min()
    copies = altered_copies(images, None, 0)
    assert set(copies) == {"noise", "jpeg", "shift", "crop"}
    for name, changed in copies.items():
        assert changed.shape == images.shape and changed.dtype == torch.uint8
        own = distance.between(distance.parts(changed), parts).diagonal()
        assert 0 < own.max() < others, name
