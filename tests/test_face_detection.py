"""data_tools/vetting/face_detection.py: the rule on lists of samples: faces blurred for good, dropped, or recorded."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.face_images import ASTRONAUT, portraits, read_picture
from toys.shards import small_sample, write_samples
from toys.signed_images import sign, training_mining
from toys.vetting import pixel_sample

from data_tools.vet_shards import main as vet
from data_tools.vetting.face_cascade import FaceCascade
from data_tools.vetting.face_detection import FaceDetection, blur_face
from data_tools.vetting.vetting_rule import Sample
from leam_mm.data.ledger import read_ledger
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError

pytest.importorskip("skimage")
CONFIG = Path(__file__).parent.parent / "configs" / "vet_detectors.yaml"


def signed() -> bytes:
    """A picture that refuses to be mined, with a real signature."""
    buffer = io.BytesIO()
    Image.fromarray(read_picture("coins.png")).save(buffer, "JPEG")
    return sign(buffer.getvalue(), assertions=[training_mining(data_mining="notAllowed")])


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [pixel_sample(read_picture(name)) for name in ("astronaut.png", "coffee.png", "camera.png", "chelsea.png")]


def test_blur(samples: list[Sample]):
    rule = FaceDetection()
    findings = rule.judge(samples)
    assert [finding.value for finding in findings] == ["1", "0", "1", "0"] and all(f.kept for f in findings)
    assert [finding.transform for finding in findings] == ["blur_faces:1", "", "blur_faces:1", ""]
    assert [finding.pixels is None for finding in findings] == [False, True, False, True]
    assert findings[1].record == {"faces": []} and findings[1].evidence == {}
    (box,) = findings[0].record["faces"]
    assert findings[0].evidence["faces"] == [[*box, findings[0].evidence["faces"][0][4]]]
    json.dumps([finding.evidence for finding in findings])
    before, after = samples[0].pixels, findings[0].pixels
    assert after.shape == before.shape and after.dtype == np.uint8
    left, top, right, bottom = ASTRONAUT
    assert (before[top:bottom, left:right] != after[top:bottom, left:right]).any(axis=2).mean() > 0.75
    assert np.array_equal(before[300:], after[300:])
    # Nobody finds the face afterwards, not even with lower thresholds.
    assert FaceCascade(20, (0.4, 0.4, 0.4)).find([np.ascontiguousarray(after[:250, 100:350])]) == [[]]
    assert samples[0].pixels is before and not before.flags.writeable


def test_drop_and_record(samples: list[Sample]):
    assert [(f.kept, f.reason) for f in FaceDetection("drop").judge(samples)] == [
        (False, "shows 1 face"),
        (True, ""),
        (False, "shows 1 face"),
        (True, ""),
    ]
    recorded = FaceDetection("record").judge(samples)
    assert all(finding.kept and finding.pixels is None and not finding.transform for finding in recorded)
    assert [len(finding.record["faces"]) for finding in recorded] == [1, 0, 1, 0]


def test_one_by_one_or_together_is_the_same(samples: list[Sample]):
    rule = FaceDetection()
    together, alone = rule.judge(samples), [rule.judge([each])[0] for each in samples]
    for one, other in zip(together, alone, strict=True):
        assert (one.value, one.evidence, one.record) == (other.value, other.evidence, other.record)
        assert one.pixels is None or np.array_equal(one.pixels, other.pixels)


def test_only_the_blocks_means_are_left():
    """Two different faces whose blocks have the same mean colours become the same bytes: the rest is gone."""
    random = np.random.default_rng(0)
    first = np.repeat(np.repeat(portraits()[0], 4, 0), 4, 1).copy()  # 100 x 100, blocks of 25
    second = first.copy()
    for row in range(0, 100, 25):
        for column in range(0, 100, 25):
            block = second[row : row + 25, column : column + 25].reshape(-1, 3)
            second[row : row + 25, column : column + 25] = random.permutation(block).reshape(25, 25, 3)
    assert (first != second).mean() > 0.5
    inside = [50 - 30, 50 - 30, 50 + 30, 50 + 30]
    for picture in (first, second):
        blur_face(picture, [10, 10, 90, 90], margin=0.125)
    assert np.array_equal(first[inside[1] : inside[3], inside[0] : inside[2]], second[20:80, 20:80])


def test_blur_at_the_border_and_of_nothing():
    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    before = picture.copy()
    blur_face(picture, [-20, -20, 10, 10])
    assert (picture[:8, :8] != before[:8, :8]).any() and np.array_equal(picture[20:, 20:], before[20:, 20:])
    blur_face(picture, [100, 100, 120, 120])
    blur_face(picture, [5, 5, 6, 6])


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_people_who_lie(turn: int):
    upright = read_picture("astronaut.png")[20:270, 100:360]
    left, top, right, bottom = ASTRONAUT[0] - 100, ASTRONAUT[1] - 20, ASTRONAUT[2] - 100, ASTRONAUT[3] - 20
    marked = np.zeros(upright.shape[:2], bool)
    marked[top:bottom, left:right] = True
    rows, columns = np.nonzero(np.rot90(marked, turn))
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    turned = pixel_sample(np.ascontiguousarray(np.rot90(upright, turn)))
    (finding,) = FaceDetection("record", turns=True).judge([turned])
    assert any(np.abs(np.array(box) - expected).max() < 30 for box in finding.record["faces"])


def test_only_turns_find_portraits_upside_down():
    samples = [pixel_sample(np.repeat(np.repeat(face[::-1, ::-1], 2, 0), 2, 1)) for face in portraits()[:12]]
    for turns, low, high in ((False, 0, 3), (True, 10, 12)):
        found = FaceDetection("record", turns=turns).judge(samples)
        assert low <= sum(finding.value != "0" for finding in found) <= high


def test_large_pictures_are_shrunk_for_the_search_and_blurred_in_full():
    large = np.asarray(Image.fromarray(read_picture("astronaut.png")).resize((1024, 1024)))
    (finding,) = FaceDetection(most_pixels=512 * 512).judge([pixel_sample(large)])
    assert finding.evidence["smallest_face"] == 40
    (box,) = finding.record["faces"]
    assert np.abs(np.array(box) / 2 - ASTRONAUT).max() < 20
    assert finding.pixels.shape == large.shape


def test_the_setting_names_all_that_decides():
    setting = FaceDetection().setting()
    json.dumps(setting)
    assert setting["action"] == "blur" and len(setting["weights"]) == 3 and setting["thresholds"] == [0.5, 0.6, 0.6]
    assert not any(name.startswith("_") for name in setting)
    for wrong in ({"action": "hide"}, {"smallest": 5}, {"margin": -1.0}, {"most_pixels": 10}):
        with pytest.raises(UserError):
            FaceDetection(**wrong)


def test_the_recipe_of_the_detectors(tmp_path: Path):
    """Reserved pictures leave, faces are blurred, the rest keeps its bytes: vet_shards with vet_detectors.yaml."""
    if importlib.util.find_spec("nudenet") is None:
        pytest.skip("the recipe's network for nudity comes with the extra nudity")
    cat, refused = pixel_sample(read_picture("chelsea.png")).content, signed()
    stored = [pixel_sample(read_picture("astronaut.png")[:300, 80:380]).content, cat, refused, refused]
    bases = ["art4_general", "art4_general", "art4_general", "art3_research"]
    rows = [
        small_sample(n, image=raw, legal_basis=basis) for n, (raw, basis) in enumerate(zip(stored, bases, strict=True))
    ]
    shards = write_samples(tmp_path / "shards", rows)
    vet(["--shards", str(shards), "--rules", str(CONFIG), "--output", str(tmp_path / "vetted"), "--materialise"])
    written = dict(read_samples(tmp_path / "vetted"))
    assert sorted(written) == ["000000", "000001", "000003"]
    records = {key: json.loads(found["json"]) for key, found in written.items()}
    assert written["000001"]["png"] == cat and written["000003"]["jpg"] == refused
    assert "blur_faces:1" in records["000000"]["transforms"] and len(records["000000"]["faces"]) == 1
    assert records["000001"]["faces"] == [] and 0 <= records["000001"]["nudity"] < 0.25
    blurred = np.asarray(Image.open(io.BytesIO(written["000000"]["png"])).convert("RGB"))
    assert FaceDetection("record").judge([pixel_sample(blurred)])[0].value == "0"
    ledger = [row for batch in read_ledger(tmp_path / "vetted" / "ledger.parquet") for row in batch.to_pylist()]
    rows = {(row["key"], row["rule"]): row for row in ledger}
    assert rows["000002", "file_rights"]["kept"] is False and "notAllowed" in rows["000002", "file_rights"]["reason"]
    assert json.loads(rows["000000", "faces"]["evidence"])["faces"][0][4] > 0.9
