"""vetting/nudity.py: the network runs, gives its published classes, each time the same, little on plain pictures.

There are no pictures of nudity among our tests, so nothing here says how much of it is found.
"""

import importlib.util
import json

import numpy as np
import pytest
from toys.face_images import face_free, read_picture
from toys.vetting import pixel_sample

from data_tools.vetting.nudity import EXPOSED, Nudity, class_names
from leam_mm.errors import UserError

pytest.importorskip("skimage")
if importlib.util.find_spec("nudenet") is None:  # not imported: its code is not used
    pytest.skip("the network comes with the extra nudity", allow_module_level=True)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [read_picture("astronaut.png"), read_picture("camera.png"), *face_free(256)[:5]]


@pytest.fixture(scope="module")
def rule() -> Nudity:
    return Nudity()


def test_ordinary_photographs_stay(rule: Nudity, pictures: list[np.ndarray]):
    findings = rule.judge([pixel_sample(picture) for picture in pictures])
    dropped = [finding for finding in findings if not finding.kept]
    assert len(dropped) <= 1 and all(finding.pixels is None for finding in findings)  # the coffee cup, at 0.3
    scores = [finding.record["nudity"] for finding in findings]
    assert scores == [float(finding.value) for finding in findings] and sorted(scores)[-2] < 0.2
    json.dumps([finding.evidence for finding in findings])
    # The network is awake: it sees the astronaut's face, and says whose sex it takes it for.
    assert findings[0].evidence["FACE_FEMALE"] > 0.5


def test_published_classes(rule: Nudity, pictures: list[np.ndarray]):
    scores = rule.scores(pictures)
    assert scores.shape == (len(pictures), 18) and scores.min() >= 0 and scores.max() <= 1
    assert set(EXPOSED) < set(rule._names) and {"FACE_MALE", "FEET_EXPOSED", "BELLY_COVERED"} < set(rule._names)


def test_together_or_alone_and_again_the_same(rule: Nudity, pictures: list[np.ndarray]):
    together = rule.scores(pictures)
    assert np.array_equal(together, rule.scores(pictures))
    assert np.allclose(together, np.concatenate([rule.scores([picture]) for picture in pictures]), atol=1e-5)


def test_the_threshold_drops_at_its_value(pictures: list[np.ndarray]):
    """With faces counted as if they were nudity, because this is what the network finds in the pictures here."""
    rule = Nudity(threshold=0.5, classes=("FACE_FEMALE",))
    astronaut, coffee = rule.judge([pixel_sample(pictures[0]), pixel_sample(read_picture("coffee.png"))])
    assert not astronaut.kept and "the threshold is 0.5" in astronaut.reason and coffee.kept
    assert Nudity(threshold=None, classes=("FACE_FEMALE",)).judge([pixel_sample(pictures[0])])[0].kept


def test_settings(rule: Nudity):
    setting = rule.setting()
    json.dumps(setting)
    assert setting["threshold"] == 0.25 and len(setting["weights"]) == 64
    for wrong in ({"threshold": 0.0}, {"threshold": 2.0}, {"side": 300}):
        with pytest.raises(UserError):
            Nudity(**wrong)
    with pytest.raises(UserError, match="has no class"):
        Nudity(classes=("ELBOW",)).judge([pixel_sample(np.zeros((32, 32, 3), np.uint8))])


def test_names_of_the_file():
    assert class_names("{0: 'A_B', 1: 'C'}") == ["A_B", "C"]
    for text in ("", "{}", "{1: 'A'}", "{0: 'A', 2: 'B'}", "names"):
        with pytest.raises(UserError, match="cannot be read"):
            class_names(text)
