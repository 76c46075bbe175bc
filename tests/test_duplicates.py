"""Rules for exact and near duplicates: which copies of an image are dropped, and for which one."""

import hashlib
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance
from skimage import data
from toys.images import encoded_image
from toys.vetting import pixel_sample, resolve

from data_tools.vetting.exact_duplicates import ExactDuplicates
from data_tools.vetting.near_duplicates import NearDuplicates, colour_difference, pixel_difference, thumbnail
from data_tools.vetting.vetting_rule import Finding, Sample
from leam_mm.data.perceptual_hash import TRANSFORMS, pdq, read_hash, transformed
from leam_mm.errors import UserError

COFFEE, CAT, ROCKET = data.coffee()[:256, 100:356], data.chelsea()[20:276, 80:336], data.rocket()[60:316, 200:456]
PIXELS = data.chelsea()[:64, :96]
stored = partial(encoded_image, Image.fromarray(PIXELS))


def sample(key: str, content: bytes, extension: str = "png", sha256: str | None = None) -> Sample:
    return Sample(key, {"sha256": sha256 or hashlib.sha256(content).hexdigest()}, extension, content)


SAMPLES = [
    sample("b", stored("PNG")),
    sample("a", stored("PNG")),
    sample("c", stored("PNG", compress_level=0)),  # other bytes, the same pixels
    sample("d", stored("WEBP", lossless=True), "webp"),
    sample("e", stored("JPEG"), "jpg"),  # other pixels
    sample("f", encoded_image(Image.fromarray(PIXELS.reshape(96, 64, 3)))),  # the same values in another shape
]


def test_one_of_each_file_and_of_each_image_stays() -> None:
    found = resolve(ExactDuplicates(), SAMPLES)
    assert [key for key, finding in found.items() if finding.kept] == ["a", "e", "f"]
    assert found["b"].evidence == {"kept": "a", "group": 4} and found["b"].value == "same file"
    assert found["c"].value == found["d"].value == "same pixels" and "a" in found["c"].reason
    assert found["a"].value == "best of 4" and found["e"].value == "alone"


def test_without_pixels_only_files_are_compared() -> None:
    found = resolve(ExactDuplicates(pixels=False), SAMPLES)
    assert [key for key, finding in found.items() if not finding.kept] == ["b"]


def test_the_recorded_digest_names_the_file() -> None:
    digest = hashlib.sha256(b"the original").hexdigest()
    two = [sample("a", stored("PNG"), sha256=digest), sample("b", stored("JPEG"), "jpg", sha256=digest)]
    assert resolve(ExactDuplicates(), two)["b"].value == "same file"
    broken = [sample("a", stored("PNG"), sha256="none"), sample("b", stored("JPEG"), "jpg", sha256="none")]
    assert all(finding.kept for finding in resolve(ExactDuplicates(), broken).values())


def test_copies_of_another_data_set_are_dropped() -> None:
    found = resolve(ExactDuplicates(), SAMPLES, against={"c", "d"})
    assert not found["a"].kept and not found["b"].kept and found["c"].kept and found["d"].kept
    assert found["a"].evidence["against"] is True and found["a"].evidence["kept"] in ("c", "d")


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_samples_does_not_matter(seed: int) -> None:
    shuffled = [SAMPLES[index] for index in np.random.default_rng(seed).permutation(len(SAMPLES))]
    assert resolve(ExactDuplicates(), shuffled) == {
        each.key: resolve(ExactDuplicates(), SAMPLES)[each.key] for each in shuffled
    }


def near(key: str, pixels: np.ndarray, kind: str = "PNG", quality: int = 95) -> Sample:
    return pixel_sample(pixels, key, kind, quality=quality)


def disc(colour: tuple[int, int, int], paper: int = 255, radius: float = 0.35) -> np.ndarray:
    across, down = np.meshgrid(*[(np.arange(128) + 0.5) / 128 - 0.5] * 2)
    inside = (np.hypot(across, down) < radius)[:, :, None]
    return np.where(inside, np.array(colour, np.uint8), np.uint8(paper)).astype(np.uint8)


def dropped(found: dict[str, Finding]) -> dict[str, str]:
    return {key: finding.evidence["kept"] for key, finding in found.items() if not finding.kept}


def test_copies_are_dropped_and_other_images_stay() -> None:
    picture = Image.fromarray(COFFEE)
    smaller = np.asarray(picture.resize((128, 128), Image.Resampling.LANCZOS))
    samples = [
        near("coffee/small", smaller),
        near("coffee", COFFEE),
        near("coffee/jpeg", COFFEE, "JPEG", 40),
        near("coffee/webp", COFFEE, "WEBP", 50),
        near("coffee/dark", np.asarray(ImageEnhance.Brightness(picture).enhance(0.7))),
        near("coffee/crop", COFFEE[1:-1, 1:-1]),
        near("cat", CAT),
        near("cat/jpeg", CAT, "JPEG", 60),
        near("rocket", ROCKET),
    ]
    found = resolve(NearDuplicates(), samples)
    gone = dropped(found)
    assert set(gone) == {each.key for each in samples if each.key not in ("coffee", "cat", "rocket")}
    assert all(kept == key.partition("/")[0] for key, kept in gone.items())
    evidence = found["coffee/small"].evidence
    assert evidence["bits"] <= 8 and evidence["colour"] <= 4 and evidence["group"] == 6 and evidence["quality"] == 100
    assert found["coffee/small"].value == f"{evidence['bits']} bits"
    assert found["coffee"].evidence["diameter"] >= evidence["bits"] and found["rocket"].evidence == {}
    assert np.array_equal(read_hash(found["rocket"].record["pdq"]), pdq(ROCKET)[0])


def test_drawings_with_equal_hashes_and_different_colours_stay() -> None:
    discs = {"red": (220, 40, 40), "blue": (60, 60, 220), "green": (30, 150, 60)}
    samples = [near(name, disc(colour)) for name, colour in discs.items()]
    codes = [each.pdq for each in samples]
    assert {code.tobytes() for code, _ in codes} == {codes[0][0].tobytes()} and min(q for _, q in codes) >= 50
    copies = [near(f"{name}/jpeg", disc(colour), "JPEG", 60) for name, colour in discs.items()]
    found = resolve(NearDuplicates(), [*samples, *copies])
    assert {frozenset(pair) for pair in dropped(found).items()} == {frozenset((n, f"{n}/jpeg")) for n in discs}
    assert len(dropped(resolve(NearDuplicates(colour=None), [*samples, *copies]))) == 5


def test_blank_and_inverted_images_differ_from_a_drawing() -> None:
    small = [thumbnail(each).reshape(1, -1) for each in (disc((255, 255, 255)), disc((250, 0, 0)))]
    assert colour_difference(*small)[0] > 30
    assert colour_difference(small[1], 255 - small[1])[0] > 30  # nor is its negative


def test_flat_images_stay_unless_their_pixels_agree() -> None:
    levels = (70, 110, 150, 190, 230)
    faint = {level: disc((level - 6, level - 6, level - 6), level) for level in levels}
    samples = [near(f"faint/{level}", pixels) for level, pixels in faint.items()]
    samples += [near(f"copy/{level}", faint[level] + np.uint8(1)) for level in (70, 230)]
    assert max(each.pdq[1] for each in samples) < 50
    found = resolve(NearDuplicates(), samples)
    assert set(dropped(found)) | set(dropped(found).values()) == {"faint/70", "faint/230", "copy/70", "copy/230"}
    assert len(dropped(found)) == 2
    assert len(dropped(resolve(NearDuplicates(quality=0), samples))) == 6  # what believing the hashes would cost
    blank = [near(f"grey/{level}", np.full((96, 96, 3), level, np.uint8)) for level in levels]
    assert not dropped(resolve(NearDuplicates(quality=0), blank)) and blank[0].pdq[1] == 0


def test_flat_copies_with_other_brightness_or_contrast_are_found() -> None:
    faint = (120 + (data.moon()[100:228, 200:328, None].astype(np.float64) - 110) * 0.6).repeat(3, axis=2)
    assert pdq(faint.astype(np.uint8))[1] < 50
    copies = {
        "plain": faint,
        "dark": 0.7 * faint,
        "bright": 1.25 * faint,
        "pale": faint.mean() + 0.6 * (faint - faint.mean()),
    }
    samples = [near(name, pixels.round().astype(np.uint8)) for name, pixels in copies.items()]
    for copy in samples[1:]:
        assert len(dropped(resolve(NearDuplicates(), [samples[0], copy]))) == 1
    moved = [near("plain", faint.astype(np.uint8)), near("moved", (faint + 80).round().astype(np.uint8))]
    assert moved[0].pdq[0].tobytes() and not dropped(resolve(NearDuplicates(), moved))
    assert dropped(resolve(NearDuplicates(quality=0), moved))


def test_cropped_and_framed_copies_are_found_on_request() -> None:
    height, width = CAT.shape[:2]
    framed = np.full((height + 20, width + 20, 3), 255, np.uint8)
    framed[10:-10, 10:-10] = CAT
    cat, cropped, frame = near("cat", CAT), near("cropped", CAT[10:-10, 10:-10]), near("framed", framed)
    samples = [cat, near("rocket", ROCKET)]
    assert not dropped(resolve(NearDuplicates(), [*samples, cropped, frame]))
    rule = NearDuplicates(crops=(0.08,))
    assert dropped(resolve(rule, [*samples, cropped])) == {"cropped": "cat"}
    assert dropped(resolve(rule, [*samples, frame])) == {"cat": "framed"}
    all_three = resolve(rule, [*samples, cropped, frame])  # the cropped one is no copy of the framed one, which stays
    assert dropped(all_three) == {"cat": "framed"} and all_three["cropped"].evidence["group"] == 3


def test_the_best_near_duplicate_stays() -> None:
    larger = np.asarray(Image.fromarray(CAT).resize((300, 300), Image.Resampling.BICUBIC))
    found = resolve(NearDuplicates(), [near("a", CAT), near("z", larger), near("b", CAT)])
    assert dropped(found) == {"a": "z", "b": "z"}


def test_mirrored_and_rotated_copies_are_found_on_request() -> None:
    names = dict(zip(TRANSFORMS, transformed(ROCKET), strict=True))
    samples = [near(name, np.ascontiguousarray(pixels)) for name, pixels in names.items()]
    assert not dropped(resolve(NearDuplicates(), samples))
    assert len(dropped(resolve(NearDuplicates(transforms=TRANSFORMS[1:]), samples))) == 7
    mirrored = dropped(resolve(NearDuplicates(transforms=("flip_horizontal",)), samples))
    flipped = {
        frozenset((one, other))
        for one, pixels in names.items()
        for other, its in names.items()
        if np.array_equal(pixels[:, ::-1], its)
    }
    assert {frozenset(pair) for pair in mirrored.items()} == flipped and len(flipped) == 4
    # one of two rotations suffices, whichever picture is the turned one
    for first, second in (("identity", "rotate90"), ("rotate90", "identity")):
        pair = [near("a", np.ascontiguousarray(names[first])), near("b", np.ascontiguousarray(names[second]))]
        assert len(dropped(resolve(NearDuplicates(transforms=("rotate90",)), pair))) == 1


def test_near_copies_of_another_data_set_are_dropped() -> None:
    samples = [near("theirs", CAT[:, ::-1][:, ::-1], "JPEG", 50), near("a", CAT), near("b", ROCKET)]
    found = resolve(NearDuplicates(), samples, against={"theirs"})
    assert dropped(found) == {"a": "theirs"} and found["a"].evidence["against"] is True


def test_many_equal_rows_are_fast() -> None:
    rule = NearDuplicates()
    measured = np.repeat(rule.measure([near("white", np.full((64, 64, 3), 255, np.uint8))]), 5_000, axis=0)
    keys = [f"{number:04d}" for number in range(len(measured))]
    found = rule.resolve(keys, [{"width": 64, "height": 64}] * len(keys), measured)
    assert [finding.kept for finding in found[:3]] == [True, False, False]
    assert sum(finding.kept for finding in found) == 1


def test_settings_are_complete_and_checked() -> None:
    assert set(NearDuplicates().setting()) == {
        "rule",
        "radius",
        "quality",
        "colour",
        "flat",
        "transforms",
        "crops",
        "captions",
    }
    assert NearDuplicates(transforms=("rotate90", "rotate90")).transforms == ["rotate90"]
    with pytest.raises(UserError, match="radius"):
        NearDuplicates(radius=128)
    with pytest.raises(UserError, match="crops"):
        NearDuplicates(crops=(0.08, 0.5))
    with pytest.raises(UserError, match="sideways"):
        NearDuplicates(transforms=("sideways",))


def test_colour_difference_is_the_least_squares_residual() -> None:
    generator = np.random.default_rng(0)
    one = generator.integers(40, 200, (50, 192)).astype(np.uint8)
    paler = (0.7 * one + 30).round().astype(np.uint8)
    assert colour_difference(one, paler).max() < 1 < pixel_difference(one, paler).min()
    other = generator.integers(40, 200, (50, 192)).astype(np.uint8)
    difference = colour_difference(one, other)
    assert np.allclose(difference, colour_difference(other, one)) and difference.min() > 20
    gains = np.linspace(0.5, 1, 2001)
    for a, b, found in zip(one, other, difference, strict=True):
        a, b = (each - each.mean() for each in (a.astype(float), b.astype(float)))
        less, more = sorted((a, b), key=lambda each: float((each**2).mean()))
        assert found == pytest.approx(min(np.sqrt(((less - gain * more) ** 2).mean()) for gain in gains), rel=1e-3)


def flag(star: bool) -> np.ndarray:
    """The flag of Jordan, or without its star that of Palestine."""
    image = Image.new("RGB", (256, 128), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, 0, 256, 42], fill="black")
    pen.rectangle([0, 85, 256, 128], fill=(0, 122, 61))
    pen.polygon([(0, 0), (128, 64), (0, 128)], fill=(206, 17, 38))
    if star:
        pen.regular_polygon((42, 64, 9), 7, fill="white")
    return np.asarray(image)


def captioned(key: str, pixels: np.ndarray, text: str) -> Sample:
    made = pixel_sample(pixels, key)
    made.record["captions"] = [{"language": "en", "text": text}]
    return made


def test_images_that_look_alike_stay_where_captions_differ() -> None:
    smaller = np.asarray(Image.fromarray(flag(True)).resize((128, 64), Image.Resampling.LANCZOS))
    samples = [
        captioned("a", flag(True), "flag of Jordan"),
        captioned("b", flag(False), "flag of Palestine"),
        captioned("c", flag(False), "the flag of Jordan"),  # only adds a word
        captioned("d", smaller, "A banner in my garden"),  # the same image again, whatever its caption says
    ]
    found = resolve(NearDuplicates(), samples)
    assert [key for key, finding in found.items() if finding.kept] == ["a", "b"]
    kept = found["b"]
    assert kept.value.endswith("bits, other caption") and kept.evidence["looks_like"] == "a"
    assert kept.evidence["group"] == 4 and kept.reason == ""
    assert "looks_like" not in found["a"].evidence and found["d"].evidence["kept"] == "a"
    without = resolve(NearDuplicates(captions=False), samples)
    assert [key for key, finding in without.items() if finding.kept] == ["a"]
    test_set = resolve(NearDuplicates(), samples[:2], against={"a"})
    assert not test_set["b"].kept  # a look-alike of a test image is never trained on
