"""Two thousand hostile inputs through data_tools, over the network and as files: no crash, no hang, a reason for each.

A server on this machine answers with all cases of hostile_server.py, each in many variants (drips, endless bodies,
redirects to private addresses, bombs, truncated files, files of another type). data_tools/download_shards.py fetches
them in a process of its own, is timed, and its ledger is read: every input must have one of the reasons that fit, and
every image that was kept must decode. Then tar files whose members have paths outside their folder or false sizes are
read as the loader reads them, and checked as check_shards does. Counts, not speed.
"""

import hashlib
import io
import json
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import measure
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_server import Case, HostileServer, file_cases, network_cases, picture
from PIL import Image
from processes import call, data_tool
from rich.table import Table

from data_tools.samples.shard_check import check_folder
from leam_mm.data.shard_index import MANIFEST, ShardFolder, ShardWriter, read_samples
from leam_mm.errors import UserError, run

IMAGE_SECONDS, MAX_BYTES, MAX_PIXELS = 4, 2_000_000, 9_000_000
MEMBERS = ("../../outside.txt", "/tmp/outside.txt", "..", "a/../../outside.txt", "C:\\outside.txt", "0000000.json/../x")


def download(server: HostileServer, offered: list[tuple[str, Case]], scratch: Path) -> dict[str, Any]:
    """Fetch all cases by the program itself, and compare its ledger with what may stand there."""
    table, output = scratch / "links.parquet", scratch / "shards"
    captions = [case.name for _, case in offered]
    pq.write_table(pa.table({"url": [url for url, _ in offered], "caption": captions}), table)
    limits = {"min-success": 0, "retries": 0, "timeout": 2, "image-seconds": IMAGE_SECONDS, "max-bytes": MAX_BYTES}
    limits |= {"max-pixels": MAX_PIXELS, "allow-private": "127.0.0.1", "table": table, "output": output}
    words = [word for name, value in limits.items() for word in (f"--{name}", value)]
    # Of the longest parts every link may take all its time; and the whole of it as long again, for start and decoding.
    limit = 60 + 2 * (IMAGE_SECONDS + 3) * -(-len(offered) // 64)
    begin = time.monotonic()
    call(data_tool("download_shards", *words), seconds=2 * limit)
    seconds = time.monotonic() - begin
    rows = pq.read_table(output / "ledger.parquet").to_pylist()
    wrong = [
        f"{case.name}: {row['rule']} ({row['reason']})"
        for row, (_, case) in zip(rows, offered, strict=True)
        if row["rule"] not in case.rules or bool(row["reason"]) == row["kept"]
    ]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(offered)} inputs got a reason that does not fit: {'; '.join(wrong[:8])}")
    kept = 0
    for _, members in read_samples(output):
        content = next(body for extension, body in members.items() if extension != "json")
        image = Image.open(io.BytesIO(content))
        image.load()
        kept += image.mode == "RGB"
    return {
        "inputs": len(offered),
        "kinds": len({case.name for _, case in offered}),
        "seconds": seconds,
        "limit_seconds": limit,
        "rules": dict(Counter(row["rule"] for row in rows).most_common()),
        "same_work": [
            measure.require_same("inputs without a row in the ledger", len(offered) - len(rows), 0),
            measure.require_same("inputs whose rule or reason does not fit", len(wrong), 0),
            measure.require_same("rows kept without an RGB image that decodes", sum(r["kept"] for r in rows) - kept, 0),
            measure.require_same("seconds over the limit", max(0.0, seconds - limit), 0),
        ],
    }


def hostile_shards(scratch: Path) -> list[Path]:
    """Folders whose tars hold members with names that lead out, lie about their size, or are no files."""
    folders = []
    for number, name in enumerate((*MEMBERS, "link", "negative", "huge")):
        folder = scratch / f"tar-{number}"
        with ShardWriter(folder, 10) as writer:
            writer.write("0000000", {"png": picture(number, "PNG"), "json": b"{}"})
        tar = folder / "00000.tar"
        header = tarfile.TarInfo("0000000." + name if name in ("link", "negative", "huge") else name)
        header.size = 3
        if name == "link":
            header.type, header.linkname, header.size = tarfile.SYMTYPE, "/etc/passwd", 0
        raw = bytearray(header.tobuf(tarfile.USTAR_FORMAT))
        if name in ("negative", "huge"):  # base 256, as GNU tar writes what is beyond 8 GB
            raw[124:136] = b"\xff" * 12 if name == "negative" else b"\x80" + b"\x7f" * 11
            raw[148:156] = b"%06o\0 " % (sum(raw) - sum(raw[148:156]) + 8 * 32)
        body = tar.read_bytes()
        tar.write_bytes(bytes(raw) + b"abc".ljust(512, b"\0") + body[:-1024] + bytes(1024))
        grown = tar.stat().st_size
        index = pq.read_table(folder / "00000.index.parquet").to_pydict()
        content = tar.read_bytes()  # with the right digests, so that only what is in the members can be wrong
        index |= {"offset": [0], "size": [grown - 1024], "sha256": [hashlib.sha256(content[:-1024]).hexdigest()]}
        pq.write_table(pa.table(index), folder / "00000.index.parquet")
        entry = json.loads((folder / MANIFEST).read_text())
        entry |= {"bytes": grown, "sha256": hashlib.sha256(content).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(entry) + "\n")
        folders.append(folder)
    return folders


def read_hostile(folders: list[Path]) -> dict[str, Any]:
    """Read them as a loader would: members by extension alone, or a word that people understand; nothing is written."""
    outside = [Path("/tmp/outside.txt"), *(folder.parent / "outside.txt" for folder in folders)]
    found: Counter[str] = Counter()
    for folder in folders:
        try:
            for _, members in read_samples(folder):
                found["read"] += all("/" not in name and ".." not in name for name in members)
        except UserError:
            found["refused"] += 1
        found["not caught by check_shards"] += not check_folder(folder)[1].faults
        ShardFolder(folder)
    same = [
        measure.require_same(
            "tars that were neither read safely nor refused", len(folders) - found["read"] - found["refused"], 0
        ),
        measure.require_same("tars that check_shards takes for good", found["not caught by check_shards"], 0),
        measure.require_same("files written outside", sum(path.exists() for path in outside), 0),
    ]
    return {"tars": len(folders), "read_by_extension": found["read"], "refused": found["refused"], "same_work": same}


@measure.benchmark(repeats=1, inputs=(2100, "smallest number of inputs"))
def main(settings: measure.Settings) -> list[Path]:
    """Offer, fetch, compare; then the tars."""
    server = HostileServer()
    each = len(network_cases(0, server.port)) + len(file_cases(0))
    numbers = range(-(-settings.inputs // each))
    offered = server.offer(numbers, lambda number: network_cases(number, server.port) + file_cases(number))
    with tempfile.TemporaryDirectory() as scratch:
        fetched = download(server, offered, Path(scratch))
        tars = read_hostile(hostile_shards(Path(scratch)))
    server.shutdown()
    same = fetched.pop("same_work") + tars.pop("same_work")
    table = Table("", "", title="hostile_inputs")
    for name in ("inputs", "kinds", "seconds", "limit_seconds"):
        table.add_row(name, f"{fetched[name]:.0f}")
    for rule, count in fetched["rules"].items():
        table.add_row(rule, str(count))
    table.add_row("tars: read by extension alone, refused", f"{tars['read_by_extension']}, {tars['refused']}")
    content = {"download": fetched, "tars": tars, "same_work": same}
    return [measure.write_result(content, settings, table)]


if __name__ == "__main__":
    run(main)
