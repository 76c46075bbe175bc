import io
from collections.abc import Iterable

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from skimage import data

from data_tools.vetting.near_duplicates import NearDuplicates, colour_difference, pixel_difference, thumbnail
from data_tools.vetting.perceptual_hash import TRANSFORMS, pdq, read_hash, transformed
from data_tools.vetting.vetting_rule import Finding, Sample
from leam_mm.errors import UserError

TURNS = TRANSFORMS[1:]
COFFEE, CAT, ROCKET = data.coffee()[:256, 100:356], data.chelsea()[20:276, 80:336], data.rocket()[60:316, 200:456]


def sample(key: str, pixels: np.ndarray, kind: str = "PNG", quality: int = 95) -> Sample:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=quality)
    return Sample(key, {}, {"JPEG": "jpg"}.get(kind, kind.lower()), buffer.getvalue())


def disc(colour: tuple[int, int, int], paper: int = 255, radius: float = 0.35) -> np.ndarray:
    across, down = np.meshgrid(*[(np.arange(128) + 0.5) / 128 - 0.5] * 2)
    inside = (np.hypot(across, down) < radius)[:, :, None]
    return np.where(inside, np.array(colour, np.uint8), np.uint8(paper)).astype(np.uint8)


def vet(rule: NearDuplicates, samples: Iterable[Sample], against: set[str] | None = None) -> dict[str, Finding]:
    samples = list(samples)
    keys = [each.key for each in samples]
    records = [
        {"width": each.pixels.shape[1], "height": each.pixels.shape[0], "against": each.key in (against or ())}
        for each in samples
    ]
    measured = np.concatenate([rule.measure(samples[:1]), rule.measure(samples[1:])])
    return dict(zip(keys, rule.resolve(keys, records, measured), strict=True))


def dropped(found: dict[str, Finding]) -> dict[str, str]:
    return {key: finding.evidence["kept"] for key, finding in found.items() if not finding.kept}


def test_copies_leave_and_other_pictures_stay() -> None:
    picture = Image.fromarray(COFFEE)
    smaller = np.asarray(picture.resize((128, 128), Image.Resampling.LANCZOS))
    samples = [
        sample("coffee/small", smaller),
        sample("coffee", COFFEE),
        sample("coffee/jpeg", COFFEE, "JPEG", 40),
        sample("coffee/webp", COFFEE, "WEBP", 50),
        sample("coffee/dark", np.asarray(ImageEnhance.Brightness(picture).enhance(0.7))),
        sample("coffee/crop", COFFEE[1:-1, 1:-1]),
        sample("cat", CAT),
        sample("cat/jpeg", CAT, "JPEG", 60),
        sample("rocket", ROCKET),
    ]
    found = vet(NearDuplicates(), samples)
    gone = dropped(found)
    assert set(gone) == {each.key for each in samples if each.key not in ("coffee", "cat", "rocket")}
    assert all(kept == key.partition("/")[0] for key, kept in gone.items())
    evidence = found["coffee/small"].evidence
    assert evidence["bits"] <= 8 and evidence["colour"] <= 4 and evidence["group"] == 6 and evidence["quality"] == 100
    assert found["coffee/small"].value == f"{evidence['bits']} bits"
    assert found["coffee"].evidence["diameter"] >= evidence["bits"] and found["rocket"].evidence == {}
    assert np.array_equal(read_hash(found["rocket"].record["pdq"]), pdq(ROCKET)[0])


def test_colours_tell_drawings_apart_that_one_hash_holds() -> None:
    discs = {"red": (220, 40, 40), "blue": (60, 60, 220), "green": (30, 150, 60)}
    samples = [sample(name, disc(colour)) for name, colour in discs.items()]
    codes = [each.pdq for each in samples]
    assert {code.tobytes() for code, _ in codes} == {codes[0][0].tobytes()} and min(q for _, q in codes) >= 50
    copies = [sample(f"{name}/jpeg", disc(colour), "JPEG", 60) for name, colour in discs.items()]
    found = vet(NearDuplicates(), [*samples, *copies])
    assert {frozenset(pair) for pair in dropped(found).items()} == {frozenset((n, f"{n}/jpeg")) for n in discs}
    assert len(dropped(vet(NearDuplicates(colour=None), [*samples, *copies]))) == 5


def test_a_blank_picture_is_no_copy_of_a_drawing() -> None:
    small = [thumbnail(each).reshape(1, -1) for each in (disc((255, 255, 255)), disc((250, 0, 0)))]
    assert colour_difference(*small)[0] > 30
    assert colour_difference(small[1], 255 - small[1])[0] > 30  # nor is its negative


def test_flat_pictures_stay_unless_their_pixels_agree() -> None:
    levels = (70, 110, 150, 190, 230)
    faint = {level: disc((level - 6, level - 6, level - 6), level) for level in levels}
    samples = [sample(f"faint/{level}", pixels) for level, pixels in faint.items()]
    samples += [sample(f"copy/{level}", faint[level] + np.uint8(1)) for level in (70, 230)]
    assert max(each.pdq[1] for each in samples) < 50
    found = vet(NearDuplicates(), samples)
    assert set(dropped(found)) | set(dropped(found).values()) == {"faint/70", "faint/230", "copy/70", "copy/230"}
    assert len(dropped(found)) == 2
    assert len(dropped(vet(NearDuplicates(quality=0), samples))) == 6  # what believing the hashes would cost
    blank = [sample(f"grey/{level}", np.full((96, 96, 3), level, np.uint8)) for level in levels]
    assert not dropped(vet(NearDuplicates(quality=0), blank)) and blank[0].pdq[1] == 0


def test_faint_copies_are_found_when_they_are_brighter_or_of_other_contrast() -> None:
    faint = (120 + (data.moon()[100:228, 200:328, None].astype(np.float64) - 110) * 0.6).repeat(3, axis=2)
    assert pdq(faint.astype(np.uint8))[1] < 50
    copies = {
        "plain": faint,
        "dark": 0.7 * faint,
        "bright": 1.25 * faint,
        "pale": faint.mean() + 0.6 * (faint - faint.mean()),
    }
    samples = [sample(name, pixels.round().astype(np.uint8)) for name, pixels in copies.items()]
    for copy in samples[1:]:
        assert len(dropped(vet(NearDuplicates(), [samples[0], copy]))) == 1
    moved = [sample("plain", faint.astype(np.uint8)), sample("moved", (faint + 80).round().astype(np.uint8))]
    assert moved[0].pdq[0].tobytes() and not dropped(vet(NearDuplicates(), moved))
    assert dropped(vet(NearDuplicates(quality=0), moved))


def test_cropped_and_framed_copies_where_they_are_asked_for() -> None:
    height, width = CAT.shape[:2]
    framed = np.full((height + 20, width + 20, 3), 255, np.uint8)
    framed[10:-10, 10:-10] = CAT
    cat, cropped, frame = sample("cat", CAT), sample("cropped", CAT[10:-10, 10:-10]), sample("framed", framed)
    samples = [cat, sample("rocket", ROCKET)]
    assert not dropped(vet(NearDuplicates(), [*samples, cropped, frame]))
    rule = NearDuplicates(crops=(0.08,))
    assert dropped(vet(rule, [*samples, cropped])) == {"cropped": "cat"}
    assert dropped(vet(rule, [*samples, frame])) == {"cat": "framed"}
    all_three = vet(rule, [*samples, cropped, frame])  # the cropped one is no copy of the framed one, which stays
    assert dropped(all_three) == {"cat": "framed"} and all_three["cropped"].evidence["group"] == 3


def test_the_best_one_stays() -> None:
    larger = np.asarray(Image.fromarray(CAT).resize((300, 300), Image.Resampling.BICUBIC))
    found = vet(NearDuplicates(), [sample("a", CAT), sample("z", larger), sample("b", CAT)])
    assert dropped(found) == {"a": "z", "b": "z"}


def test_mirrored_and_turned_copies_where_they_are_asked_for() -> None:
    names = dict(zip(TRANSFORMS, transformed(ROCKET), strict=True))
    samples = [sample(name, np.ascontiguousarray(pixels)) for name, pixels in names.items()]
    assert not dropped(vet(NearDuplicates(), samples))
    assert len(dropped(vet(NearDuplicates(transforms=TURNS), samples))) == 7
    mirrored = dropped(vet(NearDuplicates(transforms=("flip_horizontal",)), samples))
    flipped = {
        frozenset((one, other))
        for one, pixels in names.items()
        for other, its in names.items()
        if np.array_equal(pixels[:, ::-1], its)
    }
    assert {frozenset(pair) for pair in mirrored.items()} == flipped and len(flipped) == 4
    # one of two rotations suffices, whichever picture is the turned one
    for first, second in (("identity", "rotate90"), ("rotate90", "identity")):
        pair = [sample("a", np.ascontiguousarray(names[first])), sample("b", np.ascontiguousarray(names[second]))]
        assert len(dropped(vet(NearDuplicates(transforms=("rotate90",)), pair))) == 1


def test_what_another_data_set_holds_leaves_and_the_other_stays() -> None:
    samples = [sample("theirs", CAT[:, ::-1][:, ::-1], "JPEG", 50), sample("a", CAT), sample("b", ROCKET)]
    found = vet(NearDuplicates(), samples, against={"theirs"})
    assert dropped(found) == {"a": "theirs"} and found["a"].evidence["against"] is True


def test_the_same_rows_many_times_are_no_work() -> None:
    rule = NearDuplicates()
    measured = np.repeat(rule.measure([sample("white", np.full((64, 64, 3), 255, np.uint8))]), 5_000, axis=0)
    keys = [f"{number:04d}" for number in range(len(measured))]
    found = rule.resolve(keys, [{"width": 64, "height": 64}] * len(keys), measured)
    assert [finding.kept for finding in found[:3]] == [True, False, False]
    assert sum(finding.kept for finding in found) == 1


def test_settings_name_all_that_decides_and_wrong_ones_are_refused() -> None:
    assert set(NearDuplicates().setting()) == {"rule", "radius", "quality", "colour", "flat", "transforms", "crops"}
    assert NearDuplicates(transforms=("rotate90", "rotate90")).transforms == ["rotate90"]
    with pytest.raises(UserError, match="radius"):
        NearDuplicates(radius=128)
    with pytest.raises(UserError, match="crops"):
        NearDuplicates(crops=(0.08, 0.5))
    with pytest.raises(UserError, match="sideways"):
        NearDuplicates(transforms=("sideways",))


def test_differences_are_what_they_say() -> None:
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
