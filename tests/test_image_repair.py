import io

import numpy as np
import pytest
from PIL import Image, ImageCms
from toys.images import ADOBE, deep_png, encoded_image, in_space, matrix_profile, rotated_jpeg, two_coloured_image

from data_tools.samples import image_repair
from data_tools.samples.image_repair import ImageFault, ImageFormat, ImageRule, repair_image
from leam_mm.data import upright_image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0, 1, 100, 255])
def test_sixteen_bits_are_scaled(channels: int, value: int) -> None:
    image = repair_image(deep_png(channels, 257 * value), ImageRule())
    pixels = np.asarray(Image.open(io.BytesIO(image.content)))
    assert pixels.shape == (8, 8, 3) and (pixels == value).all() and "depth:16" in image.transforms


def test_repair_changes_only_what_is_needed() -> None:
    rule = ImageRule()
    raw = encoded_image(two_coloured_image(), "JPEG")
    assert repair_image(raw, rule).content == raw and repair_image(raw, rule).transforms == []
    assert repair_image(encoded_image(two_coloured_image(), "GIF"), rule).extension == "png"
    assert repair_image(encoded_image(two_coloured_image(), "BMP"), ImageRule(format="webp")).extension == "webp"
    again = [repair_image(rotated_jpeg(), rule) for _ in range(2)]
    assert again[0] == again[1] and (again[0].width, again[0].height) == (24, 40)
    assert (again[0].original_width, again[0].original_height) == (40, 24)
    cmyk = repair_image(encoded_image(two_coloured_image().convert("CMYK"), "JPEG"), rule)
    assert Image.open(io.BytesIO(cmyk.content)).mode == "RGB"
    assert "exif" not in Image.open(io.BytesIO(again[0].content)).info


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("no", (40, 24)),
        ("keep_ratio", (20, 12)),
        ("keep_ratio_largest", (12, 7)),
        ("center_crop", (12, 12)),
        ("border", (12, 12)),
    ],
)
def test_resize_modes(mode: str, size: tuple[int, int]) -> None:
    image = repair_image(encoded_image(two_coloured_image()), ImageRule(size=12, resize=mode))
    assert (image.width, image.height) == size == Image.open(io.BytesIO(image.content)).size
    bigger = repair_image(encoded_image(two_coloured_image()), ImageRule(size=64, resize=mode))
    assert (bigger.width, bigger.height) == ((64, 64) if mode in ("center_crop", "border") else (40, 24))


@pytest.mark.parametrize(
    ("raw", "rule", "name"),
    [
        (b"", ImageRule(), "decode"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", ImageRule(), "svg"),
        (encoded_image(two_coloured_image())[:60], ImageRule(), "decode"),
        (encoded_image(two_coloured_image())[:-5], ImageRule(), "decode"),
        (encoded_image(two_coloured_image()).replace(b"IDAT", b"IDAT\0"), ImageRule(), "decode"),
        (encoded_image(two_coloured_image()), ImageRule(max_pixels=959), "pixels"),
        (encoded_image(two_coloured_image()), ImageRule(max_bytes=20), "bytes"),
        (encoded_image(two_coloured_image()), ImageRule(min_side=25), "side"),
    ],
)
def test_refused_images(raw: bytes, rule: ImageRule, name: str) -> None:
    with pytest.raises(ImageFault) as fault:
        repair_image(raw, rule)
    assert fault.value.rule == name and fault.value.reason


DISPLAY_P3 = np.array([[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189], [0.15710, 0.06657, 0.78407]])


@pytest.mark.parametrize("primaries, gamma", [(ADOBE, 563 / 256), (DISPLAY_P3, 2.2)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_colours_of_a_profile_are_converted(primaries: np.ndarray, gamma: float, kind: str) -> None:
    colours = np.array([(200, 60, 60), (60, 180, 70), (50, 70, 200), (128, 128, 128), (250, 200, 40)], np.uint8)
    stored = Image.fromarray(in_space(colours, primaries, gamma)[None].repeat(8, 0))
    assert np.abs(np.asarray(stored)[0].astype(int) - colours).max() > 8  # taken for sRGB it is another picture
    profile = matrix_profile(primaries, gamma, "Wide")
    image = repair_image(encoded_image(stored, kind, icc_profile=profile, lossless=True), ImageRule())
    assert "icc:Wide" in image.transforms and image.extension == "png"
    shown = Image.open(io.BytesIO(image.content))
    assert "icc_profile" not in shown.info and np.abs(np.asarray(shown)[0].astype(int) - colours).max() <= 3


def test_profiles_that_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    raw = encoded_image(two_coloured_image(), "JPEG", icc_profile=srgb)
    assert repair_image(raw, ImageRule()).content == raw
    broken = repair_image(encoded_image(two_coloured_image(), "PNG", icc_profile=b"no profile at all"), ImageRule())
    assert broken.transforms == ["icc:unreadable", "encode:png"]
    foreign = encoded_image(
        two_coloured_image().convert("L"), "PNG", icc_profile=matrix_profile(ADOBE, 2.2, "of colours")
    )
    assert repair_image(foreign, ImageRule()).transforms == ["rgb:L", "icc:of colours", "encode:png"]


@pytest.mark.parametrize(("kind", "width"), [("webp", 20_000), ("jpg", 70_000)])
def test_an_image_that_the_format_cannot_hold_is_refused(kind: ImageFormat, width: int) -> None:
    with pytest.raises(ImageFault) as caught:
        repair_image(encoded_image(Image.new("P", (width, 10))), ImageRule(format=kind))
    assert (caught.value.rule, caught.value.value) == ("encode", kind)


@pytest.mark.parametrize("step", ["upright_rgb", "resize_image", "encode_image"])
@pytest.mark.parametrize(("error", "rule"), [(MemoryError(), "memory"), (RecursionError("deep"), "encode")])
def test_any_error_of_a_library_is_a_fault(
    step: str, error: Exception, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(image_repair, step, fail)
    with pytest.raises(ImageFault) as caught:
        repair_image(encoded_image(Image.new("P", (20, 10))), ImageRule())
    assert caught.value.rule == ("decode" if step == "upright_rgb" and rule == "encode" else rule)


def test_strips_change_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 4), dtype=np.uint8)
    profile = matrix_profile(ADOBE, 2.2, "Adobe")
    files = [
        encoded_image(Image.fromarray(pixels)),
        encoded_image(Image.fromarray(pixels[..., :3]), icc_profile=profile),
    ]
    files += [encoded_image(Image.fromarray(pixels).convert(mode)) for mode in ("P", "1", "LA", "I;16")]
    whole = [repair_image(file, ImageRule()) for file in files]
    monkeypatch.setattr(upright_image, "STRIP", 100)
    assert [repair_image(file, ImageRule()) for file in files] == whole
