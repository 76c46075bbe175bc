"""Make a shard folder of a MosaicML MDS folder, or of Hugging Face parquet files with images in them.

    python data_tools/import_samples.py mds/ --output shards --legal-basis unknown
    python data_tools/import_samples.py hub/data --output shards --legal-basis licensed --licence CC-BY-4.0
        --image-column image --caption-column en=caption_en --caption-column de=caption_de --url-column url

An MDS folder has index.json and shard.NNNNN.mds, also compressed with zstd or gz. A parquet folder has files with a
column of structs of bytes and path, or a plain binary column, as `Dataset.to_parquet` and the Hub write them; of a
folder of `save_to_disk`, write parquet files first. Columns are recognised by their usual names, or named by options; a
caption may be a text, a list of texts, or texts by language. Pickled columns are never decoded.

Images go through the checks and repairs of download_shards: limits of size, rights in the file, lists of withdrawals
beside --output. The fate of every row is in OUTPUT/ledger.parquet. The legal basis must be stated; `unknown` is
possible, counts as article 4, and every later document shows it. A killed run continues with the same command, and
writes the same bytes.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from data_tools.download.image_download import DownloadSettings
from data_tools.importing.import_columns import choose_columns
from data_tools.importing.mds_folder import INDEX, MdsFolder
from data_tools.importing.parquet_samples import ParquetSamples
from data_tools.importing.sample_import import import_samples
from data_tools.importing.sample_source import SampleSource
from data_tools.samples.image_repair import ImageFormat, ImageRule, ResizeMode
from leam_mm.command_line import NonNegativeInt, PositiveInt, parse_settings
from leam_mm.data.ledger import LEDGER, read_ledger
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.errors import UserError, run

UNKNOWN = "unknown"
SHOWN = 8  # reasons in the summary


@dataclass
class Settings:
    """Settings of this program.

    Args:
        source: MDS folder, folder of parquet files, or one parquet file.
        output: Folder of the final shards; must not exist yet.
        legal_basis: Legal basis of the use of all samples (art3_research, art4_general, licensed, public_domain,
            consent, synthetic), or unknown, which every later document shows.
        licence: Licence of all samples; by default that of a column licence or license.
        image_column: Column of the images; by default recognised.
        caption_column: Column of captions, as NAME or LANGUAGE=NAME; may be repeated; by default recognised.
        url_column: Column of the addresses of the images; by default recognised.
        language: Language of captions where no column says.
        size: Side in pixels that --resize aims at.
        resize: How images are resized; see data_tools/samples/image_repair.py.
        format: Format of images that are encoded again.
        max_pixels: Largest image that is decoded.
        max_bytes: Largest file of an image.
        min_side: Smallest side of images that are kept, in pixels.
        samples_per_shard: Number of samples in each tar.
        processes: Number of processes that decode.
    """

    source: Path
    output: Path
    legal_basis: str
    licence: str | None = None
    image_column: str = ""
    caption_column: list[str] = field(default_factory=list)
    url_column: str = ""
    language: str = "und"
    size: PositiveInt = ImageRule.size
    resize: ResizeMode = ImageRule.resize
    format: ImageFormat = ImageRule.format
    max_pixels: PositiveInt = ImageRule.max_pixels
    max_bytes: PositiveInt = ImageRule.max_bytes
    min_side: int = ImageRule.min_side
    samples_per_shard: PositiveInt = 1000
    processes: NonNegativeInt = 2


def open_source(path: Path) -> SampleSource:
    """Return the folder of another format.

    Raises:
        UserError: The format is not recognised.
    """
    if (path / INDEX).is_file():
        return MdsFolder(path)
    if path.is_dir() and (path / "state.json").is_file() and next(path.glob("*.arrow"), None):
        raise UserError(
            f"{path} is a folder of save_to_disk: write parquet first, by datasets.load_from_disk({str(path)!r})"
            ".to_parquet('samples.parquet')"
        )
    if (path.suffix == ".parquet" and path.is_file()) or next(path.rglob("*.parquet"), None) is not None:
        return ParquetSamples(path)
    raise UserError(
        f"{path} is no MDS folder ({INDEX}) and holds no parquet file: tars go to index_shards, tables of links to "
        "download_shards, images to gather_folder"
    )


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(Settings, __doc__, args, positional=("source",))
    if settings.legal_basis not in (UNKNOWN, *LegalBasis):
        bases = ", ".join(LegalBasis)
        raise UserError(f"--legal-basis is {settings.legal_basis!r}: give one of {bases}, or {UNKNOWN}")
    output, console = settings.output, Console(soft_wrap=True, highlight=False)
    if output.exists():
        raise UserError(f"{output} exists already: give another --output")
    source = open_source(settings.source)
    columns = choose_columns(source, settings.image_column, settings.caption_column, settings.url_column)
    console.print(f"{source.name}, {source.count:,} rows in {len(source.identity):,} files, {columns}", markup=False)
    for name, reason in source.unread.items():
        console.print(f"column {name!r:.80} is left out: {reason}", markup=False)
    shared = ("output", "size", "resize", "format", "max_pixels", "max_bytes", "min_side", "samples_per_shard")
    rule = DownloadSettings(
        table=output, min_success=0.0, agent_name="import_samples", processes=settings.processes,
        **{name: getattr(settings, name) for name in shared},
    )  # fmt: skip
    defaults = {name: getattr(settings, name) for name in ("language", "licence", "legal_basis")}
    kept, root = import_samples(source, columns, defaults, rule)
    reasons: Counter[str] = Counter()
    for batch in read_ledger(output / LEDGER, ["kept", "rule"]):
        reasons.update(row["rule"] for row in batch.to_pylist() if not row["kept"])
    left_out = ", ".join(f"{rule} {count:,}" for rule, count in reasons.most_common(SHOWN))
    console.print(f"{output}: {kept:,} of {kept + reasons.total():,} rows kept, Merkle root {root}", markup=False)
    if left_out:
        console.print(f"left out: {left_out}; {output / LEDGER} says why", markup=False)
    if settings.legal_basis == UNKNOWN:
        console.print("the legal basis is unknown: every description of the data set and of its models says so")


if __name__ == "__main__":
    run(main)
