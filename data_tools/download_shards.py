"""Download the images of a table of links with img2dataset and write final shards.

    python data_tools/download_shards.py --table links.parquet --output shards --agent-contact https://lab.example/bot
    python data_tools/download_shards.py --folder images --output shards

Two passes. img2dataset fetches the original bytes into ``OUTPUT.work`` (data_tools/image_fetch.py); a killed run goes
on there. Then every image is checked and mended (data_tools/image_repair.py) and the shards are written in the order of
the table. A sample's key is its row in the table, so the same table, answers and settings give the same tar files, byte
for byte: therefore ``fetched_at`` stands in ledger.parquet, and in the samples only with --record-time.
``ledger.parquet`` tells the fate of every row: which rule looked at which value, kept or not, and why.
A proxy named in the environment is used; its own address must then be public, or be named by --allow-private.
"""

import argparse
import fcntl
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.image_fetch import FetchSetting
from data_tools.image_repair import RESIZE_MODES, ImageRule
from data_tools.link_table import LinkRefused, check_link, folder_links, read_links, table_digest
from data_tools.raw_part import fetch_parts, repaired_rows
from data_tools.sample_record import json_fault, sample_record
from leam_mm.data.shard_index import ShardWriter, merkle_root
from leam_mm.errors import UserError, run

log = logging.getLogger(__name__)
LEDGER = pa.schema(
    [(name, pa.string()) for name in ("key", "url", "domain", "rule", "value")]
    + [("kept", pa.bool_()), ("reason", pa.string()), ("fetched_at", pa.string()), ("bytes", pa.int64())]
    + [("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("licence", pa.string())]
)


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--table", type=Path, help="parquet, csv or jsonl with the columns url and caption (or more)")
    source.add_argument("--folder", type=Path, help="folder of images, each with its caption in a .txt file beside it")
    parser.add_argument("--output", type=Path, required=True, help="folder of the final shards; must not exist yet")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    rule = ImageRule()
    parser.add_argument(
        "--size", type=int, default=rule.size, help="side in pixels that --resize aims at (%(default)s)"
    )
    parser.add_argument("--resize", choices=RESIZE_MODES, default=rule.resize, help="how (%(default)s)")
    parser.add_argument(
        "--format", choices=("png", "jpg", "webp"), default=rule.format, help="of images encoded again (%(default)s)"
    )
    parser.add_argument("--max-pixels", type=int, default=rule.max_pixels, help="largest image decoded (%(default)s)")
    parser.add_argument("--max-bytes", type=int, default=rule.max_bytes, help="largest file fetched (%(default)s)")
    parser.add_argument("--min-side", type=int, default=rule.min_side, help="smallest side kept (%(default)s)")
    parser.add_argument("--samples-per-shard", type=int, default=1000, help="samples in each tar (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="worker processes (%(default)s)")
    parser.add_argument("--threads", type=int, default=32, help="connections in each process (%(default)s)")
    parser.add_argument("--timeout", type=int, default=10, help="seconds to wait for an answer (%(default)s)")
    parser.add_argument("--retries", type=int, default=1, help="further attempts for a failed link (%(default)s)")
    parser.add_argument("--allow-file", action="store_true", help="read file: addresses of this machine, too")
    parser.add_argument(
        "--allow-private", action="append", default=[], metavar="HOST", help="trust this private host; may be repeated"
    )
    parser.add_argument("--min-success", type=float, default=0.9, help="least share of rows kept (%(default)s)")
    parser.add_argument("--agent-name", default="leam_mm", help="who we say we are (%(default)s)")
    parser.add_argument("--agent-contact", default="", help="page or address where site owners reach you")
    parser.add_argument("--record-time", action="store_true", help="write fetched_at into the samples, too")
    parser.add_argument("--keep-work", action="store_true", help="leave the original bytes in OUTPUT.work")
    settings = parser.parse_args(args)
    for name in ("size", "samples_per_shard", "processes", "threads", "timeout", "max_bytes", "max_pixels"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(settings, name)}: give at least 1")
    if not 0 <= settings.min_success <= 1:
        raise UserError(f"--min-success is {settings.min_success}: give a share between 0 and 1")
    return settings


def screen_rows(table: pa.Table, base: Path, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """Judge every row before anything is fetched: one ledger row each, those to fetch have ``fetch`` set."""
    width = max(7, len(str(table.num_rows - 1)))
    allow_file = settings.allow_file or settings.folder is not None
    texts = [name for name in ("captions", "metadata", "consent") if name in table.column_names]
    rows = []
    for number, (url, caption) in enumerate(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)):
        row: dict[str, Any] = dict.fromkeys(LEDGER.names) | {"key": f"{number:0{width}d}", "url": url, "kept": False}
        try:
            row["fetch"], row["url"], row["domain"] = check_link(url, base, allow_file, settings.allow_private)
            cells = {column: table[column][number].as_py() for column in texts}
            for column, text in cells.items():
                if fault := json_fault(column, text):
                    raise LinkRefused(column, str(text)[:80], fault)
            if not (caption or "").strip() and (cells.get("captions") or "[]").strip() == "[]":
                raise LinkRefused("caption", "", "the caption is empty")
        except LinkRefused as refused:
            row.update(fetch=None, rule=refused.rule, value=refused.value, reason=refused.reason)
        rows.append(row)
    public = next(
        (row for row in rows if row.get("fetch") and row["domain"] not in ("", *settings.allow_private)), None
    )
    if public and not settings.agent_contact:
        raise UserError(
            f"--agent-contact is missing: give a page or address where the owner of {public['domain']} can reach you"
        )
    return rows


def open_work(output: Path, wanted: FetchSetting, digest: str) -> tuple[Path, FetchSetting, Any]:
    """Create the work folder, or go on in it if the settings that decide what is fetched are the same.

    Returns:
        The folder, the setting (with the part size of the first run), and the lock to hold while working.
    """
    work = output.with_name(output.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    lock = open(work / "lock", "w")  # noqa: SIM115 # held until the program ends
    for attempt in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if attempt == 9:
                raise UserError(f"{work} is in use by another run: wait for it, or choose another --output") from None
            time.sleep(0.5)
    record = work / "fingerprint.json"
    free = ("processes", "threads", "timeout", "retries", "rows_per_part", "links", "output")
    identity = {key: value for key, value in vars(wanted).items() if key not in free} | {"table": digest}
    part_size = wanted.rows_per_part
    if record.exists():
        old = json.loads(record.read_text())
        part_size = old.pop("rows_per_part")
        for key, value in identity.items():
            if old.get(key) != value:
                raise UserError(
                    f"{work} was begun with another {key} ({old.get(key)!r}, now {value!r}): "
                    "start with the old settings, or delete that folder to fetch anew"
                )
    else:
        temporary = work / f"fingerprint.json.tmp-{os.getpid()}"
        temporary.write_text(json.dumps(identity | {"rows_per_part": part_size}))
        os.replace(temporary, record)
    links, raw = str((work / "links.parquet").resolve()), str((work / "raw").resolve())
    return work, replace(wanted, rows_per_part=part_size, links=links, output=raw), lock


def write_ledger(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the fate of every row."""
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in LEDGER.names} for row in rows], LEDGER), path)


def write_shards(
    table: pa.Table, rows: list[dict[str, Any]], setting: FetchSetting, settings: argparse.Namespace
) -> tuple[int, str]:
    """Second pass: mend, judge and write in the order of the table.

    Returns:
        How many samples were kept, and the Merkle root of the shards.
    """
    names = ("size", "resize", "format", "max_pixels", "max_bytes", "min_side")
    rule = ImageRule(**{name: getattr(settings, name) for name in names})
    output: Path = settings.output
    failed_ledger = output.with_name(output.name + ".failed-ledger.parquet")
    crawler = settings.agent_name
    expected = [number for number, row in enumerate(rows) if row.get("fetch")]
    with ShardWriter(output, settings.samples_per_shard) as writer:
        for number, fetched in repaired_rows(Path(setting.output), expected, setting, rule, settings.processes):
            row, image = rows[number], fetched.image
            row.update(fetched_at=fetched.fetched_at, bytes=fetched.bytes, sha256=fetched.sha256)
            if image is None:
                row.update(rule=fetched.rule, value=fetched.value, reason=fetched.reason)
                continue
            source = {name: table[name][number].as_py() for name in table.column_names}
            record = json.dumps(
                sample_record(source, row, image, crawler, fetched.fetched_at if settings.record_time else None),
                ensure_ascii=False,
                sort_keys=True,
            )
            writer.write(row["key"], {image.extension: image.content, "json": record.encode()})
            row.update(rule="kept", kept=True, value=";".join(image.transforms), reason="")
            row.update(width=image.width, height=image.height, licence=source.get("licence"))
        kept = sum(row["kept"] for row in rows)
        if kept < settings.min_success * len(rows) or not kept:
            write_ledger(rows, failed_ledger)
            reasons = Counter(row["rule"] for row in rows if not row["kept"]).most_common(8)
            told = ", ".join(f"{name} {count}" for name, count in reasons)
            raise UserError(
                f"only {kept} of {len(rows)} rows could be kept ({kept / len(rows):.1%}, --min-success "
                f"{settings.min_success}): {told}; see {failed_ledger}"
            )
        write_ledger(rows, writer.partial / "ledger.parquet")
    failed_ledger.unlink(missing_ok=True)
    return kept, merkle_root(writer.entries)


def main(args: list[str] | None = None) -> None:
    """Run both passes."""
    settings = parse_arguments(args)
    output: Path = settings.output
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output} exists already: give another --output, or --overwrite to replace it")
    begin = time.perf_counter()
    table = read_links(settings.table) if settings.table else folder_links(settings.folder)
    rows = screen_rows(table, settings.folder or settings.table.parent, settings)
    names = ("agent_name", "agent_contact", "allow_private", "max_bytes", "timeout", "processes", "threads", "retries")
    wanted = FetchSetting("", "", **{name: getattr(settings, name) for name in names})
    allow_file = settings.allow_file or settings.folder is not None
    count = sum(bool(row.get("fetch")) for row in rows)
    part_size = min(1000, max(20, -(-count // (4 * settings.processes))))
    wanted = replace(
        wanted, allow_file=allow_file, rows_per_part=part_size, allow_private=sorted(settings.allow_private)
    )
    work, setting, lock = open_work(output, wanted, table_digest(table))
    with lock:
        if count:
            fetch_parts(work, setting, [(number, row["fetch"]) for number, row in enumerate(rows) if row.get("fetch")])
        kept, root = write_shards(table, rows, setting, settings)
    if not settings.keep_work:
        shutil.rmtree(work)
    seconds = time.perf_counter() - begin
    print(f"{output}: {kept} of {len(rows)} rows kept, {len(rows) / seconds:.0f} rows/s, Merkle root {root}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    run(main)
