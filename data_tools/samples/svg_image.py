"""Rasterise drawings (SVG) of strangers: nothing outside the file is read, and a renderer that hangs is ended.

The fonts are those of matplotlib (DejaVu), so that the same file gives the same pixels on every machine.
"""

import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from data_tools.work.foreign_error import first_line

MAX_ELEMENTS, MAX_DEPTH = 200_000, 200
MAX_RATIO = 50  # of the longer side to the shorter one
TIMEOUT = 20.0  # seconds; svg_render.py limits the processor's to half of it
START = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|!--|!DOCTYPE\s+(?:\w+:)?svg|(?:\w+:)?svg[\s>])", re.I)
ROOT = re.compile(rb"<(?:\w+:)?svg[\s>/]")
INLINE = re.compile(r"\s*(?:#|data:image/(?:png|jpe?g|gif|webp)[;,]|$)", re.I)
LENGTH = re.compile(r"\s*\+?(\d*\.?\d+(?:e[+-]?\d+)?)\s*(px|pt|pc|mm|cm|in)?\s*", re.I)
PIXELS = {"px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0, "": 1.0}  # CSS lengths
HEAD = 4096  # bytes in which the root element begins


class SvgFault(Exception):
    """A drawing is refused; the message gives the reason in words: one line, printable."""

    def __init__(self, reason: str) -> None:
        """Keep what may come from the drawing or a library to one printable line, the same in each run."""
        super().__init__(first_line(ValueError(reason)))


@dataclass
class _Tree:
    elements: int = 0
    depth: int = 0
    size: tuple[float, float] | None = None


def is_svg(raw: bytes) -> bool:
    """Return whether a file is meant to be an SVG."""
    return START.match(raw) is not None and ROOT.search(raw[:HEAD]) is not None


def rasterise(raw: bytes, side: int, max_pixels: int) -> bytes:
    """Draw an SVG as a PNG with transparency.

    Args:
        raw: The file, UTF-8 or with an XML declaration of its encoding.
        side: Length of the shorter side in pixels; a drawing has no resolution of its own.
        max_pixels: Largest width times height.

    Raises:
        SvgFault: It is no XML, refers to something outside itself, or cannot be drawn within the limits.
    """
    width, height = _checked(raw).size or (1.0, 1.0)
    ratio = max(width, height) / min(width, height)
    if ratio > MAX_RATIO or side * side * ratio > max_pixels:
        raise SvgFault(f"its sides are as 1 to {ratio:.0f}, too long for {max_pixels} pixels")
    fixed = (side, 0) if width <= height else (0, side)
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__).with_name("svg_render.py")), *map(str, fixed), str(_fonts())],
            input=_utf8(raw),
            capture_output=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise SvgFault(f"drawing it takes more than {TIMEOUT:.0f} s") from None
    if done.returncode < 0:
        raise SvgFault(f"drawing it took too much time or memory (signal {-done.returncode})")
    if done.returncode or not done.stdout:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no image"]
        raise SvgFault(f"it cannot be drawn: {reason[0][:200]}")
    return done.stdout


def _checked(raw: bytes) -> _Tree:
    """Parse a drawing without expanding anything, and refuse what leads out of it."""
    tree, parser = _Tree(), expat.ParserCreate(namespace_separator=" ")

    def begin(name: str, attributes: dict[str, str]) -> None:
        tree.elements += 1
        tree.depth += 1
        if tree.elements > MAX_ELEMENTS or tree.depth > MAX_DEPTH:
            raise SvgFault(f"it has more than {MAX_ELEMENTS} elements or {MAX_DEPTH} levels")
        local = name.rpartition(" ")[2]
        if tree.elements == 1:
            if local != "svg":
                raise SvgFault(f"its root element is {local[:40]}")
            tree.size = _size(attributes)
        for key, value in attributes.items():
            # The target of a link (a) is never opened; all others would be.
            if key.rpartition(" ")[2] in ("href", "src") and local != "a" and not INLINE.match(value):
                raise SvgFault(f"{local[:40]} refers to {value.strip()[:80]}, outside the file")
            if key.rpartition(" ")[2] == "base":
                raise SvgFault("it sets the base of its references (xml:base)")

    def end(name: str) -> None:
        tree.depth -= 1

    def entity(name: str, *more: object) -> None:
        raise SvgFault(f"it declares the entity {name[:40]}: save it without a DOCTYPE")

    parser.StartElementHandler, parser.EndElementHandler, parser.EntityDeclHandler = begin, end, entity
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise SvgFault(f"it is no XML ({error})") from None
    except (ValueError, LookupError) as error:  # an encoding that Python lacks
        raise SvgFault(f"its encoding cannot be read ({str(error)[:80]})") from None
    return tree


def _size(attributes: dict[str, str]) -> tuple[float, float] | None:
    """Return width and height in CSS pixels, or those of the viewBox; None if neither is stated."""
    sides = [LENGTH.fullmatch(attributes.get(name, "")) for name in ("width", "height")]
    if all(sides):
        width, height = (float(side[1]) * PIXELS[(side[2] or "").lower()] for side in sides if side)
    else:
        try:
            width, height = (float(word) for word in re.split(r"[\s,]+", attributes.get("viewBox", "").strip())[2:])
        except ValueError:
            return None
    return (width, height) if 0 < width < 1e9 and 0 < height < 1e9 else None


def _utf8(raw: bytes) -> bytes:
    """Return the text in UTF-8, its declaration of another encoding removed."""
    declared = re.match(rb"(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]{1,40})[\"']", raw[:200])
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else declared[1].decode() if declared else "utf-8-sig"
    try:
        text = raw.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except (UnicodeDecodeError, LookupError):
        raise SvgFault(f"its text is not {encoding}") from None
    return re.sub(r"^\s*<\?xml.*?\?>", "", text, flags=re.S).encode("utf-8", "replace")


def _fonts() -> Path:
    found = importlib.util.find_spec("matplotlib")
    return Path(found.origin if found and found.origin else "/nonexistent").parent / "mpl-data" / "fonts" / "ttf"
