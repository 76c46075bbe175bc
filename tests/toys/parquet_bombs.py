"""Small parquet files that claim much."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from leam_mm.data.parquet_pages import _varint


def claiming(table: pa.Table, column: str, unpacked: int = 1 << 30) -> bytes:
    """Return a parquet file, one page of which claims to unpack to a gigabyte; no other byte is wrong.

    A page header of another length would shift all offsets. The longer number takes the place of the page's checksum.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False, write_page_checksum=True)
    content = buffer.getvalue()
    metadata = pq.ParquetFile(io.BytesIO(content)).metadata
    chunk = metadata.row_group(0).column(table.column_names.index(column))
    start = position = chunk.data_page_offset
    numbers = []  # kind, unpacked, packed, checksum: fields 1 to 4, i32
    for _ in range(4):
        assert content[position] == 0x15
        number, position = _varint(content, position + 1)
        numbers.append(number)
    assert content[position] == 0x1C  # the description of a data page, field 5
    header = b"\x15" + bytes([numbers[0]]) + b"\x15" + _number(2 * unpacked, 5)
    header += b"\x15" + _number(numbers[2], position - start - len(header) - 1) + b"\x2c"
    return content[:start] + header + content[position + 1 :]


def _number(value: int, length: int) -> bytes:
    """Return a variable-length integer in exactly so many bytes; leading zeros are allowed."""
    parts = [value >> 7 * number & 127 for number in range(length)]
    assert value < 1 << 7 * length
    return bytes(part | 128 for part in parts[:-1]) + bytes(parts[-1:])
