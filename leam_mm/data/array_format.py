"""Arrays as members of shards: numpy's own format, read without trust, with bfloat16 kept as its bits.

numpy has no bfloat16: its numbers are stored as uint16, the upper halves of float32 numbers. Nothing else is uint16.
"""

import io
import math
from functools import lru_cache

import numpy as np

from leam_mm.errors import UserError

DTYPES = ("float16", "float32", "bfloat16")
MAX_HEADER = 1024  # bytes; numpy's own have 128


def to_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the nearest number of the stored type; what is too large for it becomes infinite.

    Args:
        values: One dimension or more, float32.
        dtype: One of DTYPES.

    Returns:
        The same shape; uint16 for bfloat16.
    """
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # the caller looks for infinities and can say where they are
            return values.astype(dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):  # of a NaN whose bits are all set
        rounded = (
            bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        )  # to even, as every processor does
    return np.where(np.isnan(values), np.uint16(0x7FC0), (rounded >> np.uint32(16)).astype(np.uint16))


def from_stored(array: np.ndarray) -> np.ndarray:
    """The numbers of a stored array: bfloat16 becomes float32, which holds all of its values; the rest stays."""
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32) if array.dtype == np.uint16 else array


def array_bytes(array: np.ndarray) -> bytes:
    """The member that holds a stored array."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def parse_array(content: bytes) -> np.ndarray:
    """The numbers of a ``.npy`` member, read-only.

    Its header must promise exactly the bytes that are there, so that nothing is allocated on a stranger's word.

    Raises:
        ValueError: It is damaged, of another kind than plain numbers, or larger or smaller than it says.
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
    """One ``.npy`` member of a sample, never unpickled; bfloat16 comes as float32."""
    if extension not in members:
        raise UserError(f"the sample has no {extension}, only {sorted(members)}: these are no latent shards")
    try:
        return parse_array(members[extension])
    except ValueError as error:
        raise UserError(f"{extension} cannot be read ({error}); run data_tools/check_shards.py on the folder") from None


@lru_cache(maxsize=256)  # the samples of a folder share a few
def _header(raw: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type."""
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(raw))
    except (
        Exception
    ) as error:  # a parser of Python's own expressions raises more kinds than numpy's documentation names
        raise ValueError(str(error).strip().split("\n")[0][:120]) from None
    if dtype.hasobject or dtype.kind not in "fiub" or min(shape, default=0) < 0:
        raise ValueError(f"{dtype} of shape {shape} is no array of plain numbers")
    return shape, fortran, dtype
