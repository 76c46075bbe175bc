"""Make a shard folder of tars that exist already, as img2dataset and webdataset write them, without copying them.

    python data_tools/index_shards.py 'cc12m/{00000..01242}.tar' --legal-basis art4_general
    python data_tools/index_shards.py laion/ --caption-field caption --language-field LANGUAGE --legal-basis unknown
    python data_tools/index_shards.py '/readonly/*.tar' --output indexed --legal-basis licensed --licence "contract 7"
    python data_tools/index_shards.py 's3://bucket/{000..099}.tar' --output shards --materialise --legal-basis consent

Index, records, manifest and ledger are written beside the tars. With --output they are written into a folder of their
own, which refers to the tars where they are: for tars that cannot be written, lie in several folders, or behind an
address of fsspec. With --materialise the samples are copied into shards of the usual form instead, their images
unchanged. The result is a shard folder: training, vet_shards, check_shards, describe_dataset, withdraw_samples and all
others take it.

A sample is what has the same name before the last dot, in any order in the tar. Captions are in text members (.txt), in
fields of its json, or are the names of its class (.cls); without an option they are recognised. Images are JPEG, PNG
or WebP and are not decoded (--verify decodes them); members of other kinds are counted and never opened. Of
img2dataset's tables beside the tars the failed links go into the ledger. A sample without caption or image is left out,
with the reason in ledger.parquet. A killed run continues with the same command, and writes the same bytes.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from data_tools.indexing.foreign_record import Rights
from data_tools.indexing.member_captions import CaptionRule, is_language, read_class_names
from data_tools.indexing.shard_adoption import WORK, Adopted, adopt, look_at, materialise
from data_tools.indexing.tar_index import IndexRule
from data_tools.indexing.tar_patterns import Tar, find_tars
from data_tools.links.withdrawn_lists import lists_beside
from leam_mm.command_line import PositiveInt, parse_settings
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.data.shard_index import MANIFEST, ShardFolder
from leam_mm.errors import UserError, run

UNKNOWN = "unknown"
SHOWN = 5  # values of a kind in the summary


@dataclass
class Settings:
    """Settings of this program.

    Args:
        tars: Tars, folders of tars, globs, braces such as {00000..00999}, or addresses of fsspec; put them in quotes.
        legal_basis: Legal basis of the use of all samples (art3_research, art4_general, licensed, public_domain,
            consent, synthetic), or unknown, which every later document shows.
        output: New folder for the index; by default it is written beside the tars.
        materialise: Copy the samples into shards of the usual form in --output.
        licence: Licence of all samples; by default that of the json, if it has one.
        sources: YAML file of legal bases and licences by domain, which come first; see
            data_tools/links/link_sources.py.
        caption_member: Suffix of a member with a caption; may be repeated.
        caption_field: Field of the json with a caption, a list of them, or captions by language; may be repeated.
        class_names: Text file with the name of each class, one a line, for .cls members.
        language: Language of the captions where their json does not say.
        language_field: Field of the json with the language of the captions.
        image_member: Suffix of the members that are the images; may be repeated; by default those of image files.
        verify: Decode every image, and leave out those that are damaged.
        samples_per_shard: Number of samples in each tar, with --materialise.
        workers: Number of processes.
    """

    tars: list[str]
    legal_basis: str
    output: Path | None = None
    materialise: bool = False
    licence: str | None = None
    sources: Path | None = None
    caption_member: list[str] = field(default_factory=list)
    caption_field: list[str] = field(default_factory=list)
    class_names: Path | None = None
    language: str = "und"
    language_field: str | None = None
    image_member: list[str] = field(default_factory=list)
    verify: bool = False
    samples_per_shard: PositiveInt = 10_000
    workers: PositiveInt = 1


def index_rule(settings: Settings, folder: Path) -> IndexRule:
    """Return the rule of the settings; ``folder`` is where the index will be."""
    if settings.legal_basis != UNKNOWN:
        try:
            LegalBasis.of(settings.legal_basis)
        except UserError:
            bases = ", ".join(LegalBasis)
            raise UserError(
                f"--legal-basis is {settings.legal_basis!r}: give one of {bases}, or {UNKNOWN}, which every later "
                "document shows"
            ) from None
    if not is_language(settings.language):
        raise UserError(f"--language is {settings.language!r}: give a code such as de, en or und")
    members = tuple(name.lower().lstrip(".") for name in settings.caption_member)
    names = read_class_names(settings.class_names) if settings.class_names else None
    captions = CaptionRule(
        members, tuple(settings.caption_field), names, settings.language.lower(), settings.language_field
    )
    rights = Rights(settings.legal_basis, settings.licence, settings.sources)
    images = tuple(name.lower().lstrip(".") for name in settings.image_member)
    return IndexRule(captions, rights, images, settings.verify, lists_beside(folder))


def place_of(settings: Settings, tars: list[Tar]) -> tuple[Path, bool]:
    """Return the folder of the index, and whether it is that of the tars."""
    folders = {tar.folder for tar in tars}
    if settings.output is None:
        if settings.materialise:
            raise UserError("--materialise copies the samples into a new folder: give --output")
        if len(folders) > 1 or tars[0].remote:
            where = f"lie in {len(folders)} folders" if len(folders) > 1 else f"are at {tars[0].folder}"
            raise UserError(f"the tars {where}: give --output, a folder of this machine for their index")
        return Path(tars[0].folder), True
    if any(not tar.remote and settings.output.resolve() == Path(tar.folder).resolve() for tar in tars):
        raise UserError(f"--output {settings.output} is the folder of the tars: leave the option out, or give another")
    return settings.output, False


def describe(tars: list[Tar], missing: list[str], rule: IndexRule, img2dataset: bool) -> str:
    """Return in one line what was recognised."""
    count = f"{len(tars):,} tars from {tars[0].name} to {tars[-1].name}" if len(tars) > 1 else tars[0].name
    words = [f"{'img2dataset shards' if img2dataset else 'tars of samples'}, {count}"]
    words.append(_size(sum(tar.size for tar in tars)))
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        words.append(f"{len(missing):,} numbers missing ({shown})")
    return ", ".join([*words, f"captions from {rule.captions}"])


def summary(adopted: Adopted, folder: ShardFolder, legal_basis: str) -> list[str]:
    """Return the lines that say what became of the tars."""
    speed = f"; {_size(adopted.bytes)} read in {adopted.seconds:.1f} s" if adopted.bytes else ""
    lines = [f"{folder.path}: {folder.samples:,} samples in {len(folder.shards):,} shards{speed}"]
    for name, words in (("left_out", "left out"), ("notes", "note"), ("unused", "members that are not used")):
        counts = adopted.counts[name]
        if counts:
            some = [f"{_ending(reason) if name == 'unused' else reason} {count:,}"
                    for reason, count in counts.most_common(SHOWN)]  # fmt: skip
            rest = sum(counts.values()) - sum(count for _, count in counts.most_common(SHOWN))
            lines.append(f"{words}: {', '.join(some)}" + (f", others {rest:,}" if rest else ""))
    if adopted.renamed:
        lines.append(f"note: {adopted.renamed:,} keys occur before in another tar and end with ~2, ~3, ... now")
    faults = [tar for tar in adopted.tars if tar.fault]
    if faults:
        some = [f"{tar.shard} {tar.fault} ({tar.samples:,} samples before that)" for tar in faults[:SHOWN]]
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        lines.append(f"damaged: {len(faults):,} of {len(adopted.tars):,} tars: {'; '.join(some)}{more}")
    if legal_basis == UNKNOWN:
        lines.append("the legal basis is unknown: every description of the data set and of its models says so")
    return [*lines, f"Merkle root {folder.merkle_root}"]


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _ending(word: str) -> str:
    return word if " " in word else f".{word}"


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(Settings, __doc__, args, positional=("tars",))
    console = Console(soft_wrap=True, highlight=False)
    tars, missing = find_tars(settings.tars)
    folder, in_place = place_of(settings, tars)
    if (folder / MANIFEST).is_file() and not (folder / WORK).is_dir():
        raise UserError(
            f"{folder} is a shard folder already: use it as it is, give another --output, or delete {MANIFEST} to "
            "index the tars again"
        )
    rule = index_rule(settings, folder)
    rule, img2dataset = look_at(tars, rule)
    console.print(describe(tars, missing, rule, img2dataset), markup=False)
    index = folder.with_name(f"{folder.name}.index") if settings.materialise else folder
    with adopt(tars, index, in_place, rule, img2dataset, settings.workers) as adopted:
        if settings.materialise:
            materialise(index, folder, settings.samples_per_shard)
    if settings.materialise:
        shutil.rmtree(index)
    result = ShardFolder(folder)
    for line in summary(adopted, result, settings.legal_basis):
        console.print(line, markup=False)


if __name__ == "__main__":
    run(main)
