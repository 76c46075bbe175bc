"""vetting/face_cascade.py: real faces are found where they are, in one picture or many, and none where none is."""

import numpy as np
import pytest
from toys.face_images import ASTRONAUT, face_free, is_hit, portraits, read_picture, with_faces

from data_tools.vetting.face_cascade import FaceCascade, suppress

pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def cascade() -> FaceCascade:
    return FaceCascade(20, (0.5, 0.6, 0.6))


def box(face) -> tuple[float, float, float, float]:
    return face.left, face.top, face.right, face.bottom


def test_the_astronaut_is_found_once(cascade: FaceCascade):
    ((face,),) = cascade.find([read_picture("astronaut.png")])
    assert is_hit(box(face), ASTRONAUT) and face.score > 0.95


def test_batches_give_the_same_faces_as_single_images(cascade: FaceCascade):
    pictures = [picture.pixels for picture in with_faces([40], copies=2)][:6]
    pictures += [read_picture("astronaut.png")[:300, :400], np.zeros((5, 300, 3), np.uint8), face_free(200)[1]]
    together = cascade.find(pictures)
    assert sum(map(len, together)) >= 6
    for faces, picture in zip(together, pictures, strict=True):
        (alone,) = cascade.find([picture])
        assert len(alone) == len(faces)
        for one, other in zip(alone, faces, strict=True):
            assert np.allclose(box(one), box(other), atol=0.01) and abs(one.score - other.score) < 1e-4


def test_recall_on_real_faces(cascade: FaceCascade):
    """A floor below what tests/benchmarks/detectors.py measures: the networks must not get worse unnoticed."""
    pictures = list(with_faces([48], copies=10, side=128))[::4]
    found = cascade.find([picture.pixels for picture in pictures])
    hits = [
        any(is_hit(box(face), picture.box) for face in faces) for faces, picture in zip(found, pictures, strict=True)
    ]
    assert np.mean(hits) >= 0.9


def test_portraits_that_fill_the_image(cascade: FaceCascade):
    found = cascade.find([np.repeat(np.repeat(face, 2, 0), 2, 1) for face in portraits()])
    assert np.mean([bool(faces) for faces in found]) >= 0.9


def test_images_without_faces(cascade: FaceCascade):
    found = cascade.find(face_free(192))
    assert sum(map(len, found)) <= 2


def test_odd_sizes(cascade: FaceCascade):
    shapes = [(1, 1), (1, 900), (20, 20), (33, 21), (19, 400)]
    assert cascade.find([np.full((*shape, 3), 128, np.uint8) for shape in shapes]) == [[]] * len(shapes)
    assert cascade.find([]) == []


def test_suppression_is_per_image():
    boxes = np.array([[0, 0, 10, 10, 0.9], [1, 1, 11, 11, 0.8], [0, 0, 10, 10, 0.7], [50, 50, 60, 60, 0.1]])
    assert sorted(suppress(np.array([0, 0, 1, 1]), boxes, 0.5)) == [0, 2, 3]
    assert suppress(np.zeros(0, np.int64), np.zeros((0, 5)), 0.5).shape == (0,)
