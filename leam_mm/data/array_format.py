"""Arrays as members of shards, in numpy's own format; parsing assumes hostile bytes.

numpy has no bfloat16: its values are stored as uint16, the upper halves of float32 values. No other array is uint16.
"""

import io
import math
from functools import lru_cache

import numpy as np

from leam_mm.errors import UserError

DTYPES = ("float16", "float32", "bfloat16")
MAX_HEADER = 1024  # bytes; numpy's own have 128


def to_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the nearest value of the stored type; larger values become infinite.

    Args:
        values: One dimension or more, float32.
        dtype: One of DTYPES.

    Returns:
        The same shape; uint16 for bfloat16.
    """
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # the caller checks for infinities and can name the sample
            return values.astype(dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):  # for a NaN with all bits set
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # half to even
    return np.where(np.isnan(values), np.uint16(0x7FC0), (rounded >> np.uint32(16)).astype(np.uint16))


def from_stored(array: np.ndarray) -> np.ndarray:
    """Return the values of a stored array: bfloat16 as float32, other types unchanged."""
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32) if array.dtype == np.uint16 else array


def array_bytes(array: np.ndarray) -> bytes:
    """Return the content of a ``.npy`` member."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def parse_array(content: bytes) -> np.ndarray:
    """Parse a ``.npy`` member to a read-only array.

    The header must agree with the number of bytes, so that a hostile header allocates no memory.

    Raises:
        ValueError: The member is damaged, holds no plain numbers, or its size does not match its header.
    """
    if content[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("no array in version 1.0 of numpy's format")
    start = 10 + int.from_bytes(content[8:10], "little")
    if start > MAX_HEADER:
        raise ValueError(f"a header of {start} bytes")
    shape, fortran, dtype = _header(content[8:start])
    if len(content) - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content) - start} bytes for {dtype} of shape {shape}")
    values = np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C")
    return from_stored(values)


def read_array(members: dict[str, bytes], extension: str) -> np.ndarray:
    """Read one ``.npy`` member of a sample without unpickling; bfloat16 becomes float32."""
    if extension not in members:
        raise UserError(f"the sample has no {extension}, only {sorted(members)}: these are no latent shards")
    try:
        return parse_array(members[extension])
    except ValueError as error:
        raise UserError(f"{extension} cannot be read ({error}); run data_tools/check_shards.py on the folder") from None


@lru_cache(maxsize=256)  # the samples of a folder share a few headers
def _header(raw: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether the order is Fortran's, and type."""
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(raw))
    except Exception as error:  # numpy evaluates a Python expression, which raises many kinds
        raise ValueError(str(error).strip().split("\n")[0][:120]) from None
    if dtype.hasobject or dtype.kind not in "fiub" or min(shape, default=0) < 0:
        raise ValueError(f"{dtype} of shape {shape} is no array of plain numbers")
    return shape, fortran, dtype
