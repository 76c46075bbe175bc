"""The documents of a release as HTML; HTML in their Markdown is shown as text, and nothing is loaded from elsewhere."""

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from leam_mm.errors import UserError

MAX_DOCUMENT = 2_000_000  # bytes
MAX_DOCUMENTS = 100
CARD = "README.md"
DOCUMENTS = "documents"
PICTURES = "documents/images"
FURTHER = (".json", ".yaml", ".csv")  # machine-readable documents, offered as files


@dataclass(frozen=True)
class Document:
    """One document.

    Args:
        name: Path inside the release, such as ``documents/en/model_card.md``.
        title: First heading, or the name.
        language: ``en`` or ``de`` where its folder says so, else None.
    """

    name: str
    title: str
    language: str | None

    @property
    def is_card(self) -> bool:
        """Whether it is the model card."""
        return self.name == CARD or self.name.endswith("/model_card.md")


class ReleaseDocuments:
    """The Markdown documents of a release.

    Args:
        folder: The release.
    """

    def __init__(self, folder: Path) -> None:
        """List the documents; see the class for the arguments."""
        self.folder = folder.resolve()
        paths = [self.folder / CARD, *sorted((self.folder / DOCUMENTS).rglob("*.md"))][:MAX_DOCUMENTS]
        self.documents = [self._document(path) for path in paths if self._is_readable(path)]
        files = sorted(path for path in (self.folder / DOCUMENTS).rglob("*") if path.suffix in FURTHER)
        self.files = [self._name(path) for path in files[:MAX_DOCUMENTS] if self._is_readable(path)]
        pictures = sorted((self.folder / PICTURES).glob("*.png"))[:MAX_DOCUMENTS]
        self.pictures = [self._name(path) for path in pictures if self._is_readable(path)]

    def in_language(self, language: str) -> list[Document]:
        """Return the documents of a language, its model card first; the card of the root if there is none."""
        own = [document for document in self.documents if document.language == language]
        cards = [document for document in own if document.is_card]
        cards = cards or [document for document in self.documents if document.name == CARD]
        return [*cards, *(document for document in own if not document.is_card)]

    def html(self, name: str) -> str:
        """Return a document as HTML.

        Raises:
            UserError: There is no such document.
        """
        if name not in {document.name for document in self.documents}:
            raise UserError("there is no such document in the release: choose one of the list")
        offered = set(self.pictures)

        def picture(source: str) -> str:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), source))
            return f"../pictures/{path}" if path in offered else ""

        return render_markdown(self._text(self.folder / name), picture)

    def file(self, name: str) -> Path | None:
        """Return the path of a document or of a machine-readable file; None if it is not offered."""
        offered = {*self.files, *(document.name for document in self.documents)}
        return self.folder / name if name in offered else None

    def picture(self, name: str) -> Path | None:
        """Return the path of a picture in the documents; None if it is not offered."""
        return self.folder / name if name in self.pictures else None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _is_readable(self, path: Path) -> bool:
        inside = path.resolve().is_relative_to(self.folder)
        return inside and path.is_file() and path.stat().st_size <= MAX_DOCUMENT

    def _text(self, path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace")

    def _document(self, path: Path) -> Document:
        lines = without_front_matter(self._text(path)).splitlines()
        title = next((line.lstrip("# ").strip() for line in lines if line.startswith("# ")), path.stem)
        title = title.rpartition(": ")[0] or title  # without the name of the release, which all titles end in
        folder = path.parent.name
        return Document(self._name(path), title[:120], folder if folder in ("en", "de") else None)


def without_front_matter(text: str) -> str:
    """Return Markdown without the YAML between ``---`` lines at its start."""
    if text.startswith("---\n") and (end := text.find("\n---\n", 3)) >= 0:
        return text[end + 5 :]
    return text


def render_markdown(text: str, picture: Callable[[str], str] = lambda source: "") -> str:
    """Return Markdown of a stranger as HTML.

    HTML in it is escaped; links go to the web or to a heading only, and open without telling where they were clicked;
    images of other places are replaced by their texts; headings start at the second level. Tables and code can be
    reached by keyboard.

    Args:
        text: The Markdown.
        picture: Returns the address of an image by its source, or an empty text.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(without_front_matter(text)[:MAX_DOCUMENT])
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        for child in token.children or []:
            _make_harmless(child, picture)
    html = parser.renderer.render(tokens, parser.options, {})
    opening = '<div class="scrolled" role="group" tabindex="0"><table>'
    html = html.replace("<pre>", '<pre tabindex="0">')
    return html.replace("<table>", opening).replace("</table>", "</table></div>")


def _make_harmless(token: Token, picture: Callable[[str], str]) -> None:
    if token.type == "image" and (address := picture(str(token.attrGet("src") or ""))):
        token.attrs["src"] = address
    elif token.type == "image":
        token.type, token.tag, token.content, token.children = "text", "", f"[{token.content}]", None
    elif token.type == "link_open":
        address = str(token.attrGet("href") or "")
        if address.startswith(("https://", "http://")):
            token.attrs |= {"rel": "noopener noreferrer nofollow", "target": "_blank"}
        elif not address.startswith("#"):
            token.attrs.pop("href", None)
