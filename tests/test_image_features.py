"""Features: published resizes against slow forms, real ImageNet weights, the FID network, foreign files refused."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from leam_mm.distances.frechet import frechet_distance_of_features
from leam_mm.errors import UserError
from leam_mm.evaluators.image_features import (
    EfficientNetLite0,
    ImageFeatures,
    Inception,
    SmallEfficientNetLite0,
    exact_arithmetic,
    resize_clean,
    resize_pytorch_fid,
    resize_tf1,
)
from leam_mm.evaluators.inception import BlockE, InceptionNetwork, average_pool, max_pool


def images(count: int, size: int = 20, seed: int = 0) -> torch.Tensor:
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
    image = images(1, 16)
    plain = image.float()
    torch.testing.assert_close(resize_tf1(image, 16), (plain - 128) / 128)
    torch.testing.assert_close(resize_clean(image, 16), (plain - 128) / 128)
    torch.testing.assert_close(resize_pytorch_fid(image, 16), plain / 127.5 - 1)
    assert (resize_tf1(image, 33) - resize_clean(image, 33)).abs().max() > 0.05
    assert (resize_tf1(image, 33) - resize_pytorch_fid(image, 33)).abs().max() > 0.05


def test_clean_resize_is_pil_per_channel() -> None:
    image = images(2, 12)
    channel = Image.fromarray(image[1, 2].numpy().astype(numpy.float32))
    expected = numpy.asarray(channel.resize((7, 7), Image.Resampling.BICUBIC)).clip(0, 255)
    numpy.testing.assert_allclose(resize_clean(image, 7)[1, 2].numpy() * 128 + 128, expected, atol=1e-4)


def test_efficientnet_sees_a_difference_between_kinds_of_images() -> None:
    features = EfficientNetLite0()
    noise = images(6)
    ramp = torch.linspace(0, 255, 20).to(torch.uint8).expand(3, 20, 20)
    smooth = torch.stack([torch.roll(ramp, number, dims=2) for number in range(6)])
    a, b, c = (features.extract(part) for part in (noise, smooth, images(6, seed=1)))
    assert a.shape == (6, 1280) and a.dtype == torch.float64
    assert "EfficientNet-Lite0" in features.protocol
    assert frechet_distance_of_features(a, b) > 2 * frechet_distance_of_features(a, c)
    torch.testing.assert_close(features.extract(noise[2:3]), a[2:3], rtol=1e-3, atol=1e-3)


def test_passes_of_a_few_images_give_the_features_of_a_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    features = SmallEfficientNetLite0()
    sizes: list[int] = []
    compute = features.compute

    def counted(prepared: torch.Tensor) -> dict[str, torch.Tensor]:
        sizes.append(len(prepared))
        return compute(prepared)

    monkeypatch.setattr(features, "compute", counted)
    few = features.extract(images(10))
    monkeypatch.setattr(features, "images_on_cpu", 0)
    whole = features.extract(images(10))
    assert sizes == [4, 4, 2, 10]
    assert (few - whole).abs().max() < 1e-5 * whole.abs().max()


def test_float_images_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        EfficientNetLite0().extract(torch.rand(1, 3, 8, 8))


def test_inception_reads_the_published_layout_and_nothing_else(tmp_path: Path) -> None:
    state = InceptionNetwork().state_dict()
    # pytorch-fid's file lacks the batch counters.
    path = tmp_path / "weights.pth"
    torch.save({name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}, path)
    features = Inception(path)
    assert features.extract(images(1)).shape == (1, 2048)
    assert "resize tf1" in features.protocol
    torch.save({"something": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not pt_inception"):
        Inception(tmp_path / "other.pth").extract(images(1))
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(UserError, match="holds no plain weights"):
        Inception(tmp_path / "junk.pth").extract(images(1))
    with pytest.raises(UserError, match="cannot be read"):
        Inception(tmp_path / "missing.pth").extract(images(1))


def test_exact_arithmetic_restores_settings() -> None:
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
        ImageFeatures().extract(images(1))


@pytest.fixture(scope="module")
def network() -> InceptionNetwork:
    return InceptionNetwork().eval()


def test_state_has_the_size_of_the_published_file(network: InceptionNetwork) -> None:
    state = network.state_dict()
    # Counted in the torch-fidelity layout of pt_inception-2015-12-05.
    assert len(state) == 566
    assert sum(tensor.numel() for tensor in state.values()) == 23_885_486
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Mixed_6b.branch7x7dbl_2.conv.weight"].shape == (128, 128, 7, 1)
    assert state["Mixed_7c.branch3x3_2a.conv.weight"].shape == (384, 384, 1, 3)


def test_last_block_takes_the_maximum(network: InceptionNetwork) -> None:
    assert network.Mixed_7b.pool is average_pool
    assert network.Mixed_7c.pool is max_pool
    x = torch.rand(1, 8, 4, 4)
    block = BlockE(8, max_pool).eval()
    block.pool = average_pool
    average = block(x)
    block.pool = max_pool
    assert not torch.equal(average[:, -192:], block(x)[:, -192:])
    assert torch.equal(average[:, :-192], block(x)[:, :-192])


def test_average_does_not_count_the_padding() -> None:
    torch.testing.assert_close(average_pool(torch.ones(1, 2, 5, 5)), torch.ones(1, 2, 5, 5))


def test_batch_norm_eps_and_shape(network: InceptionNetwork) -> None:
    assert all(m.eps == 1e-3 for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 80, 80)).shape == (1, 2048)


def test_images_of_different_sizes_are_resized_alone(network: InceptionNetwork, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    features = Inception(tmp_path / "weights.pth", "clean")
    small, large = images(1, 20), images(1, 31, seed=1)
    found = features.extract_each([small[0], large[0]])
    assert {name: tuple(part.shape) for name, part in found.items()} == {
        "features": (2, 2048),
        "spatial": (2, 2023),
        "logits": (2, 1008),
    }
    torch.testing.assert_close(found["features"][1:], features.extract(large), rtol=1e-4, atol=1e-5)
    weight = network.fc.weight.detach().double()
    torch.testing.assert_close(found["logits"], found["features"] @ weight.T, rtol=1e-3, atol=1e-4)
    assert features.weights_sha256[:12] in features.protocol


def test_spatial_features_are_the_first_channels_of_the_1x1_branch(network: InceptionNetwork) -> None:
    seen = []
    hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        spatial = network.outputs(torch.rand(2, 3, 299, 299) * 2 - 1)["spatial"]
    hook.remove()
    assert seen[0].shape == (2, 192, 17, 17)
    assert torch.equal(spatial, seen[0][:, :7].flatten(1))
