"""Means and covariances of features in ``.npz`` files, as pytorch-fid, clean-fid and torch-fidelity write them.

A file holds ``mu`` (D,) and ``sigma`` (D, D). Ours have ``n``, the number of images, and ``record``, the JSON of all
that must be equal for a comparison, as bytes; other programs ignore both. No file is unpickled.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from leam_mm.data.array_format import parse_array
from leam_mm.distances.feature_statistics import FeatureMoments
from leam_mm.errors import UserError
from leam_mm.files import write_bytes
from leam_mm.json_text import parse_object

MAX_FEATURES = 8192
MAX_BYTES = 8 * MAX_FEATURES**2 + 4096  # of one array
MAX_COUNT = 10**12  # images
LARGEST = 1e100  # of a value, whose square is finite
ROUNDING = 1e-3  # of the mean variance, by which eigenvalues of a covariance in float32 may be below 0


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of a set of images.

    Args:
        moments: Mean and covariance; their count is 2 where the number of images is not stated.
        count: Number of images, or None.
        record: How the features were made, as our files state it; empty for other programs' files.
    """

    moments: FeatureMoments
    count: int | None
    record: dict[str, Any]


def write_statistics(path: Path, moments: FeatureMoments, record: dict[str, Any]) -> None:
    """Write the statistics of a set.

    Args:
        path: The ``.npz`` file.
        moments: Moments of at least two images.
        record: How the features were made; values that JSON can hold.
    """
    buffer = io.BytesIO()
    text = numpy.frombuffer(json.dumps(record, ensure_ascii=False).encode(), numpy.uint8)
    numpy.savez_compressed(
        buffer, mu=moments.mean.numpy(), sigma=moments.covariance.numpy(), n=numpy.int64(moments.count), record=text
    )
    write_bytes(path, buffer.getvalue())


def read_statistics(path: Path) -> FeatureStatistics:
    """Read the statistics of a set.

    Raises:
        UserError: The file is damaged, holds something else, or its numbers are no mean and covariance.
    """
    try:
        with zipfile.ZipFile(path) as file:
            arrays = {info.filename.removesuffix(".npy"): _member(file, info) for info in file.infolist()[:16]}
        mean, covariance = (numpy.array(arrays[name], numpy.float64) for name in ("mu", "sigma"))
        size = mean.size
        if mean.shape != (size,) or covariance.shape != (size, size) or not 1 <= size <= MAX_FEATURES:
            raise ValueError(f"mu of shape {mean.shape} and sigma of shape {covariance.shape}")
        if not (numpy.isfinite(mean).all() and numpy.isfinite(covariance).all()):
            raise ValueError("it has values that are not finite")
        if not numpy.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8) or (covariance.diagonal() < 0).any():
            raise ValueError("sigma is no covariance")
        if max(numpy.abs(mean).max(), covariance.diagonal().max()) > LARGEST:
            raise ValueError(f"it has values above {LARGEST:g}")
        symmetric = torch.from_numpy((covariance + covariance.T) / 2)
        if not _is_covariance(symmetric):
            raise ValueError("sigma is no covariance: it has negative eigenvalues")
        count = int(arrays["n"]) if "n" in arrays else None
        if count is not None and not 2 <= count <= MAX_COUNT:
            raise ValueError(f"n is {count}")
        record = parse_object(arrays["record"].astype(numpy.uint8).tobytes()) if "record" in arrays else {}
        if not isinstance(record.get("features", ""), str | None):
            raise ValueError("the features of its record are no text")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an existing .npz file") from None
    except KeyError as error:
        raise UserError(f"{path}: has no {error.args[0]}; statistics of pytorch-fid hold mu and sigma") from None
    except Exception as error:  # zipfile raises many kinds on damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path}: holds no mean and covariance ({reason}); write the statistics again") from None
    moments = FeatureMoments(count or 2, torch.from_numpy(mean), symmetric * ((count or 2) - 1))
    return FeatureStatistics(moments, count, record)


def _is_covariance(symmetric: torch.Tensor) -> bool:
    """Return whether no eigenvalue is below zero by more than rounding explains."""
    shift = ROUNDING * symmetric.diagonal().mean() + torch.finfo(torch.float64).tiny
    _, info = torch.linalg.cholesky_ex(symmetric + shift * torch.eye(len(symmetric), dtype=torch.float64))
    return not int(info)


def _member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> numpy.ndarray:
    if info.file_size > MAX_BYTES:
        raise ValueError(f"{info.filename} has {info.file_size} bytes, more than {MAX_FEATURES} features need")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # what numpy writes
        raise ValueError(f"{info.filename} has an unknown compression")
    with file.open(info) as member:
        content = member.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{info.filename} is larger than it states")
    return parse_array(content)
