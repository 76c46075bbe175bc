"""Fetch, check and read the packages with emoji drawings and names, and draw images of one size.

A package is read without unpacking it: no path inside it is used as a path on this machine.
"""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import resvg_py
from PIL import Image

from data_tools.corpora.emoji_names import code_of_file
from leam_mm.data.image_file import open_image
from leam_mm.errors import UserError
from leam_mm.files import temporary_path

log = logging.getLogger(__name__)

MEMBER_BYTES = 16 * 2**20
WANTED_BYTES = 512 * 2**20
MEMBERS = 100_000
IMAGE_PIXELS = 4096 * 4096
SECONDS_PER_FETCH = 600
NPM_OPTIONS = ("--ignore-scripts", "--no-update-notifier", "--loglevel=error")
# An SVG that loads anything, uses text (and so the system's fonts) or defines entities is not drawn.
UNSAFE_SVG = re.compile(
    rb"<!DOCTYPE|<!ENTITY|<image|<feImage|<text|<script|@import|href\s*=\s*[\"'](?!#)", re.IGNORECASE
)


# Code of the emoji to style to (kind of file, content).
Drawings = dict[str, dict[str, tuple[str, bytes]]]


@dataclass(frozen=True)
class Package:
    """One npm package at one version.

    Attributes:
        name: Name for the npm client.
        version: Exact version.
        sha512: Of the tarball, hexadecimal.
        wanted: Pattern of the members that are read; its group is their name.
    """

    name: str
    version: str
    sha512: str
    wanted: str

    @property
    def stem(self) -> str:
        """Name of the tarball as npm writes it, without its extension."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"


@dataclass(frozen=True)
class Style:
    """Drawings of the emoji in one style, with the attribution that their licence requires.

    Attributes:
        package: Package with the drawings.
        licence: SPDX identifier of the drawings.
        attribution: Authors of the drawings; {author} is the author of a single drawing if the package names one.
        page_url: Home page of the drawings.
        licence_note: How the package's own files differ from it.
    """

    package: Package
    licence: str
    attribution: str
    page_url: str
    licence_note: str


STYLES = {
    "openmoji": Style(
        Package(
            "openmoji",
            "17.0.0",
            "1019d8acd19d71dc3e3925e610d78d135c81351bbab4eada4e6a0ec946c99139"
            "af4fff97113a7c4592d2245cc3de5acf73937d0b3b323e7453934569e14688f7",
            r"color/svg/([0-9A-Fa-f-]+\.svg)|(data/openmoji\.json)",
        ),
        "CC-BY-SA-4.0",
        "OpenMoji, drawn by {author}, CC BY-SA 4.0",
        "https://openmoji.org",
        "",
    ),
    "twemoji": Style(
        Package(
            "@twemoji/svg",
            "15.0.0",
            "6523de7f607a9c16989df81d4db032e23816f79a3ba62db13c6c06094f96313c"
            "68ec9e81d6530f4d6c12abfc13ba232af8dd24850f7409cbd8a75c05a10a68ff",
            r"([0-9A-Fa-f-]+\.svg)",
        ),
        "CC-BY-4.0",
        "Twemoji, copyright Twitter, Inc. and other contributors, CC BY 4.0",
        "https://github.com/jdecked/twemoji",
        "package.json says MIT, which covers the packaging; the drawings are CC-BY-4.0, of which the package is silent",
    ),
    "google": Style(
        Package(
            "emoji-datasource-google",
            "16.0.0",
            "6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47fe31"
            "104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc",
            r"img/google/64/([0-9A-Fa-f-]+\.png)",
        ),
        "Apache-2.0",
        "Noto Emoji, copyright Google LLC, Apache License 2.0",
        "https://github.com/googlefonts/noto-emoji",
        "package.json says MIT, which covers the data; the Noto pictures are Apache-2.0, the Noto fonts OFL-1.1",
    ),
    "fluent": Style(
        Package(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb4"
            "45d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
            r"assets/([0-9A-Fa-f-]+\.webp)",
        ),
        "MIT",
        "Fluent Emoji (3D), copyright Microsoft Corporation, MIT; packaged by LobeHub",
        "https://github.com/microsoft/fluentui-emoji",
        "",
    ),
}
NAMES = (
    Package(
        "cldr-annotations-full",
        "48.2.0",
        "0d5ec0fab11c81448d4d1b1518d1aa05946602419fc211873b9435751c330680"
        "6756b1d6a7cd3824feff40974473aea21e6c77fb32d654830214b9b4956ecf51",
        r"(annotations/[A-Za-z-]+/annotations\.json)",
    ),
    Package(
        "cldr-annotations-derived-full",
        "48.2.0",
        "96883ada49be00ecc8ee7fcd12e34d155d2683d0d69edebb1180a1d51c3166af"
        "5dc91bb2b5e079f3a2d3f3729ef1372111f9f023d7089363f7d733b89d3bd99b",
        r"(annotationsDerived/[A-Za-z-]+/annotations\.json)",
    ),
)


def fetch_package(package: Package, cache: Path) -> Path:
    """Return the package's tarball in the cache, fetched by the npm client if missing, after a check of its sha512.

    Raises:
        UserError: No npm client, no network, or another sha512.
    """
    path = cache / f"{package.stem}.tgz"
    if not path.is_file():
        npm = shutil.which("npm")
        if npm is None:
            raise UserError(
                f"{package.name}: no npm client on PATH to fetch it; install npm, or give a folder with "
                f"{package.stem}.tgz by --packages"
            )
        partial = temporary_path(cache)
        partial.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", f"{package.name}@{package.version}", *NPM_OPTIONS]
        try:
            done = subprocess.run(
                [*command, "--pack-destination", str(partial.resolve())],
                capture_output=True,
                text=True,
                timeout=SECONDS_PER_FETCH,
                check=False,
                cwd=partial,
            )
            if done.returncode or not (partial / path.name).is_file():
                reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
                raise UserError(
                    f"npm could not fetch {package.name}@{package.version} ({reason}); check the network, or give a "
                    f"folder with {path.name} by --packages"
                )
            cache.mkdir(parents=True, exist_ok=True)
            (partial / path.name).rename(path)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"npm took more than {SECONDS_PER_FETCH} s for {package.name}; start again, fetched packages are kept"
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    if sha512_of(path) != package.sha512:
        raise UserError(
            f"{path}: sha512 differs from that of {package.name}@{package.version}; delete it and start again"
        )
    return path


def find_package(package: Package, folder: Path) -> Path:
    """Return the package in a folder of the user: its tarball or its unpacked folder, under any of the usual names.

    Raises:
        UserError: It is missing.
    """
    bare = package.stem.removesuffix(f"-{package.version}")
    for name in (f"{package.stem}.tgz", package.stem, package.name, bare):
        path = folder / name
        if path.is_file():
            if sha512_of(path) != package.sha512:
                log.warning("%s: not the tarball of %s@%s; used as given", path, package.name, package.version)
            return path
        if path.is_dir():
            log.info("%s: an unpacked folder, so its bytes were not checked", path)
            return path / "package" if (path / "package").is_dir() else path
    raise UserError(f"--packages {folder}: neither {package.stem}.tgz nor a folder {package.stem} there; add it")


def sha512_of(path: Path) -> str:
    """Return the hexadecimal sha512 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def read_package(package: Package, path: Path) -> dict[str, bytes]:
    """Read the wanted members of a package, a tarball or a folder, into memory.

    Raises:
        UserError: The tarball is broken, too large, or has a member that would leave the folder if unpacked.
    """
    content = _read_folder(package, path) if path.is_dir() else _read_tarball(package, path)
    if not content:
        raise UserError(f"{path}: nothing in it looks like {package.name}@{package.version}; fetch it again")
    return dict(sorted(content.items()))


def _read_tarball(package: Package, path: Path) -> dict[str, bytes]:
    name_in: Callable[[str], str | None] = _name_in(package)
    content: dict[str, bytes] = {}
    total = 0
    virtual = str(path.parent.resolve() / "package")
    try:
        with tarfile.open(path, "r:gz") as archive:
            for count, member in enumerate(archive):
                if count >= MEMBERS:
                    raise UserError(f"{path}: more than {MEMBERS} members; this is not the package")
                tarfile.data_filter(member, virtual)
                # npm's tarballs have one top folder of any name
                name = name_in(member.name.partition("/")[2])
                if name is None or not member.isreg():
                    continue
                total += member.size
                if member.size > MEMBER_BYTES or total > WANTED_BYTES:
                    raise UserError(f"{path}: {member.name}: too large ({member.size} bytes); this is not the package")
                file = archive.extractfile(member)
                content[name] = file.read(MEMBER_BYTES) if file else b""
    except tarfile.FilterError as error:
        raise UserError(f"{path}: a member that is not safe to unpack ({error}); fetch the package again") from error
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: not a whole tarball ({error}); fetch the package again") from error
    return content


def _read_folder(package: Package, path: Path) -> dict[str, bytes]:
    name_in = _name_in(package)
    content = {}
    for folder, _, files in os.walk(path):  # does not follow links to folders
        for file in files:
            inside = Path(folder) / file
            name = name_in(inside.relative_to(path).as_posix())
            if name is None or inside.is_symlink():
                continue
            if inside.stat().st_size > MEMBER_BYTES:
                raise UserError(f"{inside}: larger than {MEMBER_BYTES} bytes; this is not the package")
            content[name] = inside.read_bytes()
    return content


def _name_in(package: Package) -> Callable[[str], str | None]:
    pattern = re.compile(package.wanted)

    def name_in(path: str) -> str | None:
        match = pattern.fullmatch(path)
        return next((group for group in match.groups() if group), None) if match else None

    return name_in


def read_drawings(contents: Mapping[str, Mapping[str, bytes]]) -> Drawings:
    """Return the files of all styles by emoji; of two files for one emoji in one style the first is used."""
    drawings: Drawings = defaultdict(dict)
    for style, files in contents.items():
        for name, content in files.items():
            stem, _, kind = name.rpartition(".")
            code = code_of_file(stem) if kind in ("svg", "png", "webp") else None
            if code:
                drawings[code].setdefault(style, (kind, content))
    return dict(drawings)


def read_authors(content: bytes | None) -> dict[str, str]:
    """Return the author of each drawing of OpenMoji by code; empty if the package has no list."""
    if content is None:
        log.warning("openmoji: no data/openmoji.json, so drawings are attributed to the project, not to authors")
        return {}
    try:
        entries = json.loads(content)
        authors = {code_of_file(str(entry["hexcode"])): str(entry["openmoji_author"]) for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"openmoji: data/openmoji.json is not readable ({error}); fetch the package again") from error
    return {code: author for code, author in authors.items() if code}


def draw(content: bytes, kind: str, size: int) -> bytes | None:
    """Draw one image on white.

    Args:
        content: The file.
        kind: `svg`, or the ending of a pixel format.
        size: Side of the square image, in pixels.

    Returns:
        An RGB PNG; None if the file cannot be drawn or refers to anything outside itself.
    """
    try:
        if kind == "svg":
            text = content.decode("utf-8")
            if UNSAFE_SVG.search(content):
                return None
            content = bytes(resvg_py.svg_to_bytes(svg_string=text, width=size, skip_system_fonts=True))
        with open_image(content, ("PNG", "WEBP", "JPEG"), IMAGE_PIXELS) as opened:
            drawn = opened.convert("RGBA")
    except (ValueError, OSError, SyntaxError, UserError):
        return None
    side = max(drawn.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    image = canvas.convert("RGB")
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
