"""Features: published resizes against slow forms, real ImageNet weights, foreign files refused, settings put back."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from leam_mm.errors import UserError
from leam_mm.evaluators.frechet import frechet_distance_of_features
from leam_mm.evaluators.image_features import (
    EfficientNetLite0,
    ImageFeatures,
    Inception,
    exact_arithmetic,
    resize_clean,
    resize_pytorch_fid,
    resize_tf1,
)
from leam_mm.evaluators.inception import InceptionNetwork


def pictures(count: int, size: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("height", [5, 13])
def test_tf1_resize_against_loops(height: int) -> None:
    image = torch.randint(0, 256, (1, 1, height, 7), dtype=torch.uint8)
    found = resize_tf1(image, size=9)[0, 0] * 128 + 128
    for row in range(9):
        for column in range(9):
            y, x = row * height / 9, column * 7 / 9
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, 6)
            corner = image[0, 0].double()
            top = corner[y0, x0] * (1 - x + x0) + corner[y0, x1] * (x - x0)
            bottom = corner[y1, x0] * (1 - x + x0) + corner[y1, x1] * (x - x0)
            assert float(found[row, column]) == pytest.approx(float(top * (1 - y + y0) + bottom * (y - y0)), abs=1e-3)


def test_resizes_agree_where_nothing_is_resized_and_differ_elsewhere() -> None:
    image = pictures(1, 16)
    plain = image.float()
    torch.testing.assert_close(resize_tf1(image, 16), (plain - 128) / 128)
    torch.testing.assert_close(resize_clean(image, 16), (plain - 128) / 128)
    torch.testing.assert_close(resize_pytorch_fid(image, 16), plain / 127.5 - 1)
    assert (resize_tf1(image, 33) - resize_clean(image, 33)).abs().max() > 0.05
    assert (resize_tf1(image, 33) - resize_pytorch_fid(image, 33)).abs().max() > 0.05


def test_clean_resize_is_pil_per_channel() -> None:
    image = pictures(2, 12)
    channel = Image.fromarray(image[1, 2].numpy().astype(numpy.float32))
    expected = numpy.asarray(channel.resize((7, 7), Image.Resampling.BICUBIC)).clip(0, 255)
    numpy.testing.assert_allclose(resize_clean(image, 7)[1, 2].numpy() * 128 + 128, expected, atol=1e-4)


def test_efficientnet_sees_a_difference_between_kinds_of_pictures() -> None:
    features = EfficientNetLite0()
    noise = pictures(6)
    ramp = torch.linspace(0, 255, 20).to(torch.uint8).expand(3, 20, 20)
    smooth = torch.stack([torch.roll(ramp, number, dims=2) for number in range(6)])
    a, b, c = (features.extract(part) for part in (noise, smooth, pictures(6, seed=1)))
    assert a.shape == (6, 1280) and a.dtype == torch.float64
    assert "EfficientNet-Lite0" in features.protocol
    assert frechet_distance_of_features(a, b) > 2 * frechet_distance_of_features(a, c)
    torch.testing.assert_close(features.extract(noise[2:3]), a[2:3], rtol=1e-3, atol=1e-3)


def test_float_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        EfficientNetLite0().extract(torch.rand(1, 3, 8, 8))


def test_inception_reads_the_published_layout_and_nothing_else(tmp_path: Path) -> None:
    state = InceptionNetwork().state_dict()
    # pytorch-fid's file lacks the batch counters.
    path = tmp_path / "weights.pth"
    torch.save({name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}, path)
    features = Inception(path)
    assert features.extract(pictures(1)).shape == (1, 2048)
    assert "resize tf1" in features.protocol
    torch.save({"something": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not pt_inception"):
        Inception(tmp_path / "other.pth").extract(pictures(1))
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(UserError, match="holds no plain weights"):
        Inception(tmp_path / "junk.pth").extract(pictures(1))
    with pytest.raises(UserError, match="cannot be read"):
        Inception(tmp_path / "missing.pth").extract(pictures(1))


def test_exact_arithmetic_puts_settings_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), exact_arithmetic():
            assert not torch.backends.cudnn.allow_tf32
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
    with pytest.raises(NotImplementedError, match="ImageFeatures does not define extract"):
        ImageFeatures().extract(pictures(1))
