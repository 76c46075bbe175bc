"""Say which marks of generated images are in files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from leam_mm.command_line import Range
from leam_mm.errors import UserError, one_line
from leam_mm.marking.content_credentials import Credentials
from leam_mm.marking.detection import Marks, find_marks, load_decoder_mark, load_detector
from leam_mm.marking.image_of_stranger import read_file
from leam_mm.marking.spread_spectrum import SpreadSpectrum
from leam_mm.marking.watermark import Watermark

STATES = {
    "Trusted": "valid, and the signer is on the trust list",
    "Valid": "valid: unchanged since it was signed; the signer is not on a trust list, so the name is not proven",
    "Invalid": "INVALID: the file or the manifest was changed after signing, or the signature is wrong",
}
NONE = "no mark found (this does not say that the image was not generated)"


@dataclass(frozen=True)
class DetectOptions:
    """Read content credentials and watermarks, offline.

    The exit code is 0 if every file has a mark, 1 if no mark is found in at least one, 2 if a file cannot be read.

    Args:
        files: Image files.
        mark: Folders of detectors of marks that a codec's decoder draws.
        detector: Dotted paths of classes with watermark detectors of your own; their modules are run.
        false_positives: Largest false positive rate at which a watermark counts as found.
        json: Write one JSON object a line instead of text.
    """

    files: list[Path]
    mark: list[Path] = field(default_factory=list)
    detector: list[str] = field(default_factory=list)
    false_positives: Annotated[float, Range(above=0, most=1)] = 1e-3
    json: bool = False


def detect(options: DetectOptions) -> int:
    """Print what is found, and return the exit code."""
    detectors: list[Watermark] = [SpreadSpectrum()]
    detectors += [load_decoder_mark(folder) for folder in options.mark]
    detectors += [load_detector(name) for name in options.detector]
    code = 0
    for path in options.files:
        try:
            marks = find_marks(read_file(path), detectors, options.false_positives)
        except UserError as error:
            code = 2
            reason = one_line(error)
            print(_json(path, None, reason) if options.json else f"{_printable(path)}\n  cannot be read: {reason}")
            continue
        code = max(code, 0 if marks.found else 1)
        print(_json(path, marks, "") if options.json else "\n  ".join([_printable(path), *_lines(marks)]), flush=True)
    return code


def _json(path: Path, marks: Marks | None, error: str) -> str:
    found = {"found": marks.found, **asdict(marks)} if marks is not None else {"error": error}
    return json.dumps({"file": str(path), **found}, ensure_ascii=True)


def _printable(text: object) -> str:
    return "".join(letter if letter.isprintable() else "�" for letter in str(text))


def _lines(marks: Marks) -> list[str]:
    lines = [] if marks.found else [NONE]
    if marks.problem:
        lines.append(f"content credentials: cannot be read ({marks.problem})")
    elif marks.credentials is None:
        lines.append("content credentials: none")
    else:
        lines += _credentials(marks.credentials)
    for each in marks.watermarks:
        word = "found" if each.found else "not found"
        lines.append(f"watermark, {each.name}: {word}; images without it reach this with probability "
                     f"{'at most ' if each.false_positive_rate < 1 else ''}{each.false_positive_rate:.1e}")  # fmt: skip
    for name, text in marks.texts.items():
        lines.append(f"text of the file, which anybody can write: {name} = {_printable(text)}")
    return lines


def _credentials(found: Credentials) -> list[str]:
    says = "a model made the image or a part of it" if found.generated else "nothing about a model that made the image"
    model = f"model {found.model}" + (f", sha256 {found.sha256}" if found.sha256 else "")
    lines = [
        f"content credentials: {STATES.get(found.state, found.state)}",
        f"  signer: {found.signer or 'without a name'}",
        f"  program: {found.program}",
        f"  say: {says}" + (f"; {model}" if found.model else ""),
    ]
    lines += [f"  time, by the signer's clock: {found.when}"] if found.when else []
    lines += [f"  made from: {title}" for title in found.ingredients]
    return lines + [f"  reader: {problem}" for problem in found.problems if found.state == "Invalid"]
