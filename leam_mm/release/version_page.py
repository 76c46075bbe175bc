"""index.html of published versions: self-contained, works from a disk or any web server."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from leam_mm.report.templates import Figure, Section, Table, render_page

INTRODUCTION = (
    "Each version is a folder that is never changed. Check a copy with the command below; it recomputes every digest."
)
FIRST = ("README.md", "LICENSE", "leam_mm_release.json", "provenance.json", "model.sig")
COMMAND = "python -m leam_mm.release verify FOLDER --public-key KEY"


@dataclass(frozen=True)
class Version:
    """A published version.

    Args:
        version: Its name, and that of its folder.
        name: Name of the release.
        licence: Licence of the weights.
        own_sha256: Name of the release by content.
        published: Day of publication, as YYYY-MM-DD.
        signed: Whether it has a signature.
        files: Path, bytes and SHA-256 of each file.
    """

    version: str
    name: str
    licence: str
    own_sha256: str
    published: str
    signed: bool
    files: list[list[object]]


def version_page(versions: list[Version], latest: str | None) -> str:
    """Return the page.

    Args:
        versions: All versions, the newest first.
        latest: Name of the latest one.
    """
    title = versions[0].name if versions else "Releases"
    sections = [
        Section("versions", "Versions", [_version(one, one.version == latest) for one in versions]),
        Section("check", "How to check a copy", COMMAND),
    ]
    figures = [Figure("Latest", latest or "none"), Figure("Versions", str(len(versions)))]
    parts = Path(__file__).with_name("version_page.html.jinja")
    return render_page(
        parts, title, INTRODUCTION, figures, sections, "Written by leam_mm. It loads nothing from elsewhere."
    )


def _version(one: Version, latest: bool) -> dict[str, object]:
    rows = [[_link(one.version, str(name)), f"{size:,}", digest] for name, size, digest in one.files]
    total = sum(size for _, size, _ in one.files if isinstance(size, int))
    names = {str(name) for name, _, _ in one.files}
    start = [_link(one.version, name) for name in FIRST if name in names]
    return {
        "version": one, "latest": latest, "links": start, "size": f"{total / 1e6:,.1f} MB",
        "files": Table(["File", "Bytes|number", "SHA-256|wrap"], rows),
    }  # fmt: skip


def _link(version: str, name: str) -> Markup:
    return Markup('<a href="{}/{}">{}</a>').format(quote(version), quote(name), name)
