import io
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from leam_mm.data.array_format import DTYPES, array_bytes, from_stored, parse_array, read_array, to_stored
from leam_mm.errors import UserError


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    raw = header.encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(raw)) + raw + content


def test_every_bfloat16_survives_and_rounding_is_torchs() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    theirs = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    values = from_stored(bits)
    known = ~np.isnan(values)
    assert np.array_equal(values[known], theirs.float().numpy()[known])
    assert np.array_equal(to_stored(values, "bfloat16")[known], bits[known])
    assert np.isnan(from_stored(to_stored(values[~known], "bfloat16"))).all()

    generator = np.random.default_rng(0)
    any_bits = generator.integers(0, 1 << 32, (50_000, 3), dtype=np.uint32)
    halfway = (any_bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)  # ties, which go to the even neighbour
    for pattern in (any_bits, halfway):
        numbers = pattern.view(np.float32)
        rounded = from_stored(to_stored(numbers, "bfloat16"))
        expected = torch.from_numpy(numbers.copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal(rounded, expected)
        assert rounded.shape == numbers.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 2, 3), (7,), (0, 5), (3, 1)])
def test_what_is_stored_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    stored = to_stored(values, dtype)
    again = parse_array(array_bytes(stored))
    assert again.shape == shape and np.array_equal(again, from_stored(stored))
    step = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 0}[dtype]
    assert np.all(np.abs(again - values) <= step * np.abs(values))
    assert array_bytes(to_stored(again.astype(np.float32), dtype)) == array_bytes(stored)


def test_columns_first_and_what_numpy_writes_is_read() -> None:
    values = np.arange(12.0).reshape(3, 4)
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(values))
    assert np.array_equal(parse_array(buffer.getvalue()), values)
    assert to_stored(np.float32([1e9, -1e38]), "float16").tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}", bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4)}", bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 5)}", bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1000000)}", bytes(64)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (8,)}", bytes(64)),
        npy("{'descr': '<U16', 'fortran_order': False, 'shape': (1,)}", bytes(64)),
        npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (8,)}", bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': ('16',)}", bytes(64)),
        npy("(" * 500, bytes(64)),
        npy(" " * 60_000, bytes(64)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (16,)}", bytes(64), b"\x03\x00"),
        b"\x93NUMPY",
        b"",
    ],
)
def test_hostile_arrays_take_no_memory(content: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(UserError, match=r"latent\.npy cannot be read .*check_shards"):
        read_array({"latent.npy": content}, "latent.npy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
