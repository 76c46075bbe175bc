"""Read folders of images as people have them, and say what was recognised.

Captions come from, in this order: a table ``captions.*`` at the top (its addresses are file names); tables
``metadata.*`` with ``file_name`` in any folder (Hugging Face imagefolder); a ``.txt``, ``.caption`` or ``.json`` file
beside each image; or, if asked for, the names of the folders. Nothing is left out silently: images that are listed but
missing, there but not listed, without caption or in a format that is not read have a row with the reason.
"""

import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from data_tools.links.link_columns import CAPTIONS, OPTIONAL, TableColumns
from data_tools.links.link_table import BATCH, file_link, link_batches
from data_tools.samples.caption_forms import caption_entries
from data_tools.work.text_file import decode_text, table_suffix
from data_tools.work.text_tables import MAX_CELL, TOO_LONG
from leam_mm.data.image_limits import IMAGE_SUFFIXES, UNREAD_SUFFIXES, VECTOR_SUFFIXES
from leam_mm.errors import UserError
from leam_mm.json_text import parse_object

READ_SUFFIXES = (*IMAGE_SUFFIXES, *VECTOR_SUFFIXES)
REFUSED = "refused"  # column with rule, value and reason, as JSON, of rows that are only there for the ledger
TABLE_FORMATS = (".parquet", ".csv", ".tsv", ".jsonl", ".json")
OUR_TABLES = tuple(f"captions{suffix}" for suffix in TABLE_FORMATS)
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # names that Hugging Face datasets reads
BESIDE = (".txt", ".caption", ".json")  # files with the caption of the image of the same name, in this order
SYSTEM_NAMES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
COUNTED = {
    "missing": "listed but missing",
    "unlisted": "there but not listed",
    "caption": "without caption",
    "format": "in a format that is not read",
}  # rules of rows that are left out, in words
NOT_ASKED = ("unlisted", "format")  # rules of images that nobody asked for


class Fault(NamedTuple):
    """Why an image is left out: the rule, the value on which it decided, and the reason in words."""

    rule: str
    value: str
    reason: str


@dataclass(kw_only=True)
class FolderColumns(TableColumns):
    """Where the captions of a folder are.

    Args:
        caption_from: files takes captions from tables and files of the folder, folder-name the name of the folder in
            which an image lies.
        caption_lines: Each line of a caption file is a caption of its own.
    """

    caption_from: Literal["files", "folder-name"] = "files"
    caption_lines: bool = False


@dataclass
class ImageFolder:
    """The images of a folder with their captions.

    Args:
        folder: The folder.
        kind: What was recognised, in words.
        origin: Where captions come from, in words.
        rows: Columns of each image; one that is left out has ``REFUSED`` or ``TOO_LONG``.
        skipped: Number of files that are no images of anyone, by kind.
        notes: Further things to know, in words.
    """

    folder: Path
    kind: str
    origin: str
    rows: list[dict[str, str | None]]
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def table(self, lenient: bool) -> pa.Table:
        """Return the rows as a table of links.

        Args:
            lenient: Whether rows that cannot be used stay, with ``REFUSED`` or ``TOO_LONG``; otherwise the latter are
                an error and the others are left out.
        """
        rows = self.rows
        if not lenient:
            fault = next((row for row in rows if row.get(TOO_LONG)), None)
            if fault:
                raise UserError(
                    f"{self.folder}: the caption of {fault['url']} cannot be used: {fault[TOO_LONG]}; correct it"
                )
            rows = [row for row in rows if not row.get(REFUSED)]
        names = [
            name for name in ("url", "caption", *OPTIONAL, REFUSED, TOO_LONG) if any(row.get(name) for row in rows)
        ]
        names = list(dict.fromkeys(("url", "caption", *names)))
        return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names})

    def describe(self, name: str = "") -> str:
        """Return one line with what was recognised, and one with what is left out, if anything is.

        Args:
            name: What people call the folder; by default its path.
        """
        faults = Counter(json.loads(row[REFUSED] or "")[0] for row in self.rows if row.get(REFUSED))
        usable = len(self.rows) - faults.total() - sum(1 for row in self.rows if row.get(TOO_LONG))
        images = len(self.rows) - faults["missing"]
        counts = f"{_number(images, 'image')}, {_number(usable, 'caption')} from {self.origin}"
        text = f"{name or self.folder}: {self.kind}, {counts}"
        out = [f"{count} {COUNTED[rule]}" for rule, count in faults.items()]
        broken = sum(1 for row in self.rows if row.get(TOO_LONG))
        out += [f"{broken} whose caption cannot be read"] if broken else []
        formats = Counter(
            json.loads(row[REFUSED] or "")[1] for row in self.rows if "format" in (row.get(REFUSED) or "")
        )
        fixes = [f"{suffix}: {UNREAD_SUFFIXES[suffix]}" for suffix in formats if suffix in UNREAD_SUFFIXES]
        lines = [text + "".join(f"; {note}" for note in self.notes)]
        if out:
            lines.append(f"left out: {', '.join(out)}" + (f" ({'; '.join(fixes)})" if fixes else ""))
        if self.skipped:
            lines.append("skipped: " + ", ".join(f"{count} {kind}" for kind, count in self.skipped.items()))
        return "\n".join(lines)


def folder_links(folder: Path, lenient: bool = False, choice: FolderColumns | None = None) -> pa.Table:
    """Return a table of links for a folder of images; see ``ImageFolder.table``."""
    return read_image_folder(folder, choice).table(lenient)


def read_image_folder(folder: Path, choice: FolderColumns | None = None) -> ImageFolder:
    """List a folder and read its captions.

    Raises:
        UserError: It is no folder or holds no image, no image has a caption, or a link leads out of it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give --folder a folder of images")
    choice = choice or FolderColumns()
    listing = _Listing(folder)
    if choice.caption_from == "folder-name":
        found = _by_folder_name(listing)
    elif tables := _tables(folder, listing):
        found = _by_tables(listing, tables, choice)
    else:
        found = _by_files(listing, choice)
    found.rows += [_refused(name, unread_fault(name)) for name in listing.unread]
    found.rows.sort(key=lambda row: row["url"] or "") if found.kind != "table" else None
    found.skipped = listing.skipped
    return found


def is_system_name(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that a system writes beside those of people."""
    return (name.startswith(".") and name != "..") or name.lower() in SYSTEM_NAMES


def is_caption_table(name: str) -> bool:
    """Return whether a file, by its path in a folder, is a table of captions."""
    return name in OUR_TABLES or PurePosixPath(name).name in METADATA


class _Listing:
    """The files of a folder and of the folders in it.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder.resolve()
        self.images: list[str] = []
        self.unread: list[str] = []
        self.skipped: Counter[str] = Counter()
        self.beside: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.tables: list[str] = []
        self.others: Counter[str] = Counter()
        for name in self._names(""):
            path = PurePosixPath(name)
            suffix = path.suffix.lower()
            if suffix in READ_SUFFIXES:
                self.images.append(name)
            elif suffix in UNREAD_SUFFIXES:
                self.unread.append(name)
            elif is_caption_table(name):
                self.tables.append(name)
            elif suffix in BESIDE:
                self.beside[path.with_suffix("").as_posix().lower()][suffix].append(name)
        if not self.images and not self.unread:
            raise UserError(f"{folder} holds no image ({', '.join(sorted(READ_SUFFIXES))}); give another --folder")

    def caption_file(self, name: str) -> str | None:
        """Return the file with an image's caption, whose name may differ in the case of its letters."""
        stem = PurePosixPath(name).with_suffix("").as_posix()
        found = self.beside.get(stem.lower(), {})
        for suffix in BESIDE:
            if names := found.get(suffix):
                exact = [each for each in names if PurePosixPath(each).with_suffix("").as_posix() == stem]
                return (exact or names)[0]
        return None

    def _names(self, inside: str) -> Iterator[str]:
        with os.scandir(self.folder / inside) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if is_system_name(entry.name):
                self.skipped["hidden or system files"] += 1
                continue
            if entry.is_symlink():
                target = Path(entry.path).resolve()
                if not target.is_relative_to(self.root):
                    what = "folder" if target.is_dir() else "image"
                    raise UserError(
                        f"{entry.path} is a symbolic link that leads out of {self.folder}; copy the {what} instead"
                    )
                if target.is_dir():  # its files are listed where they are
                    self.skipped["links to folders that are read where they are"] += 1
                    continue
            if entry.is_dir():
                yield from self._names(name)
            elif entry.is_file():
                yield name


def _tables(folder: Path, listing: _Listing) -> list[str]:
    ours = [name for name in OUR_TABLES if name in listing.tables]
    if ours:
        return ours[:1]
    metadata = [name for name in listing.tables if PurePosixPath(name).name in METADATA]
    chosen: dict[str, str] = {}  # one of a folder, in the order in which datasets looks for them
    for name in sorted(metadata, key=lambda name: METADATA.index(PurePosixPath(name).name)):
        if _has_file_names(folder / name):
            chosen.setdefault(PurePosixPath(name).parent.as_posix(), name)
    return sorted(chosen.values())


def _has_file_names(path: Path) -> bool:
    """Return whether a table may be the metadata of an imagefolder; one without ``file_name`` is something else."""
    with path.open("rb") as file:
        if table_suffix(path) == ".parquet":  # its columns are named at its end
            file.seek(max(0, path.stat().st_size - (1 << 16)))
        content = file.read(1 << 16)
    return b"file_name" in content


def _by_tables(listing: _Listing, tables: list[str], choice: FolderColumns) -> ImageFolder:
    folder = listing.folder
    ours = tables[0] in OUR_TABLES
    actual = {name.lower(): name for name in (*listing.images, *listing.unread)}
    present, listed = {*listing.images, *listing.unread}, set[str]()
    rows: list[dict[str, str | None]] = []
    for table in tables:
        inside = PurePosixPath(table).parent
        for batch in link_batches(folder / table, BATCH, choice, files=True):
            for row in batch.to_pylist():
                url = row["url"] or ""
                if url.startswith("file:") and not url.startswith("file:/"):
                    name = os.path.normpath((inside / unquote(url[5:])).as_posix())
                    name = name if name in present else actual.get(name.lower(), name)
                    row["url"] = file_link(name)
                    listed.add(name)
                    if name not in present and not name.startswith("..") and not row.get(TOO_LONG):
                        if not os.path.isfile(folder / name):  # False for a name that is too long, too
                            fault = Fault("missing", name[:200], f"listed in {table}, but there is no such file")
                            row[REFUSED] = json.dumps(fault)
                    elif name in listing.unread:
                        row[REFUSED] = json.dumps(unread_fault(name))
                    elif not (row["caption"] or "").strip() and (row.get("captions") or "[]").strip() == "[]":
                        row[REFUSED] = json.dumps(Fault("caption", "", f"{table} gives it no caption"))
                rows.append(row)
    unlisted = [name for name in listing.images if name not in listed]
    source = ", ".join(tables[:4]) + (f" and {len(tables) - 4} more" if len(tables) > 4 else "")
    rows += [_refused(name, Fault("unlisted", "", f"not listed in {source}")) for name in unlisted]
    listing.unread = [name for name in listing.unread if name not in listed]
    return ImageFolder(folder, "table" if ours else "imagefolder", source, rows)


def _by_folder_name(listing: _Listing) -> ImageFolder:
    rows, classes = list[dict[str, str | None]](), set[str]()
    for name in listing.images:
        parent = PurePosixPath(name).parent.name
        if not parent:
            rows.append(_refused(name, Fault("caption", "", "it lies in no folder of a class")))
            continue
        classes.add(parent)
        rows.append({"url": file_link(name), "caption": " ".join(parent.replace("_", " ").split())})
    if not classes:
        raise UserError(f"{listing.folder} has no folders of classes: leave out --caption-from folder-name")
    return ImageFolder(listing.folder, f"{_number(len(classes), 'class')} in folders", "the folders' names", rows)


def _by_files(listing: _Listing, choice: FolderColumns) -> ImageFolder:
    folder, rows, kinds = listing.folder, list[dict[str, str | None]](), Counter[str]()
    several = 0
    for name in listing.images:
        beside = listing.caption_file(name)
        if beside is None:
            stem = PurePosixPath(name).stem
            rows.append(_refused(name, Fault("caption", "", f"there is no caption file {stem}.txt beside it")))
            continue
        kinds[PurePosixPath(beside).suffix.lower()] += 1
        row: dict[str, str | None] = {"url": file_link(name), "caption": ""}
        try:
            texts = _caption_texts(folder / beside, choice)
        except ValueError as error:
            rows.append(row | {TOO_LONG: str(error)})
            continue
        if not texts:
            rows.append(_refused(name, Fault("caption", beside[-200:], f"its caption file {beside} is empty")))
            continue
        several += not choice.caption_lines and isinstance(texts, str) and "\n" in texts
        if isinstance(texts, str):
            row["caption"] = texts
        else:
            row |= {"caption": texts[0]["text"], "captions": json.dumps(texts, ensure_ascii=False)}
        rows.append(row)
    if listing.images and not kinds:
        raise UserError(_without_captions(listing))
    notes = []
    if several:
        notes.append(
            f"{several} caption {'file has' if several == 1 else 'files have'} several lines, taken as one caption "
            "(--caption-lines makes each line a caption)"
        )
    origin = " and ".join(f"{suffix} files" for suffix in kinds)
    return ImageFolder(folder, "images with caption files", origin or "no file", rows, notes=notes)


def _without_captions(listing: _Listing) -> str:
    name, count = listing.images[0], len(listing.images)
    classes = {PurePosixPath(each).parent.name for each in listing.images} - {""}
    advice = "write the captions, or use --table"
    if classes:
        advice += f", or --caption-from folder-name for the names of its {_number(len(classes), 'folder')}"
    return (
        f"{listing.folder / name} has no caption file {PurePosixPath(name).stem}.txt beside it ({count} of {count} "
        f"images lack one); {advice}"
    )


def _caption_texts(path: Path, choice: FolderColumns) -> str | list[dict[str, Any]]:
    """Return the caption in a file, or several in our form; empty if there is none.

    Raises:
        ValueError: It breaks a limit, or cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_CELL + 1)
    if len(content) > MAX_CELL:
        raise ValueError(f"caption has more than {MAX_CELL} bytes")
    try:
        text = io.StringIO(decode_text(content, choice.encoding), newline=None).read().strip()
    except UnicodeDecodeError:
        name = choice.encoding or "UTF-8"
        raise ValueError(
            f"caption is not {name} ({path.name}): save it as UTF-8, or state its --encoding, such as latin-1"
        ) from None
    if path.suffix.lower() == ".json":
        return _json_captions(text, path.name)
    if choice.caption_lines:
        return caption_entries([line for line in text.split("\n") if line.strip()], source="provided")
    return text


def _json_captions(text: str, name: str) -> list[dict[str, Any]]:
    try:
        content = parse_object(text)
        field_name = next(
            (each for group in (("captions",), *CAPTIONS) for each in content if each.lower() in group), None
        )
        language = content.get("language")
        value = content.get(field_name) if field_name else None
        return caption_entries(value, language if isinstance(language, str) else None, "provided") if value else []
    except ValueError as error:
        raise ValueError(f"caption file {name} cannot be read ({str(error)[:200]})") from None


def _refused(name: str, fault: Fault) -> dict[str, str | None]:
    return {"url": file_link(name), "caption": None, REFUSED: json.dumps(fault)}


def unread_fault(name: str) -> Fault:
    """Return why an image in a format that is not read is left out."""
    suffix = PurePosixPath(name).suffix.lower()
    return Fault("format", suffix, f"{suffix} is not read: {UNREAD_SUFFIXES[suffix]}")


def _number(count: int, word: str) -> str:
    plural = "classes" if word == "class" else f"{word}s"
    return f"{count} {word if count == 1 else plural}"
