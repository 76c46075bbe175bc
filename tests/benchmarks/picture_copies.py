"""Pictures of three kinds and what becomes of them on the web: tiles of real photographs, rendered scenes, drawings.

Every change is a function of the picture alone, so that a measurement can be repeated to the digit.
"""

import io
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from data_tools.corpora.scene_corpus import make_scene, render
from leam_mm.errors import UserError

Change = Callable[[Image.Image], Image.Image]
# Real pictures that scikit-image carries. Of the stereo pair only one, since its halves are near duplicates.
PHOTOGRAPHS = (
    *("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg"),
    *("retina.jpg", "ihc.png", "camera.png", "coins.png", "moon.png", "brick.png", "grass.png", "gravel.png"),
    *("cell.png", "text.png", "page.png"),
)


def tiles(side: int) -> dict[str, Image.Image]:
    """Cut the photographs into tiles that do not overlap, named by picture and place."""
    folder, found = resources.files("skimage") / "data", {}
    for name in PHOTOGRAPHS:
        with resources.as_file(folder / name) as path:
            picture = Image.open(path).convert("RGB")
        for top in range(0, picture.height - side + 1, side):
            for left in range(0, picture.width - side + 1, side):
                found[f"{name}/{top}/{left}"] = picture.crop((left, top, left + side, top + side))
    return found


def scenes(count: int, side: int) -> dict[str, Image.Image]:
    """Rendered scenes of one to five flat shapes, named by number."""
    drawn = (render(make_scene("train", 0, number), 0, "train", number, side) for number in range(count))
    return {f"scene/{number}": Image.open(io.BytesIO(content)).convert("RGB") for number, content in enumerate(drawn)}


def emoji(folder: Path) -> dict[str, Image.Image]:
    """Drawings that data_tools/gather_emoji.py made, named ``style/code``.

    Raises:
        UserError: There are none.
    """
    paths = sorted((folder / "images").glob("*/*.png"))
    if not paths:
        raise UserError(f"{folder}/images holds no drawing: python data_tools/gather_emoji.py --variants --output ...")
    return {f"{path.parent.name}/{path.stem}": Image.open(path).convert("RGB") for path in paths}


def encoded(picture: Image.Image, kind: str, quality: int) -> Image.Image:
    """As it comes back from a lossy file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def scaled(picture: Image.Image, width: float, height: float) -> Image.Image:
    """Resized by factors, bicubic."""
    size = max(1, round(picture.width * width)), max(1, round(picture.height * height))
    return picture.resize(size, Image.Resampling.BICUBIC)


def cropped(picture: Image.Image, share: float, corner: bool) -> Image.Image:
    """Without a border of ``share`` of the side in all, taken off evenly, or at the right and below."""
    across, down = picture.width * share, picture.height * share
    left, top = (0, 0) if corner else (round(across / 2), round(down / 2))
    return picture.crop((left, top, left + round(picture.width - across), top + round(picture.height - down)))


def bordered(picture: Image.Image, share: float) -> Image.Image:
    """Within a white frame."""
    return ImageOps.expand(picture, round(min(picture.size) * share), (255, 255, 255))


def watermarked(picture: Image.Image, opacity: float) -> Image.Image:
    """With a line of half-transparent writing over the middle and a mark in a corner."""
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    pen, (width, height) = ImageDraw.Draw(layer), picture.size
    paint = (255, 255, 255, round(255 * opacity))
    pen.text((width * 0.08, height * 0.44), "PREVIEW ONLY", fill=paint, font_size=max(8, height // 8))
    pen.text((width * 0.6, height * 0.88), "© agency", fill=paint, font_size=max(8, height // 14))
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def enhanced(picture: Image.Image, kind: type, factor: float) -> Image.Image:
    """Brighter, darker, or with other contrast or saturation."""
    return kind(picture).enhance(factor)


def changes() -> dict[str, Change]:
    """Every change, by name; the part before the colon names its kind."""
    found: dict[str, Change] = {}
    found |= {f"jpeg:{quality}": partial(encoded, kind="JPEG", quality=quality) for quality in (30, 50, 70, 85, 95)}
    found |= {f"webp:{quality}": partial(encoded, kind="WEBP", quality=quality) for quality in (30, 50, 80)}
    found |= {f"resize:{by:g}": partial(scaled, width=by, height=by) for by in (0.25, 0.5, 0.75, 1.5, 2.0)}
    found |= {"stretch:1.2": partial(scaled, width=1.2, height=1.0)}
    found |= {f"crop:{share:g}": partial(cropped, share=share, corner=False) for share in (0.01, 0.02, 0.05, 0.1)}
    found |= {f"corner:{share:g}": partial(cropped, share=share, corner=True) for share in (0.02, 0.05, 0.1)}
    found |= {f"border:{share:g}": partial(bordered, share=share) for share in (0.02, 0.05)}
    for name, kind in (("bright", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast)):
        found |= {f"{name}:{by:g}": partial(enhanced, kind=kind, factor=by) for by in (0.6, 0.8, 1.2, 1.4)}
    found |= {f"colour:{by:g}": partial(enhanced, kind=ImageEnhance.Color, factor=by) for by in (0.0, 0.5, 1.5)}
    found |= {f"watermark:{opacity:g}": partial(watermarked, opacity=opacity) for opacity in (0.3, 0.6)}
    return found


def turns() -> dict[str, Change]:
    """Turned and mirrored; PDQ finds them only where its eight hashes are compared."""
    return {
        "turn:rotate90": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
        "turn:rotate180": lambda picture: picture.transpose(Image.Transpose.ROTATE_180),
        "turn:rotate270": lambda picture: picture.transpose(Image.Transpose.ROTATE_270),
        "turn:flip_horizontal": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "turn:flip_vertical": lambda picture: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    }
