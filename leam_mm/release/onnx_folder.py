"""A release's networks as ONNX files, each compared with torch in onnxruntime before it is kept.

A network that cannot be exported, or whose file disagrees, is left out and named with the reason. The libraries of the
extra ``onnx`` enter here.
"""

import logging
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from leam_mm.errors import UserError
from leam_mm.files import write_json
from leam_mm.release.onnx_parts import OnnxPart, encoder_parts, generator_parts

if TYPE_CHECKING:
    from leam_mm.contrastive_module import ContrastiveModule
    from leam_mm.diffusion_module import LatentDiffusionModule

log = logging.getLogger(__name__)
OPSET = 18
TOLERANCE = 1e-4  # largest absolute difference of an output, or relative to its largest number if that is above 1
EMBEDDED_BYTES = 1_500_000_000  # weights beyond lie in NAME.onnx.data: a file of protobuf holds 2 GiB at most
RECORD = "onnx.json"


@dataclass(frozen=True)
class OnnxRecord:
    """What became of one network.

    Args:
        name: See onnx_parts.py.
        files: The written files; none if it could not be exported.
        opset: Version of ONNX's default operators.
        inputs: Dimensions of each input; names vary, numbers are fixed.
        output: Name of the output.
        max_difference: Largest absolute difference between onnxruntime and torch, at sizes other than those of the
            export; None if it could not be exported.
        reason: Why there is no file, or a size is fixed; empty otherwise.
    """

    name: str
    files: list[str] = field(default_factory=list)
    opset: int = OPSET
    inputs: dict[str, list[str | int]] = field(default_factory=dict)
    output: str = ""
    max_difference: float | None = None
    reason: str = ""


def write_onnx_folder(
    folder: Path, encoder: "ContrastiveModule | None" = None, generator: "LatentDiffusionModule | None" = None
) -> list[OnnxRecord]:
    """Write the ONNX files, and onnx.json with the returned records and the generator's own latent size.

    Args:
        folder: A new or empty folder.
        encoder: The towers, or None.
        generator: Text encoder, denoiser and codec, or None.

    Raises:
        UserError: The libraries of the extra ``onnx`` are missing.
    """
    check_libraries()
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    if encoder is not None:
        records += export_parts(encoder_parts(encoder), folder)
    if generator is not None:
        records += export_parts(generator_parts(generator), folder)
    side = {"latent_size": generator.latent_size} if generator is not None else {}
    content = {"opset": OPSET, **side, "parts": [asdict(record) for record in records]}
    write_json(folder / RECORD, content, indent=2)
    return records


def check_libraries() -> None:
    """Raise UserError if a library is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--onnx needs the extra onnx ({error}): pip install 'leam_mm[onnx]'") from None


def export_parts(parts: Iterable[OnnxPart], folder: Path, embedded: int = EMBEDDED_BYTES) -> list[OnnxRecord]:
    """Export networks one after another.

    Args:
        parts: The networks.
        folder: Where the files are written.
        embedded: Most bytes of weights inside the .onnx file.
    """
    records = []
    for part in parts:
        record = export_part(part, folder, embedded)
        records.append(record)
        if record.files:
            log.info("%s.onnx: onnxruntime differs from torch by %.2g at most", part.name, record.max_difference)
        if record.reason:
            log.warning("%s.onnx: %s", part.name, record.reason)
    return records


@torch.no_grad()
def export_part(part: OnnxPart, folder: Path, embedded: int) -> OnnxRecord:
    """Export a network with free sizes or, if that fails, with the fixed sizes of the image; then compare."""
    fixed = {name: {axis: word for axis, word in axes.items() if axis < 2} for name, axes in part.sizes.items()}
    reason = ""
    for sizes in [part.sizes] + ([fixed] if fixed != part.sizes else []):
        try:
            program = to_program(part, sizes)
        except Exception as error:  # exporters raise many kinds for what they do not support
            reason = reason or f"it cannot be exported: {_first_line(error)}"
            continue
        file = folder / f"{part.name}.onnx"
        weights = sum(value.nbytes for value in part.network.state_dict().values())
        program.save(str(file), external_data=weights > embedded)
        others = part.others if sizes == part.sizes else {name: _cut(part, name) for name in part.others}
        try:
            difference, bound = compare(part, file, others)
            if not difference <= bound:
                raise ValueError(f"onnxruntime differs from torch by {difference:.2g}")
        except Exception as error:  # onnxruntime has exceptions of its own for each fault
            for written in folder.glob(f"{file.name}*"):
                written.unlink()
            reason = reason or f"its file is not usable: {_first_line(error)}"
            continue
        files = sorted(written.name for written in folder.glob(f"{file.name}*"))
        inputs = {name: _dimensions(value.shape, sizes.get(name, {})) for name, value in part.inputs.items()}
        reason = f"height and width are fixed ({reason})" if reason else ""
        return OnnxRecord(part.name, files, OPSET, inputs, part.output, difference, reason)
    return OnnxRecord(part.name, reason=reason)


def to_program(part: OnnxPart, sizes: dict[str, dict[int, str]]) -> Any:
    """Return torch's ONNX program of a network, whose dimensions in ``sizes`` may vary."""
    shapes = tuple(dict.fromkeys(sizes.get(name, {}), torch.export.Dim.DYNAMIC) for name in part.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.export.export(part.network, (*part.inputs.values(),), dynamic_shapes=shapes, strict=False)
        return torch.onnx.export(
            traced,
            dynamo=True,
            verbose=False,
            input_names=list(part.inputs),
            output_names=[part.output],
            opset_version=OPSET,
        )


def compare(part: OnnxPart, file: Path, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Return the largest absolute difference between onnxruntime and torch, and the largest that is accepted."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = session.run([part.output], {name: value.numpy() for name, value in inputs.items()})[0]
    ours = part.network(**inputs)
    if theirs.shape != tuple(ours.shape):
        raise ValueError(f"onnxruntime returns the shape {theirs.shape}, torch {tuple(ours.shape)}")
    difference = float((torch.from_numpy(theirs) - ours).abs().max())
    return difference, TOLERANCE * max(1.0, float(ours.abs().max()))


def _cut(part: OnnxPart, name: str) -> torch.Tensor:
    """Return the other example of an input with the height and width of the first."""
    shape = part.inputs[name].shape
    other = part.others[name]
    return other[..., : shape[2], : shape[3]].contiguous() if other.ndim == 4 else other


def _dimensions(shape: torch.Size, names: dict[int, str]) -> list[str | int]:
    return [names.get(axis, size) for axis, size in enumerate(shape)]


def _first_line(error: BaseException) -> str:
    """Return the first line of the error that caused an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
