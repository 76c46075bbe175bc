"""Index of one tar that others made: its samples, whatever the order of their members, and their records.

Members with the same name before their last dot are one sample. Image, text and json are read; other members, such as
pickles, are counted by their endings and never decoded. A sample without captions or without an image that the loader
can read is left out, with the reason.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_tools.indexing.foreign_record import Rights, foreign_record, plain_key
from data_tools.indexing.member_captions import MAX_TEXT, CaptionRule, Sighting
from data_tools.indexing.tar_stream import READ, Member, TarStream
from data_tools.links.withdrawn_lists import read_lists
from data_tools.samples.image_header import image_header, other_format
from data_tools.work.foreign_error import first_line
from data_tools.work.time_limit import TimeLimit, TookTooLong
from data_tools.work.workers import begin_sample
from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import MAX_PIXELS
from leam_mm.data.index_file import records_line
from leam_mm.json_text import parse_object

IMAGES = ("jpg", "jpeg", "png", "webp")  # in the order in which one of several is taken
OTHER_IMAGES = ("jpe", "jfif", "gif", "bmp", "tif", "tiff", "avif", "heic", "jxl")
MAX_IMAGE = 256_000_000  # bytes, as data_tools/vetting/read_samples.py
MAX_JSON = 2_000_000  # bytes
MAX_ENDINGS = 8  # of a name that are looked at; a name of 64,000 dots would take a second
MAX_TEXTS = 1 << 30  # bytes of all texts of a tar, which are held in memory
JSON = "json"
ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True)
WITHDRAWN = "withdrawn earlier"
CRASH = "decoding it ended two processes"


@dataclass(frozen=True)
class IndexRule:
    """How tars are indexed.

    Args:
        captions: Where the captions are.
        rights: What the user states of all samples.
        image_members: Suffixes of the members that are the images; by default those of image files.
        verify: Whether to decode each image.
        withdrawn: Folders of lists of what was withdrawn; see data_tools/links/withdrawn_lists.py.
    """

    captions: CaptionRule
    rights: Rights
    image_members: tuple[str, ...] = ()
    verify: bool = False
    withdrawn: tuple[Path, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """Suffixes of images, in the order in which one of several is taken."""
        return self.image_members or (*IMAGES, *OTHER_IMAGES)


@dataclass(slots=True)
class _Image:
    """An image member; ``fault`` says why the loader cannot read it."""

    suffix: str
    offset: int
    size: int
    digest: Any = None
    header: tuple[str, int, int] = ("", 0, 0)
    fault: str = ""


@dataclass(slots=True)
class _Group:
    """The members of one sample."""

    key: str
    images: dict[str, _Image] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


@dataclass
class TarIndex:
    """The index of one tar.

    Args:
        name: File name of the tar.
        sha256: Digest of the tar.
        size: Its bytes.
        fault: Where its reading ended early, or None.
        keys: Key of each sample, unique in the tar.
        index: Offset, size and suffix of each image, and digest of image and record.
        records: Record of each sample, as stored.
        decisions: Ledger rows of the samples, and then of those that were left out.
        left_out: Number of samples that were left out, by reason.
        unused: Number of members that are not used, by suffix.
        notes: What had to be assumed, with counts.
        img2dataset: Number of samples with the json of img2dataset.
    """

    name: str
    sha256: str = ""
    size: int = 0
    fault: str | None = None
    keys: list[str] = field(default_factory=list)
    index: list[tuple[int, int, str, str]] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    img2dataset: int = 0

    def lines(self, keys: list[str]) -> bytes:
        """Return the file of records under the given keys."""
        return b"".join(
            records_line(key, *place, record) for key, place, record in zip(keys, self.index, self.records, strict=True)
        )


def split_name(name: str, compound: tuple[str, ...] = ()) -> tuple[str, str] | None:
    """Split a member's name into the key of its sample and its suffix in lower case.

    The suffix begins at the last dot of the file name, unless it is one of several parts that the user named. Hidden
    files, and those that macOS adds, belong to no sample.
    """
    folder, slash, base = name.removeprefix("./").rpartition("/")
    if not base or base.startswith(".") or folder.partition("/")[0] == "__MACOSX":
        return None
    for ending in compound:
        if base.lower().endswith(f".{ending}") and len(base) > len(ending) + 1:
            return folder + slash + base[: -len(ending) - 1], ending
    stem, dot, suffix = base.rpartition(".")
    return (folder + slash + stem, suffix.lower()) if dot else None


class TarIndexer:
    """Indexes tars by one rule.

    Args:
        rule: The rule.
    """

    def __init__(self, rule: IndexRule) -> None:
        """See the class for the arguments."""
        self.rule = rule
        named = (*rule.captions.members, *rule.image_members)
        self.compound = tuple(sorted((name for name in named if "." in name), key=len, reverse=True))
        self.texts = frozenset({*rule.captions.members, JSON, *(("cls",) if rule.captions.class_names else ())})
        self.images = frozenset(rule.images)
        self.withdrawn = read_lists(rule.withdrawn)
        self._last: tuple[str, tuple[str, str] | None] = ("", None)

    def index(self, file: BinaryIO, name: str, size: int = READ) -> TarIndex:
        """Read one tar of an expected size from start to end."""
        found, stream = TarIndex(name), TarStream(file, name, min(READ, size + 1))
        groups = list(self._groups(stream, found))
        found.sha256, found.size, found.fault = stream.digest.hexdigest(), stream.size, stream.fault
        whole = {group.key for group in groups if group.images and group.texts}
        seen: Counter[str] = Counter()
        refused: list[dict[str, Any]] = []
        for group in groups:
            found.unused.update(group.others)
            key = plain_key(group.key)
            reason = self._add(group, key, found, seen)
            if reason == "no caption" and _is_further(group.key, whole):
                found.unused.update(f"{group.key.rpartition('.')[2]}.{suffix}" for suffix in group.images)
            elif reason is not None and (group.images or group.texts.keys() - {JSON}):
                found.left_out[reason.partition(":")[0]] += 1
                decision = {"key": key, "rule": reason.partition(":")[0], "value": name, "kept": False}
                refused.append(decision | {"reason": reason, "legal_basis": self.rule.rights.legal_basis})
        found.decisions += refused
        return found

    def look(self, file: BinaryIO, name: str, seen: Sighting, most: int) -> None:
        """Count members and fields of the first samples of a tar."""
        stream, groups = TarStream(file, name), {}  # type: ignore[var-annotated]
        for member in stream.members(lambda path, size: path.lower().endswith(".json") and size <= MAX_JSON):
            if member.plain and (parts := split_name(member.name, self.compound)):
                suffixes, _ = groups.setdefault(parts[0], ([], []))
                suffixes.append(parts[1])
                if member.content is not None:
                    groups[parts[0]][1].append(bytes(member.content))
            if len(groups) > most:
                break
        whole = [group for group in groups.values() if self.images & {*group[0]}] or list(groups.values())
        for suffixes, texts in whole[:most]:
            seen.add(suffixes, _parse(texts[0]) if texts else None)

    def _groups(self, stream: TarStream, found: TarIndex) -> Iterator[_Group]:
        """Give the samples, in the order of their first members."""
        groups: dict[str, list[_Group]] = {}
        times: Counter[tuple[str, str]] = Counter()
        order: list[_Group] = []
        texts = 0
        for member in stream.members(self._wanted):
            parts = self._split(member.name)
            if not member.plain or parts is None:
                found.unused["hidden files" if member.plain else "links, folders, devices and sparse files"] += 1
                continue
            key, suffix = parts
            known, number = groups.setdefault(key, []), times[parts]  # a name again belongs to the next sample
            times[parts] += 1
            if number == len(known):
                known.append(_Group(key))
                order.append(known[-1])
            group = known[number]
            if suffix in self.images:
                group.images[suffix] = self._image(member, suffix, len(order))
            elif suffix in self.texts and member.content is not None and texts <= MAX_TEXTS:
                group.texts[suffix] = bytes(member.content)
                texts += member.size
            else:
                group.others.append(suffix if len(suffix) <= 20 and suffix.isprintable() else "?")
        return iter(order)

    def _split(self, name: str) -> tuple[str, str] | None:
        if self._last[0] != name:
            self._last = (name, split_name(name, self.compound))
        return self._last[1]

    def _wanted(self, name: str, size: int) -> bool:
        parts = self._split(name)
        if parts is None:
            return False
        if parts[1] in self.images:
            return size <= MAX_IMAGE
        return parts[1] in self.texts and size <= (MAX_JSON if parts[1] == JSON else MAX_TEXT)

    def _image(self, member: Member, suffix: str, number: int) -> _Image:
        image, content = _Image(suffix, member.offset, member.size), member.content
        if content is None:
            image.fault = f"image larger than {MAX_IMAGE} bytes"
            return image
        header = image_header(content)  # type: ignore[arg-type]
        if header is None:
            other = other_format(bytes(content[:32]))
            image.fault = f"image in a format that is not read: {other}" if other else "damaged image"
            image.fault = "empty image" if not content else image.fault
        elif header[1] * header[2] > MAX_PIXELS:
            image.fault = f"image of more than {MAX_PIXELS} pixels"
        elif self.rule.verify and (fault := _decoding_fault(bytes(content), number)):
            image.fault = f"damaged image: {fault}"
        else:
            image.header, image.digest = header, hashlib.sha256(content)
            if self.withdrawn and self._is_withdrawn(image.digest.hexdigest(), bytes(content)):
                image.fault = WITHDRAWN
        return image

    def _is_withdrawn(self, digest: str, content: bytes) -> bool:
        try:
            return (
                self.withdrawn.find_image((digest,), lambda: np.asarray(open_image(content).convert("RGB"))) is not None
            )
        except Exception:  # an image that cannot be decoded; Pillow raises many types
            return False

    def _add(self, group: _Group, key: str, found: TarIndex, seen: Counter[str]) -> str | None:
        """Add a sample to the index, or return why it is left out."""
        usable = sorted(group.images.values(), key=lambda image: self.rule.images.index(image.suffix))
        if not usable:
            return "no image"
        image = next((each for each in usable if not each.fault), None)
        if image is None:
            return usable[0].fault
        said = _parse(group.texts[JSON]) if JSON in group.texts else None
        if JSON in group.texts and said is None:
            found.notes["json members that cannot be read"] += 1
        captions = self.rule.captions.captions(group.texts, said, found.notes)
        if not captions:
            return "no caption"
        found.unused.update(each.suffix for each in usable if each is not image)
        stored = image.digest.hexdigest()
        record = foreign_record(
            found.name, group.key, said, captions, image.header, stored, self.rule.rights, self.rule.captions.fields
        )
        if self.withdrawn and (
            self.withdrawn.find_address([record["url"] or ""])
            or self.withdrawn.find_image((record["sha256"],), lambda: np.zeros((64, 64, 3), np.uint8))
        ):
            return WITHDRAWN
        content = ENCODER.encode(record).encode("utf-8", "replace")
        seen[key] += 1
        if seen[key] > 1:
            found.notes["keys that occur again in their tar"] += 1
            key = f"{key}~{seen[key]}"
        image.digest.update(content)
        found.keys.append(key)
        found.index.append((image.offset, image.size, image.header[0], image.digest.hexdigest()))
        found.records.append(content)
        found.img2dataset += record["crawler"] is not None
        found.decisions.append(_decision(record, image))
        return None


def _decision(record: Mapping[str, Any], image: _Image) -> dict[str, Any]:
    """Return the ledger row of a sample, without its key."""
    kept = {"rule": "kept", "kept": True, "language": record["captions"][0]["language"], "bytes": image.size}
    names = ("uid", "url", "domain", "sha256", "width", "height", "licence", "legal_basis")
    return kept | {name: record[name] for name in names}


def _is_further(key: str, whole: set[str]) -> bool:
    """Return whether an image without captions is a further member of a sample, such as ``0001.seg.png``."""
    base = key.rpartition("/")[2]
    ends = [at for at, letter in enumerate(base) if letter == "." and at][-MAX_ENDINGS:]
    return any(key[: len(key) - len(base) + at] in whole for at in ends)


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(open_image(content).convert("RGB"))


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(text)
    except ValueError:
        return None


def _decoding_fault(content: bytes, number: int) -> str | None:
    if not begin_sample(number):
        return CRASH
    try:
        with TimeLimit(), open_image(content) as image:
            image.load()
    except TookTooLong as error:
        return str(error)
    except Exception as error:  # Pillow raises many types on damaged and hostile files
        return first_line(error)
    return None
