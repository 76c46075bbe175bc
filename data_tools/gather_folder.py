"""Gather the images of a company or institution, with captions, rights and purpose, into final shards.

    python data_tools/gather_folder.py --source archive --output shards --legal-basis licensed --licence CC-BY-4.0
        --rights-holder "Museum of Lakes" --purpose "training of open text-image models" --evidence contract.pdf
    python data_tools/gather_folder.py --source s3://bucket/archive --legal-basis consent ...
    python data_tools/gather_folder.py --source renderings --legal-basis synthetic --generator "scenes 2.1" ...

The source is a folder of this machine, or any address that fsspec opens (s3://, gs://, sftp://, zip://::archive.zip;
for http use download_shards, which asks strangers for their consent). Each image has its caption in a ``.txt`` file
beside it, or there is a ``captions.csv``, ``.jsonl`` or ``.parquet`` with ``url`` (file name) and ``caption``, and
optionally ``licence``, ``legal_basis``, ``attribution``, ``language`` and ``captions``, which override the options.

The agreement is stored in OUTPUT/agreement.json and in ``consent`` of every sample: basis, rights holder, purpose, and
name and SHA-256 of each document of --evidence. The documents themselves are not published. Checks and shards are those
of data_tools/download_shards.py, whose further options may follow after ``--``. The files are first linked or copied
into OUTPUT.source; a killed run continues there. A file whose name or size is not accepted is left out, with the
reason in OUTPUT/ledger.parquet.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_tools.download.agreement import AgreementSettings, agreed_links, read_agreement
from data_tools.download.folder_source import is_unread, list_files, open_source, stage_files
from data_tools.download.image_download import DownloadSettings, download_images
from data_tools.links.image_folder import Fault, read_image_folder, unread_fault
from data_tools.links.link_table import file_link
from leam_mm.command_line import PositiveInt, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.files import atomic_write, write_text
from leam_mm.run_lock import beside, run_lock

AGREEMENT = "agreement.json"
LINKS = "links.parquet"


@dataclass(kw_only=True)
class Settings(AgreementSettings):
    """Settings of this program.

    Args:
        source: Folder, or an address that fsspec opens.
        output: Folder of the final shards; must not exist yet.
        language: Language of the captions where a table does not say.
        max_bytes: Largest image gathered.
    """

    source: str
    output: Path
    language: str = "und"
    max_bytes: PositiveInt = DownloadSettings.max_bytes


def gather(settings: Settings, download_options: list[str]) -> None:
    """Stage the files, write the table of links, and build the shards."""
    agreement, output = read_agreement(settings), settings.output
    with run_lock(beside(output), output):
        _gather(settings, download_options, agreement, output)


def _gather(settings: Settings, download_options: list[str], agreement: dict[str, Any], output: Path) -> None:
    text = json.dumps(agreement, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    staged = output.with_name(output.name + ".source")
    record, files = staged / AGREEMENT, staged / "files"
    if record.is_file() and record.read_text(encoding="utf-8") != text:
        raise UserError(f"{staged} was started with another agreement: delete it, or give the same options again")
    if not (output.exists() and record.is_file()):  # else a killed run lacks only its last steps
        system, root, local = open_source(settings.source)
        if local and output.resolve().is_relative_to(Path(root).resolve()):
            raise UserError(f"--output {output} lies inside --source: choose another folder")
        found = list_files(system, root, local, settings.max_bytes)
        write_text(record, text)
        left_out = stage_files(system, local, found, files, settings.max_bytes)
        refused = {
            file_link(name): unread_fault(name) if is_unread(name) else Fault("file", "", reason)
            for name, reason in left_out.items()
        }
        images = read_image_folder(files, settings)
        print(images.describe(settings.source), file=sys.stderr)
        with atomic_write(files / LINKS) as temporary:
            pq.write_table(agreed_links(images, agreement, settings.language, refused), temporary)
        options = ["--table", str(files / LINKS), "--allow-file", "--output", str(output)]
        options += ["--max-bytes", str(settings.max_bytes), *download_options]
        download_images(parse_settings(DownloadSettings, None, options), own_table=True, refused=refused)
    write_text(output / AGREEMENT, text)
    shutil.rmtree(staged)
    print(f"{output}: {agreement['legal_basis']}, {agreement['licence']}, of {agreement['rights_holder']}")


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    words = list(sys.argv[1:] if args is None else args)
    end = words.index("--") if "--" in words else len(words)
    gather(parse_settings(Settings, __doc__, words[:end]), [word for word in words[end:] if word != "--"])


if __name__ == "__main__":
    run(main)
