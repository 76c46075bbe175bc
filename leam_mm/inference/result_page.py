"""A page with found or classified images; it is self-contained, and names from strangers are escaped."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leam_mm.data.upright_image import read_upright
from leam_mm.errors import UserError
from leam_mm.files import write_text
from leam_mm.inference.embedded_items import open_images
from leam_mm.report.templates import Section, render_page

TEMPLATE = Path(__file__).parent / "results.html.jinja"
SIDE = 192  # pixels of a thumbnail


@dataclass(frozen=True)
class Result:
    """One image of a page.

    Args:
        key: Its name in the table of embeddings.
        value: What was measured, as text.
        text: Its caption, or empty.
        url: Its address, or empty; shown as text.
    """

    key: str
    value: str
    text: str = ""
    url: str = ""


def write_results_page(
    path: Path, title: str, groups: Sequence[tuple[str, Sequence[Result]]], images: Path | None, note: str
) -> None:
    """Write a page.

    Args:
        path: HTML file.
        title: Heading.
        groups: Heading of each group, and its results.
        images: Folder of images or shards that the keys name; None leaves images out.
        note: Sentence that says what the values are.
    """
    keys = {result.key for _, results in groups for result in results}
    sources = _thumbnails(images, keys) if images is not None else {}
    content = [(heading, [(result, sources.get(result.key, "")) for result in results]) for heading, results in groups]
    section = Section("results", "Results", content)
    write_text(path, render_page(TEMPLATE, title, note, [], [section], "Images are thumbnails inside this file."))


def _thumbnails(images: Path, keys: set[str]) -> dict[str, str]:
    """Return a data address for each image that is there and can be read."""
    sources = {}
    for item in open_images(images).find(keys):
        try:
            image = read_upright(item.content or b"")
        except UserError:
            continue  # the page shows its name alone
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        sources[item.key] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return sources
