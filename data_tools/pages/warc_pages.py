"""Read HTML pages from WARC files (ISO 28500; plain, gzip, zstandard) or from folders of HTML files, one at a time.

The only module that uses fastwarc. Bodies are decompressed here and not by its iterator, which gives up a whole file
for one broken body. The stored and the decompressed size of a page are limited, so memory does not grow with the file.
"""

import contextlib
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from fastwarc.stream_io import BrotliReader, ChunkedReader, GzipReader, ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from data_tools.pages.warc_boundaries import RECORD, next_records
from data_tools.work.foreign_error import first_line

HTML_TYPES = ("text/html", "application/xhtml+xml")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
MAX_HEADERS = 200
RECORD_LENGTH = "record_length"  # rule of a record whose length is wrong
MOST_PACKED = 100_000  # bytes to which one byte is unpacked, in any honest archive


class PageRefused(Exception):
    """A page is not read.

    Args:
        rule: Rule that refuses it.
        value: Value that the rule examined.
        reason: The reason in words.
    """

    def __init__(self, rule: str, value: str, reason: str) -> None:
        """See the class for the arguments."""
        super().__init__(reason)
        self.rule, self.value, self.reason = rule, value, reason


@dataclass
class Page:
    """One page as it was fetched.

    Args:
        number: Its number in the archive, in which other records count, too.
        url: Its address.
        content: The body, decompressed.
        charset: Encoding that the server stated, or None.
        headers: Headers of the answer.
        fetched_at: Time of the answer, or None if unknown.
        archive: Name of the file it was read from, without its folder.
        record: Name of its record (WARC-Record-ID), or path inside the folder.
        refused: Why it is not read, with empty content; or None.
        stored: The body as the archive holds it.
    """

    number: int
    url: str
    content: bytes = b""
    charset: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    fetched_at: datetime | None = None
    archive: str = ""
    record: str = ""
    refused: PageRefused | None = None
    stored: bytes = b""

    @property
    def date(self) -> str | None:
        """Time of the answer in ISO 8601, or None."""
        return self.fetched_at.isoformat(timespec="seconds") if self.fetched_at else None


def warc_pages(path: Path, max_bytes: int) -> Iterator[Page]:
    """Yield every answer in a WARC file; those that are not readable HTML pages have the reason in ``refused``.

    A record whose stated length is wrong is refused (rule ``record_length``), and reading continues at the next one.

    Args:
        path: The file; its compression is detected.
        max_bytes: Largest page in bytes, both stored and decompressed.

    Raises:
        PageRefused: The file itself is broken from some record on.
    """
    number, starts = 0, iter((0,))
    failure: PageRefused | None = None
    while (start := next(starts, None)) is not None:
        held: Page | None = None  # until the next record shows that this one ends where it says
        position = start
        failure = None
        try:
            for page, position in _records(path, start, max_bytes):  # noqa: B007
                if held is not None:
                    yield held
                page.number, held = number, page
                number += 1
                if page.refused is not None and page.refused.rule == RECORD_LENGTH:
                    break
        except (OSError, ValueError) as error:
            message = first_line(error)
            failure = PageRefused("broken_archive", message, f"the file cannot be read after record {number - 1}")
        lies = held is not None and held.refused is not None and held.refused.rule == RECORD_LENGTH
        if failure is not None and held is not None and failure.value.startswith("Invalid WARC header"):
            lies, held.content = True, b""
            held.refused = PageRefused(RECORD_LENGTH, failure.value, "it does not end where it says")
        if lies and failure is None:  # unless another record is found
            failure = PageRefused("broken_archive", RECORD_LENGTH, f"the file cannot be read after record {number - 1}")
        if held is not None:
            yield held
            starts = next_records(path, position) if lies else iter(())
        if failure is None:
            break
    if failure is not None:
        raise failure
    if not number:
        raise PageRefused("broken_archive", path.name, "the file holds no answer of a server")
    if path.suffix == ".gz" and _is_truncated(path):  # fastwarc takes a truncated file for a complete one
        raise PageRefused("broken_archive", "unexpected end of file", "the file ends in the middle of a record")


def _records(path: Path, start: int, max_bytes: int) -> Iterator[tuple[Page, int]]:
    """Yield the answers from a position on, each with its own position; numbers are those of the caller."""
    kinds = WarcRecordType.response | WarcRecordType.resource
    size = path.stat().st_size
    with path.open("rb") as file:
        plain = file.read(4) == b"WARC"
        file.seek(start)
        for record in ArchiveIterator(file, record_types=kinds, parse_http=True, auto_decode="none", strict_mode=False):
            position, length = record.stream_pos, record.content_length
            page = _page(record, 0, path.name, max_bytes)
            longest = size - position if plain else size * MOST_PACKED
            if length > longest or (page.refused is None and _holds_record(page)):
                page.content = b""
                page.refused = PageRefused(RECORD_LENGTH, f"{length} bytes", "it does not end where it says")
            yield page, position


def _holds_record(page: Page) -> bool:
    """Whether a page continues in the next record: it holds the beginning of one, and the server stated less."""
    return RECORD in page.stored and (_header(page, "content-length") or "").strip() != str(len(page.stored))


def _is_truncated(path: Path) -> bool:
    """Whether a gzip file ends within a member (decompressing it again is cheap compared with parsing)."""
    member = zlib.decompressobj(31)
    with path.open("rb") as file, contextlib.suppress(zlib.error):
        while piece := member.unused_data or file.read(1 << 16):
            if member.eof:
                member = zlib.decompressobj(31)
            while piece and not member.eof:
                member.decompress(piece, 1 << 20)
                piece = member.unconsumed_tail
        while not member.eof and member.decompress(b"", 1 << 20):
            pass
        return not member.eof
    return True


def _page(record: WarcRecord, number: int, archive: str, max_bytes: int) -> Page:
    url = (record.headers.get("WARC-Target-URI") or "").strip().strip("<>")
    page = Page(number, url, archive=archive, record=(record.record_id or "").strip("<>"))
    try:
        page.fetched_at = _parse_date(record.headers.get("WARC-Date"))
        fields = record.http_headers.to_tuples() if record.is_http_parsed else ()
        page.headers = [(name, value) for name, value in fields[:MAX_HEADERS]]
        declared = _header(page, "content-type") or record.headers.get("Content-Type") or ""
        kind, _, rest = declared.partition(";")
        status = record.http_headers.status_code if record.is_http_parsed else 200
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise PageRefused("page_address", url[:80], "its address is not one of http or https")
        if status != 200:
            raise PageRefused("page_status", str(status), "the server did not answer with 200")
        if kind.strip().lower() not in HTML_TYPES:
            raise PageRefused("page_type", kind.strip().lower()[:80], "no HTML page")
        if len(fields) > MAX_HEADERS:
            raise PageRefused("page_headers", str(len(fields)), f"more than {MAX_HEADERS} headers")
        page.stored = record.reader.read(max_bytes + 1)
        page.content = _decoded(page, page.stored, max_bytes)
        page.charset = _charset(rest)
    except PageRefused as refused:
        page.refused = refused
    except ValueError as error:  # a host in brackets that is no address, a date that is none
        page.refused = PageRefused("page_address", url[:80], first_line(error))
    return page


def _decoded(page: Page, stored: bytes, limit: int) -> bytes:
    """Undo transfer and content encodings; many archives have done so already and kept the headers unchanged."""
    if len(stored) > limit:
        raise PageRefused("page_size", f"more than {limit} bytes", "larger than --max-page-bytes")
    if (_header(page, "transfer-encoding") or "").strip().lower() == "chunked":
        with contextlib.suppress(OSError):  # already unchunked
            stored = _read(ChunkedReader(io.BytesIO(stored)), limit)
    coding = (_header(page, "content-encoding") or "").strip().lower()
    readers = {"gzip": GzipReader, "x-gzip": GzipReader, "br": BrotliReader, "zstd": ZstdReader}
    if coding in ("", "identity") or (coding in ("gzip", "x-gzip") and stored[:2] != b"\x1f\x8b"):
        return stored
    if stored.lstrip()[:1] == b"<":
        return stored  # plain HTML, decompressed when the archive was written
    try:
        if coding == "deflate":
            return _read(GzipReader(io.BytesIO(stored), zlib=True), limit)
        if coding in readers:
            return _read(readers[coding](io.BytesIO(stored)), limit)
    except (OSError, ValueError) as error:
        raise PageRefused("page_encoding", coding, f"its body cannot be decompressed ({first_line(error)})") from None
    raise PageRefused("page_encoding", coding[:80], "an unknown content encoding")


def _read(reader: GzipReader | BrotliReader | ZstdReader | ChunkedReader, limit: int) -> bytes:
    pieces, size = [], 0
    while piece := reader.read(min(1 << 16, limit + 1 - size)):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise PageRefused("page_size", f"more than {limit} bytes", "larger than --max-page-bytes, decompressed")
    return b"".join(pieces)


def _header(page: Page, name: str) -> str | None:
    return next((value for key, value in page.headers if key.casefold() == name), None)


def _charset(parameters: str) -> str | None:
    for part in parameters.split(";")[:5]:
        name, _, value = part.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'")[:40] or None
    return None


def _parse_date(date: str | None) -> datetime | None:
    try:
        parsed = datetime.fromisoformat((date or "").strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def folder_files(folder: Path) -> list[Path]:
    """Return the HTML files below a folder, sorted, without links that lead out of it."""
    root = folder.resolve()
    found = []
    for inner, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(inner, name) for name in names if name.lower().endswith(HTML_SUFFIXES)]
    return sorted(path for path in found if path.is_file() and path.resolve().is_relative_to(root))


def folder_pages(folder: Path, files: list[Path], base_url: str, max_bytes: int) -> Iterator[Page]:
    """Yield the pages of some files of a folder; their addresses are ``base_url`` and the path inside the folder."""
    for number, path in enumerate(files):
        inside = path.relative_to(folder).as_posix()
        page = Page(number, base_url.rstrip("/") + "/" + quote(inside), archive=folder.name, record=inside)
        with path.open("rb") as file:
            page.content = file.read(max_bytes + 1)
        if len(page.content) > max_bytes:
            page.content = b""
            page.refused = PageRefused("page_size", f"more than {max_bytes} bytes", "larger than --max-page-bytes")
        yield page


def archive_digest(path: Path) -> str:
    """Return a digest of an archive's size and its first and last MiB, which identifies its content."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        digest.update(file.read(1 << 20))
    return digest.hexdigest()
