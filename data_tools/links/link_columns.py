"""Which column of a table holds what: names given by options, our own names, and the usual names of others.

LAION (URL, TEXT), DataComp (url, text, uid, sha256), open_clip (filepath, title), Hugging Face (file_name, text) and
img2dataset (url, caption) are recognised in any case of letters. Where two columns may hold the same, none is chosen:
the error names both, and the option that decides.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.samples.caption_forms import is_language
from leam_mm.errors import UserError

REQUIRED = ("url", "caption")
OPTIONAL = (
    *("captions", "licence", "legal_basis", "page_url", "attribution", "metadata", "consent", "language"),
    *("uid", "source"),
)
ADDRESSES = (
    ("url", "image_url", "img_url", "imageurl", "image_link"),
    ("file_name", "filename", "filepath", "file_path", "image_path", "image_file", "path", "image", "img"),
)  # those of the first group before those of the second
CAPTIONS = (
    ("caption", "text"),
    ("title", "alt", "alt_text", "alttext", "description", "sentence"),
)
OTHERS = {"licence": ("licence", "license"), "language": ("language", "lang")}  # in any case of letters
DIGEST = "sha256"  # of the file that a table expects; kept in ``metadata``
UNKNOWN = ("?", "unknown", "none", "null", "nan")  # what LAION and others write for a licence that they do not know


@dataclass(kw_only=True)
class TableColumns:
    """Which columns of a table are read.

    Args:
        url_column: Column with the addresses or file names; by default recognised by its name.
        caption_column: Columns with captions, each as NAME or LANGUAGE=NAME; several give several captions an image.
        caption_for_all: Caption of each row that has none, such as those of a list of addresses.
        keep_columns: Further columns, separated by commas, whose values are kept in ``metadata`` of each sample.
        encoding: Encoding of text files that have no mark of their own, such as latin-1; by default UTF-8.
    """

    url_column: str = ""
    caption_column: list[str] = field(default_factory=list)
    caption_for_all: str = ""
    keep_columns: str = ""
    encoding: str = ""


@dataclass(frozen=True)
class LinkColumns:
    """The columns of one table.

    Args:
        url: Column of addresses.
        captions: Columns of captions with their languages, "" where the table's own counts.
        others: Columns by our names.
        kept: Columns whose values are kept in ``metadata``.
        dropped: Columns that are not read.
    """

    url: str
    captions: tuple[tuple[str, str], ...]
    others: dict[str, str]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def read(self) -> list[str]:
        """All columns to read, each once."""
        names = (self.url, *(name for _, name in self.captions), *self.others.values(), *self.kept)
        return list(dict.fromkeys(names))

    def describe(self) -> str:
        """Return in words where addresses and captions come from."""
        captions = [f"{name} ({language})" if language else name for language, name in self.captions]
        captions += ["captions"] if "captions" in self.others else []
        return f"addresses from {self.url}, captions from {' and '.join(captions) or 'nowhere'}"


def link_columns(path: Path, found: Collection[str], choice: TableColumns, captions: bool = True) -> LinkColumns:
    """Decide which columns of a table hold what.

    Args:
        path: The table, for messages.
        found: Its columns.
        choice: The options.
        captions: Whether a table without captions is an error.

    Raises:
        UserError: A column is missing, or two columns may hold the same.
    """
    names = [str(name) for name in found]
    url = _given(path, names, choice.url_column, "--url-column") or _recognised(
        path, names, ADDRESSES, "addresses", "--url-column"
    )
    if not url:
        raise UserError(
            f"{path} has no column 'url' (found: {_few(names)}); name the column of addresses by --url-column, or "
            "rename it"
        )
    texts = tuple(_language_column(path, names, word) for word in choice.caption_column)
    if not texts:
        name = _recognised(path, [name for name in names if name != url], CAPTIONS, "captions", "--caption-column")
        texts = (("", name),) if name else ()
    if not texts and "captions" not in names and captions:
        raise UserError(
            f"{path} has no column 'caption' (found: {_few(names)}); name the column of captions by --caption-column, "
            "or add one"
        )
    taken = {url, *(name for _, name in texts)}
    others = {name: name for name in OPTIONAL if name in names and name not in taken}
    for ours, aliases in OTHERS.items():
        match = [name for alias in aliases for name in names if name.lower() == alias and name not in taken]
        if ours not in others and match:
            others[ours] = match[0]
    kept = tuple(word for word in map(str.strip, choice.keep_columns.split(",")) if word)
    for name in kept:
        _given(path, names, name, "--keep-columns")
    if DIGEST in names and DIGEST not in taken:
        kept = tuple(dict.fromkeys((*kept, DIGEST)))
    used = {*taken, *others.values(), *kept}
    return LinkColumns(url, texts, others, kept, tuple(name for name in names if name not in used))


def _given(path: Path, names: Collection[str], name: str, option: str) -> str:
    if name and name not in names:
        raise UserError(f"{option} {name}: {path} has no such column (found: {_few(names)})")
    return name


def _language_column(path: Path, names: Collection[str], word: str) -> tuple[str, str]:
    language, equals, name = word.partition("=")
    if word in names or not (equals and is_language(language)):
        return "", _given(path, names, word, "--caption-column")
    return language, _given(path, names, name, "--caption-column")


def _recognised(path: Path, names: Collection[str], groups: tuple[tuple[str, ...], ...], what: str, option: str) -> str:
    """Return the column that has one of the usual names, "" if there is none."""
    for group in groups:
        match = [name for name in names if name.lower() in group]
        if len(match) > 1:
            raise UserError(
                f"{path}: the columns {_few(match)} may all hold {what}; choose by {option}, such as {option} "
                f"{match[0]}"
            )
        if match:
            return match[0]
    return ""


def _few(names: Collection[str]) -> str:
    return ", ".join(str(name)[:80] for name in list(names)[:12])
