"""Which columns of another format hold image, captions, address and rights, and the link of each row."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from data_tools.importing.sample_source import BYTES, IMAGE, TEXT, SampleSource, SourceRow
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.samples.caption_forms import caption_entries, is_language
from leam_mm.data.ledger import link_uid
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
CAPTIONS = ("captions", "caption", "text", "txt", "prompt", "title", "alt_text", "sentences", "sentence", "description")
URLS = ("url", "image_url", "img_url")
LICENCES = ("licence", "license")
LANGUAGES = ("language", "lang")
MAX_URL = 8000  # characters


@dataclass(frozen=True)
class ImportColumns:
    """The columns that are read.

    Args:
        image: Column of the images.
        captions: Columns of captions, each with its language, or None.
        url: Column of addresses, or None.
        licence: Column of licences, or None.
        language: Column of languages, or None.
    """

    image: str
    captions: tuple[tuple[str, str | None], ...]
    url: str | None
    licence: str | None
    language: str | None

    @property
    def read(self) -> set[str]:
        """All columns to read."""
        others = {name for name in (self.url, self.licence, self.language) if name is not None}
        return {self.image, *(name for name, _ in self.captions)} | others

    def __str__(self) -> str:
        """Return the columns in words."""
        captions = " and ".join(f"{name} ({code})" if code else name for name, code in self.captions)
        url = f", addresses from {self.url}" if self.url else ""
        return f"images from {self.image}, captions from {captions}{url}"


def choose_columns(source: SampleSource, image: str, captions: list[str], url: str) -> ImportColumns:
    """Return the columns that the options name, and for the others those with usual names.

    Raises:
        UserError: There is no such column, or none is recognised.
    """
    found = source.columns

    def known(option: str, name: str) -> str:
        if name not in found:
            raise UserError(f"{option} {name!r}: {source.folder} has {_names(found)}")
        if name in source.unread:
            raise UserError(f"{option} {name!r} cannot be read: {source.unread[name]}")
        return name

    def usual(names: tuple[str, ...], kinds: tuple[str, ...]) -> str | None:
        lower = {name.lower(): name for name in sorted(found, reverse=True) if found[name] in kinds}
        return next((lower[name] for name in names if name in lower), None)

    alike = [name for name, kind in found.items() if kind == IMAGE]
    chosen = known("--image-column", image) if image else usual(IMAGES, (IMAGE, BYTES))
    chosen = chosen or (alike[0] if len(alike) == 1 else None)
    if chosen is None:
        raise UserError(f"{source.folder}: no column of images recognised; name it by --image-column: {_names(found)}")
    if found[chosen] not in (IMAGE, BYTES):
        raise UserError(f"--image-column {chosen!r} holds no bytes of images: {_names(found)}")
    texts: list[tuple[str, str | None]] = []
    for word in captions:
        code, equals, name = word.partition("=")
        language = code if equals and is_language(code) and word not in found else None
        texts.append((known("--caption-column", name if language else word), language))
    if not texts:
        usual_caption = usual(CAPTIONS, (TEXT,))
        if usual_caption is None:
            raise UserError(f"{source.folder}: no captions recognised; name them by --caption-column: {_names(found)}")
        texts = [(usual_caption, None)]
    address = known("--url-column", url) if url else usual(URLS, (TEXT,))
    return ImportColumns(chosen, tuple(texts), address, usual(LICENCES, (TEXT,)), usual(LANGUAGES, (TEXT,)))


def link_row(
    row: SourceRow, columns: ImportColumns, defaults: Mapping[str, str | None], base: Path
) -> dict[str, str | None]:
    """Return the row of the table of links for a row of the source.

    Args:
        row: The row.
        columns: The columns that are read.
        defaults: ``language``, ``licence`` and ``legal_basis`` that the user states.
        base: Folder of the table.
    """
    cells, content = row.cells, row.cells.get(columns.image)
    language = _text(cells.get(columns.language)) if columns.language else None
    language = language.lower() if language and is_language(language) else defaults["language"]
    entries, fault = [], ""
    for name, code in columns.captions:
        try:
            entries += caption_entries(cells.get(name), code or language, name)
        except ValueError as error:
            fault = str(error)[:200]
    stated = _text(cells.get(columns.url)) if columns.url else None
    url, place = stated, f"file:{quote(row.place)}"
    try:
        check_link(url, base, False, [])
    except LinkRefused:
        url = None
    digest = bytes_sha256(content) if isinstance(content, bytes) else ""
    metadata = {"place": row.place}
    if stated and url is None:
        metadata["url"] = stated
    if fault:
        metadata["caption_fault"] = fault
    caption = entries[0]["text"] if entries else ""
    return {
        "url": url or place,
        "caption": caption,
        "captions": json.dumps(entries, ensure_ascii=False, sort_keys=True) if entries else None,
        "licence": defaults["licence"] or (_text(cells.get(columns.licence)) if columns.licence else None),
        "legal_basis": defaults["legal_basis"],
        "language": language,
        "metadata": json.dumps(metadata, ensure_ascii=False, sort_keys=True),
        "uid": link_uid(url or f"{row.place}#{digest}", None, caption),
    }


def _text(value: object) -> str | None:
    text = value.strip()[:MAX_URL] if isinstance(value, str) else ""
    return text.encode("utf-8", "replace").decode() or None


def _names(found: Mapping[str, str]) -> str:
    shown = [f"{name[:60]!r} ({kind})" for name, kind in list(found.items())[:12]]
    return f"columns {', '.join(shown)}" + (" and more" if len(found) > 12 else "")
