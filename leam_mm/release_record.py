"""leam_mm_release.json: the digests of all files of a release, facts about them, and a digest of its own bytes.

``own_sha256`` is the SHA-256 of the file's bytes in which these 64 digits are replaced by zeros. It names the release,
and a change of any other byte of the file contradicts it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from leam_mm.errors import UserError
from leam_mm.files import write_text
from leam_mm.json_text import parse_object

RELEASE = "leam_mm_release.json"
SIGNATURE = "model.sig"  # written after the record, over all other files
OWN = "own_sha256"
FORMAT = "leam_mm release 2"
MAX_SIZE = 1 << 24  # bytes
MAX_FILE = 1 << 50  # bytes, of a stated file
OWN_FIELD = re.compile(rb'"own_sha256": "([0-9a-f]{64})"')
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StatedFile:
    """What a record states about a file.

    Args:
        sha256: Digest of its content, 64 hex digits.
        bytes: Size; None in records of older releases, which may state none.
    """

    sha256: str
    bytes: int | None


@dataclass(frozen=True)
class ReleaseRecord:
    """Content of leam_mm_release.json.

    Args:
        content: The whole object.
        files: Stated files by their path inside the release.
        own_sha256: Name of the release by content; None in releases of format 1.
    """

    content: dict[str, Any]
    files: dict[str, StatedFile]
    own_sha256: str | None


def write_record(folder: Path, digests: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """Write the record of a finished folder, and return the release's name by content.

    Args:
        folder: The release; all other files are complete.
        digests: SHA-256 of each of them by path inside the release.
        facts: What the record states beside the files; values that JSON can hold.
    """
    files = {
        name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in sorted(digests.items())
    }
    head = {key: facts[key] for key in ("name", "version", "licence") if key in facts}
    content = {"format": FORMAT, **head, "files": files, **facts, OWN: "0" * 64}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    start, field, end = text.rpartition(f'"{OWN}": "{"0" * 64}"')
    write_text(folder / RELEASE, start + field.replace("0" * 64, digest) + end)
    return digest


def read_record(folder: Path) -> ReleaseRecord:
    """Read the record of a release and compare it with its own digest.

    Raises:
        UserError: It is missing, damaged, or names files outside the release.
    """
    path = folder / RELEASE
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("it is no regular file")
        if path.stat().st_size > MAX_SIZE:
            raise ValueError(f"it is larger than {MAX_SIZE} bytes")
        content = path.read_bytes()
        own = check_own_digest(content)
        record = parse_object(content)
        if own is None and record.get("format") == FORMAT:
            raise ValueError(f"it has no {OWN}")
        return ReleaseRecord(record, _stated_files(record.get("files")), own)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used ({str(error)[:300]}): copy the release again") from None


def check_own_digest(content: bytes) -> str | None:
    """Return the digest that a record states about itself; None if it states none.

    Raises:
        ValueError: It is not the digest of the record.
    """
    found = OWN_FIELD.findall(content)
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"it states {OWN} {len(found)} times")
    stated = found[0]
    computed = hashlib.sha256(OWN_FIELD.sub(b'"own_sha256": "%b"' % (b"0" * 64), content)).hexdigest()
    if computed != stated.decode():
        raise ValueError(f"its bytes were changed: they do not give the {OWN} that it states")
    return computed


def _stated_files(files: object) -> dict[str, StatedFile]:
    if not isinstance(files, dict):
        raise ValueError("files is no object")
    stated = {}
    for name, facts in files.items():
        if fault := name_fault(name):
            raise ValueError(f"files names {name!r:.200}: {fault}")
        sha256, size = (facts.get("sha256"), facts.get("bytes")) if isinstance(facts, dict) else (None, None)
        if not isinstance(sha256, str) or not DIGEST.fullmatch(sha256):
            raise ValueError(f"files: sha256 of {name!r:.200} is {sha256!r:.80}, not 64 hex digits")
        if size is not None and (type(size) is not int or not 0 <= size <= MAX_FILE):
            raise ValueError(f"files: bytes of {name!r:.200} is {size!r:.80}")
        stated[name] = StatedFile(sha256, size)
    return stated


def name_fault(name: str) -> str | None:
    """Return why a name is not the path of a file inside a release, or None.

    Args:
        name: Path with forward slashes, relative to the release.
    """
    if not name or not name.isprintable():
        return "a name is printable and not empty"
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        return "a name is relative and has forward slashes"
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).as_posix() != name or name == ".":
        return "a name stays inside the release"
    if set(name) & set("<>&\"'`|*?:"):
        return "a name has no characters of HTML or of a shell"
    return None
