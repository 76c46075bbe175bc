"""Search embeddings for a text or an image.

    python -m leam_mm.search --index photos.parquet --text "rote Tasse"
    python -m leam_mm.search --index photos.parquet --image mug.jpg --count 20 --html found.html --images photos

The index is a file of ``python -m leam_mm.embed``. The query is embedded with the encoder that the file names, or with
--encoder if that was moved. Prints rank, cosine, key and text, the nearest first. Above 200,000 rows the first search
builds an index in INDEX.index, and later ones use it. Exit code 0: found. 1: the file is empty. 2: an error.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leam_mm.command_line import PositiveInt, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.recorded_classes import trust_modules


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the program.

    Args:
        index: Parquet file of python -m leam_mm.embed.
        text: Text to search for.
        image: Image file to search for.
        encoder: The encoder of the embeddings, if it was moved.
        count: Results.
        html: Page to write with the results.
        images: Folder of images or shards that was embedded, for the images of the page.
        exact: Compare every row of a large file, without an index.
        device: cpu or cuda.
        trust: Modules of your own, such as my_lab, whose classes the checkpoint may name; several between commas.
    """

    index: Path
    text: str | None = None
    image: Path | None = None
    encoder: str | None = None
    count: PositiveInt = 10
    html: Path | None = None
    images: Path | None = None
    exact: bool = False
    device: str = "cpu"
    trust: str = ""


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(SearchSettings, __doc__, args, program="python -m leam_mm.search")
    if (settings.text is None) == (settings.image is None):
        raise UserError('give either --text "rote Tasse" or --image FILE')
    from leam_mm.inference.embedder import Embedder, embed_query
    from leam_mm.inference.embedding_index import EmbeddingIndex
    from leam_mm.inference.embedding_table import EmbeddingTable
    from leam_mm.inference.result_page import Result, write_results_page

    trust_modules(settings.trust)
    table = EmbeddingTable.open(settings.index)
    embedder = Embedder.open(settings.encoder or table.facts.encoder, settings.device)
    if embedder.sha256 != table.facts.encoder_sha256:
        raise UserError(
            f"{settings.index} was embedded with another encoder (sha256 {table.facts.encoder_sha256[:12]}, not "
            f"{embedder.sha256[:12]}): name that one with --encoder, or embed again"
        )
    query = embed_query(embedder, settings.text, settings.image)
    index = EmbeddingIndex(table, settings.exact)
    start = time.perf_counter()
    found = index.search(query, settings.count)
    lines = index.lines([row for row, _ in found])
    seconds = time.perf_counter() - start
    shown = Table(box=None, pad_edge=False)
    for name in ("rank", "cosine", "key", "text"):
        shown.add_column(name)
    for rank, ((_, cosine), line) in enumerate(zip(found, lines, strict=True), start=1):
        shown.add_row(str(rank), f"{cosine:.4f}", Text(line["key"]), Text(line["text"] or line["url"]))
    console = Console(highlight=False)
    console.print(shown)
    console.print(f"{table.rows:,} rows searched in {seconds:.3f} s")
    if settings.html is not None:
        results = [
            Result(line["key"], f"{cosine:.4f}", line["text"], line["url"])
            for (_, cosine), line in zip(found, lines, strict=True)
        ]
        title = f"Search: {settings.text if settings.text is not None else settings.image}"
        note = f"Cosine of the embeddings by {table.facts.encoder}; the nearest of {table.rows:,} come first."
        write_results_page(settings.html, title, [("", results)], settings.images, note)
        console.print(f"wrote {settings.html}")
    if not found:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
