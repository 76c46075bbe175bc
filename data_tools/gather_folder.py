"""Gather the pictures of a company or institution, with captions, rights and purpose, into final shards.

    python data_tools/gather_folder.py --source archive --output shards --legal-basis licensed --licence CC-BY-4.0
        --rights-holder "Museum of Lakes" --purpose "training of open text-image models" --evidence contract.pdf
    python data_tools/gather_folder.py --source s3://bucket/archive --legal-basis consent ...
    python data_tools/gather_folder.py --source renderings --legal-basis synthetic --generator "scenes 2.1" ...

A folder of this machine, or any address that fsspec opens (s3://, gs://, sftp://, zip://::archive.zip, ...; for http
there is download_shards, which asks strangers for their consent). Each picture has its caption in a ``.txt`` beside
it, or there is a ``captions.csv``, ``.jsonl`` or ``.parquet`` with ``url`` (file name) and ``caption``, and where they
differ from the options ``licence``, ``legal_basis``, ``attribution``, ``language``, or several ``captions``.

The agreement stands in every sample's ``consent``: basis, rights holder, purpose, and name and SHA-256 of each document
of --evidence, which itself is not published; and in OUTPUT/agreement.json. Decoding, checks and shards are those of
data_tools/download_shards.py, whose further options may follow after ``--``. The files are first linked, or copied,
into OUTPUT.source; a killed run goes on there.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from rich.progress import track

from data_tools import download_shards
from data_tools.links.link_table import folder_links
from data_tools.rights.legal_basis import LegalBasis
from data_tools.work.ledger import link_uid
from leam_mm.data.image_limits import IMAGE_SUFFIXES
from leam_mm.errors import UserError, run

AGREEMENT = "agreement.json"
LINKS = "links.parquet"
CAPTIONS = ("captions.parquet", "captions.csv", "captions.jsonl")
DOCUMENTED = (LegalBasis.licensed, LegalBasis.consent)  # somebody signed something
BASES = (*DOCUMENTED, LegalBasis.synthetic, LegalBasis.public_domain)
ASKING = ("http", "https", "ftp")  # servers of strangers, of whom rights are asked first
MAX_TEXT = 1 << 30  # bytes of a table of captions
MAX_CAPTION = 1 << 16  # and of a text file beside a picture


@dataclass(frozen=True)
class SourceFile:
    """A file to gather.

    Args:
        name: Relative to the source, with slashes.
        path: As the file system names it.
        size: In bytes, or None where it does not say.
    """

    name: str
    path: str
    size: int | None


def open_source(address: str) -> tuple[AbstractFileSystem, str, bool]:
    """The file system behind an address, the folder in it, and whether it is this machine's.

    Raises:
        UserError: It is a stranger's server, or fsspec cannot open it.
    """
    schemes = re.findall(r"([A-Za-z][A-Za-z0-9+.-]*)://", address)
    if any(scheme.lower() in ASKING for scheme in schemes):
        raise UserError(f"--source {address}: of web servers, download_shards gathers: it asks for rights first")
    try:
        system, root = fsspec.core.url_to_fs(address)
        if not system.exists(root) and not system.find(root):
            raise FileNotFoundError("there is no such folder")
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(f"--source {address} cannot be opened ({str(error)[:200]}): mend the address") from None
    local = "file" in (system.protocol if isinstance(system.protocol, tuple | list) else (system.protocol,))
    return system, root, local


def list_files(system: AbstractFileSystem, root: str, local: bool, max_bytes: int) -> list[SourceFile]:
    """Pictures, captions and tables of a source, in the order of their names.

    Raises:
        UserError: A name or a link leads out of the folder, or a file is too large.
    """
    prefix = root.rstrip("/")
    found = []
    for path, info in sorted(system.find(root, detail=True).items()):
        name = str(path)[len(prefix) :].lstrip("/") if str(path).startswith(prefix) else str(path)
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in IMAGE_SUFFIXES and suffix != ".txt" and name not in CAPTIONS:
            continue
        parts = name.split("/")
        if ".." in parts or "" in parts or re.search(r"[\x00-\x1f\\]", name):
            raise UserError(f"--source: the file name {name!r} leads out of the folder; rename it")
        if local and not Path(path).resolve().is_relative_to(Path(root).resolve()):
            raise UserError(f"{path} is a link that leads out of {root}; copy the file instead")
        size = info.get("size")
        limit = max_bytes if suffix in IMAGE_SUFFIXES else MAX_TEXT if name in CAPTIONS else MAX_CAPTION
        if size is not None and size > limit:
            raise UserError(f"--source: {name} has {size} bytes, more than {limit}: make it smaller, or take it out")
        found.append(SourceFile(name, str(path), size))
    if not any(PurePosixPath(file.name).suffix.lower() in IMAGE_SUFFIXES for file in found):
        raise UserError(f"--source holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))}): give another folder")
    return found


def stage(system: AbstractFileSystem, local: bool, listed: list[SourceFile], folder: Path, max_bytes: int) -> None:
    """Link or copy the files into a folder; what an earlier run brought there whole is kept."""
    for file in track(listed, description="gather", transient=True):
        target = folder / file.name
        if target.is_file() and (file.size is None or target.stat().st_size == file.size):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if local:
            try:
                os.link(Path(file.path).resolve(), target)
                continue
            except OSError:
                pass  # another disk, or one without links
        temporary = target.with_name(target.name + ".part")
        with system.open(file.path, "rb") as source, open(temporary, "wb") as copy:
            for piece in _pieces(source, max(max_bytes, MAX_TEXT), file.name):
                copy.write(piece)
        os.replace(temporary, target)


def _pieces(source: Any, limit: int, name: str) -> Iterator[bytes]:
    """A file's bytes, never more than a limit, whatever its size was said to be."""
    read = 0
    while piece := source.read(1 << 20):
        read += len(piece)
        if read > limit:
            raise UserError(f"--source: {name} has more than {limit} bytes: make it smaller, or take it out")
        yield piece


def agreement_of(settings: argparse.Namespace) -> dict[str, Any]:
    """What allows the use, as it stands with every sample.

    Raises:
        UserError: Something is missing that the legal basis needs.
    """
    basis = LegalBasis.of(settings.legal_basis)
    if basis not in BASES:
        raise UserError(f"--legal-basis {basis} is for links to strangers' pages; here use one of {', '.join(BASES)}")
    if basis in DOCUMENTED and not settings.evidence:
        raise UserError(f"--evidence is missing: the legal basis {basis} needs the contract or consent, as a file")
    if basis is LegalBasis.synthetic and not settings.generator:
        raise UserError("--generator is missing: say by name and version what made the pictures")
    for name in ("licence", "rights_holder", "purpose"):
        if not getattr(settings, name).strip():
            raise UserError(f"--{name.replace('_', '-')} is empty: state it, it is published with the pictures")
    try:
        until = str(date.fromisoformat(settings.until)) if settings.until else None
    except ValueError:
        raise UserError(f"--until is {settings.until!r}: write it as YYYY-MM-DD") from None
    agreement = {
        "legal_basis": str(basis),
        "licence": settings.licence.strip(),
        "rights_holder": settings.rights_holder.strip(),
        "purpose": settings.purpose.strip(),
        "until": until,
        "generator": settings.generator or None,
        "documents": [document(path) for path in settings.evidence],
    }
    return {name: value for name, value in agreement.items() if value}


def document(path: Path) -> dict[str, Any]:
    """Name, size and digest of a document of evidence."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}
    except OSError as error:
        raise UserError(f"--evidence {path} cannot be read ({error.strerror}): give the document") from None


def links_of(folder: Path, agreement: dict[str, Any], language: str) -> pa.Table:
    """The table of links of a staged folder, with rights and agreement in every row.

    Raises:
        UserError: A row states a legal basis that this agreement does not cover, or a file that is not there.
    """
    rows = folder_links(folder).to_pylist()
    for row in rows:
        if not str(row["url"]).startswith("file:") or str(row["url"]).startswith("file:/"):
            raise UserError(f"the table of captions names {row['url']}: give file names relative to its folder")
        basis = LegalBasis.of(row.get("legal_basis"), LegalBasis(agreement["legal_basis"]))
        if basis not in BASES or (basis in DOCUMENTED and "documents" not in agreement):
            raise UserError(f"{row['url']}: the table says {basis}, for which no --evidence is given: gather it apart")
        own = {"legal_basis": str(basis), "licence": (row.get("licence") or "").strip() or agreement["licence"]}
        holder = (row.get("attribution") or "").strip() or agreement["rights_holder"]
        row.update(own, attribution=holder, language=(row.get("language") or "").strip() or language)
        if not row.get("captions"):
            text = (row["caption"] or "").strip()
            caption = {"text": text, "language": row["language"], "source": "provided", "machine_translated": False}
            row["captions"] = json.dumps([caption], ensure_ascii=False, sort_keys=True) if text else None
        row["consent"] = json.dumps({"agreement": agreement | own | {"rights_holder": holder}}, sort_keys=True)
        # File names repeat between institutions, and a link's name must not.
        row["uid"] = link_uid(f"{holder}/{row['url']}", None, row["caption"])
    names = ["url", "caption", "captions", "licence", "legal_basis", "attribution", "language", "consent", "uid"]
    names += [name for name in ("page_url", "metadata") if any(row.get(name) for row in rows)]
    return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names})


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def gather(settings: argparse.Namespace) -> None:
    """Stage the files, write the table of links, and have the shards built."""
    agreement = agreement_of(settings)
    text = (json.dumps(agreement, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
    output: Path = settings.output
    staged = output.with_name(output.name + ".source")
    begun = staged / AGREEMENT
    if begun.is_file() and begun.read_bytes() != text:
        raise UserError(f"{staged} was begun with another agreement: delete it, or give the same options again")
    if not (output.exists() and begun.is_file()):  # else only the end of a killed run is missing
        system, root, local = open_source(settings.source)
        if local and (output.resolve().is_relative_to(Path(root).resolve())):
            raise UserError(f"--output {output} lies inside of --source: choose another place")
        listed = list_files(system, root, local, settings.max_bytes)
        staged.mkdir(parents=True, exist_ok=True)
        _write(begun, text)
        stage(system, local, listed, staged / "files", settings.max_bytes)
        table = links_of(staged / "files", agreement, settings.language)
        pq.write_table(table, staged / "files" / f"{LINKS}.tmp")
        os.replace(staged / "files" / f"{LINKS}.tmp", staged / "files" / LINKS)
        further = [part for part in settings.download if part != "--"]
        given = ["--table", str(staged / "files" / LINKS), "--allow-file", "--output", str(output)]
        download_shards.main([*given, "--max-bytes", str(settings.max_bytes), *further])
    _write(output / AGREEMENT, text)
    shutil.rmtree(staged)
    print(f"{output}: {agreement['legal_basis']}, {agreement['licence']}, of {agreement['rights_holder']}")


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--source", required=True, help="folder, or an address that fsspec opens")
    add("--output", type=Path, required=True, help="folder of the final shards; must not exist yet")
    add("--legal-basis", required=True, help=f"one of {', '.join(BASES)}")
    add("--licence", required=True, help="of the pictures, as SPDX writes it, or its address")
    add("--rights-holder", required=True, help="who may allow the use; stands as attribution")
    add("--purpose", required=True, help="what the use is allowed for, in the words of the agreement")
    add("--evidence", type=Path, action="append", default=[], help="contract or consent, as a file; may be repeated")
    add("--until", default="", help="day on which the agreement ends, YYYY-MM-DD")
    add("--generator", default="", help="what made the pictures, of synthetic ones")
    add("--language", default="und", help="of the captions, where a table does not say (%(default)s)")
    add("--max-bytes", type=int, default=50_000_000, help="largest picture gathered (%(default)s)")
    add("download", nargs="*", metavar="-- OPTION", help="further options of data_tools/download_shards.py")
    gather(parser.parse_args(args))


if __name__ == "__main__":
    run(main)
