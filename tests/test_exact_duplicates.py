import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from data_tools.vetting.exact_duplicates import ExactDuplicates
from data_tools.vetting.vetting_rule import Finding, Sample

PIXELS = data.chelsea()[:64, :96]


def stored(kind: str, pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def sample(key: str, content: bytes, extension: str = "png", sha256: str | None = None) -> Sample:
    return Sample(key, {"sha256": sha256 or hashlib.sha256(content).hexdigest()}, extension, content)


def vet(rule: ExactDuplicates, samples: list[Sample], against: set[str] | None = None) -> dict[str, Finding]:
    keys = [each.key for each in samples]
    records = [
        {"width": each.pixels.shape[1], "height": each.pixels.shape[0]}
        | ({"against": True} if each.key in (against or ()) else {})
        for each in samples
    ]
    measured = rule.measure(samples)
    assert measured.shape == (len(samples), 64)
    return dict(zip(keys, rule.resolve(keys, records, measured), strict=True))


SAMPLES = [
    sample("b", stored("PNG")),
    sample("a", stored("PNG")),
    sample("c", stored("PNG", compress_level=0)),  # other bytes, the same pixels
    sample("d", stored("WEBP", lossless=True), "webp"),
    sample("e", stored("JPEG"), "jpg"),  # other pixels
    sample("f", stored("PNG", PIXELS.reshape(96, 64, 3))),  # the same values in another shape
]


def test_one_of_each_file_and_of_each_picture_stays() -> None:
    found = vet(ExactDuplicates(), SAMPLES)
    assert [key for key, finding in found.items() if finding.kept] == ["a", "e", "f"]
    assert found["b"].evidence == {"kept": "a", "group": 4} and found["b"].value == "same file"
    assert found["c"].value == found["d"].value == "same pixels" and "a" in found["c"].reason
    assert found["a"].value == "best of 4" and found["e"].value == "alone"


def test_files_alone() -> None:
    found = vet(ExactDuplicates(pixels=False), SAMPLES)
    assert [key for key, finding in found.items() if not finding.kept] == ["b"]


def test_the_file_is_the_one_that_was_fetched() -> None:
    digest = hashlib.sha256(b"the original").hexdigest()
    two = [sample("a", stored("PNG"), sha256=digest), sample("b", stored("JPEG"), "jpg", sha256=digest)]
    assert vet(ExactDuplicates(), two)["b"].value == "same file"
    broken = [sample("a", stored("PNG"), sha256="none"), sample("b", stored("JPEG"), "jpg", sha256="none")]
    assert all(finding.kept for finding in vet(ExactDuplicates(), broken).values())


def test_what_another_data_set_holds_leaves() -> None:
    found = vet(ExactDuplicates(), SAMPLES, against={"c", "d"})
    assert not found["a"].kept and not found["b"].kept and found["c"].kept and found["d"].kept
    assert found["a"].evidence["against"] is True and found["a"].evidence["kept"] in ("c", "d")


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_samples_does_not_matter(seed: int) -> None:
    shuffled = [SAMPLES[place] for place in np.random.default_rng(seed).permutation(len(SAMPLES))]
    assert vet(ExactDuplicates(), shuffled) == {
        each.key: vet(ExactDuplicates(), SAMPLES)[each.key] for each in shuffled
    }
