"""WARC files for tests and benchmarks, written with fastwarc."""

from pathlib import Path

from fastwarc.stream_io import GzipWriter, ZstdWriter
from fastwarc.warc import WarcRecord, WarcRecordType

DATE = "2026-01-02T03:04:05Z"


class WarcFile:
    """Writer of a WARC file of server answers.

    Args:
        path: Its suffix selects the compression: .gz, .zst, or none.
    """

    def __init__(self, path: Path) -> None:
        self.count, self.file = 0, path.open("wb")
        kinds = {".gz": GzipWriter, ".zst": ZstdWriter}
        self.writer = kinds[path.suffix](self.file) if path.suffix in kinds else self.file

    def __enter__(self) -> "WarcFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.close()
        self.file.close()

    def add(
        self,
        url: str,
        body: bytes | str,
        kind: str = "text/html; charset=utf-8",
        status: str = "200 OK",
        headers: tuple[tuple[str, str], ...] = (),
        date: str = DATE,
    ) -> None:
        content = body.encode() if isinstance(body, str) else body
        record = WarcRecord()
        name = f"00000000-0000-4000-8000-{self.count:012d}".encode()
        record.init_headers(record_type=WarcRecordType.response, record_urn=name)
        record.headers["WARC-Target-URI"] = url
        record.headers["WARC-Date"] = date
        record.headers["Content-Type"] = "application/http; msgtype=response"
        fields = (("Content-Type", kind), *headers, ("Content-Length", str(len(content))))
        head = f"HTTP/1.1 {status}\r\n" + "".join(f"{key}: {value}\r\n" for key, value in fields) + "\r\n"
        record.set_bytes_content(head.encode("latin-1") + content)
        record.write(self.writer)
        self.count += 1
