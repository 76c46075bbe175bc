"""Mutators: they turn valid inputs into damaged ones, and depend on nothing but the random generator."""

import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Mutator = Callable[[Random, bytes, Sequence[bytes]], bytes]

NUMBERS = (
    0,
    1,
    7,
    127,
    128,
    255,
    256,
    511,
    512,
    32767,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
TEXT_NUMBERS = (
    "0",
    "-1",
    "00",
    "99999999999999999999",
    "9" * 5000,
    "1e308",
    "1e999",
    "NaN",
    "-Infinity",
    "0x10",
    "1.5",
)
WORDS = (
    *(b"\0", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\x1b[2J", b"\x85", b"\xc2\x85", b"\xe2\x80\xa8", b"\x0c", b"\x1c"),
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xfe\xff",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xc0\x80",
        b"\xff",
        b"\\ud800",
    ),
    *(
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b",",
        b":",
        b"://",
        b"http://[",
        b"%00",
        b"%zz",
    ),
    *(b"../", b"/", b"\\", b"<", b">", b"&", b"<!--", b"<![CDATA[", b"&#x110000;", b"#", b"*", b"$", b"=", b";", b"%"),
)
STRINGS = (
    *(
        "",
        " ",
        "\0",
        "\ud800",
        "../../x",
        "/etc/passwd",
        "a" * 100_000,
        "\x1b[2J",
        "x\ny",
        "\u202e",
        "\ufeff",
        "é" * 90,
    ),
    *(
        "http://[",
        "http://a\udcff/",
        "http://%00/",
        "https://ex\uff0eample/",
        "file:///x",
        "9" * 5000,
        "NaN",
        "0",
        "1e999",
    ),
    *(
        "<script>alert(1)</script>",
        "{{7*7}}",
        "true",
        "2026-13-45",
        "9999-12-31T23:59:59+23:59",
        "Ⅷ",
        "²",
        "٣",
        "ff" * 32,
    ),
)
KEPT = 1 << 18  # bytes of a mutated input


def values(random: Random) -> Any:
    """Return a value that a JSON file should not have at some place."""
    nested: Any = random.choice(STRINGS)
    for _ in range(random.choice((1, 3, 60, 400))):
        nested = [nested] if random.random() < 0.5 else {"text": nested}
    odd = (
        None,
        True,
        False,
        0,
        -1,
        1,
        1.5,
        -0.0,
        2**31,
        2**63,
        2**64,
        10**40,
        float("nan"),
        float("inf"),
        [],
        {},
        [[]],
        [None],
    )
    return random.choice(
        (random.choice(odd), random.choice(odd), random.choice(STRINGS), random.choice(STRINGS), nested)
    )


def damage_bytes(random: Random, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """Change bytes without regard to the format: flips, cuts, copies, numbers, words, other encodings, nesting."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        data = _damage_once(random, data, words)[:KEPT]
    return data


def _damage_once(random: Random, data: bytes, words: Sequence[bytes]) -> bytes:
    size = len(data)
    at = random.randrange(size + 1)
    end = min(size, at + random.choice((1, 1, 2, 4, 8, 16, 64, 512, 4096)))
    kind = random.randrange(14)
    if kind == 0 and size:
        at = min(at, size - 1)
        return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
    if kind == 1 and size:
        at = min(at, size - 1)
        return (
            data[:at]
            + bytes([random.choice((0, 1, 9, 10, 32, 34, 127, 128, 255, random.randrange(256)))])
            + data[at + 1 :]
        )
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[end:]
    if kind == 4:
        return data[:end] + data[at:end] + data[end:]
    if kind == 5:
        return data[:at] + random.randbytes(end - at or 1) + data[end:]
    if kind in (6, 7):
        word = random.choice(words) if words and random.random() < 0.7 else random.choice(WORDS)
        return data[:at] + word + data[at if kind == 6 else min(size, at + len(word)) :]
    if kind == 8:  # a length field
        width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
        number = (random.choice(NUMBERS) + random.choice((-1, 0, 0, 1))) % (1 << 8 * width)
        return data[:at] + number.to_bytes(width, order) + data[at + width :]
    if kind == 9:  # a number in text
        found = [match.span() for match in re.finditer(rb"-?\d+(?:\.\d+)?", data[:65536])]
        if found:
            begin, stop = random.choice(found)
            return data[:begin] + random.choice(TEXT_NUMBERS).encode() + data[stop:]
    if kind == 10:
        return data[:at] + data[at:end] * random.choice((2, 10, 100, 1000)) + data[end:]
    if kind == 11:  # two parts change places
        other = random.randrange(size + 1)
        first, second = sorted((at, other))
        return data[second:] + data[first:second] + data[:first]
    if kind == 12:
        text = data.decode("utf-8", "replace")
        return text.encode(random.choice(("utf-16", "utf-8-sig", "utf-16-be", "utf-32", "utf-7", "latin-1")), "replace")
    part = random.choice((b"[", b"{", b'{"a":', b"<a>", b"<a ", b"(", b"- ", b"[[", b"\x1f\x8b", b"&a;", b"%25"))
    return data[:at] + part * random.choice((10, 1000, 20_000)) + data[at:]


def damage_json(random: Random, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """Change values, keys and kinds in JSON, or in one line of JSON lines; other text is changed as bytes."""
    lines = data.splitlines(keepends=True) if b"\n{" in data else [data]
    line = random.randrange(len(lines)) if lines else 0
    try:
        content = json.loads(lines[line])
    except (ValueError, IndexError, RecursionError):
        return damage_bytes(random, data, words)
    for _ in range(random.choice((1, 1, 2, 3))):
        content = _damage_value(random, content)
    text = json.dumps(content, ensure_ascii=random.random() < 0.5)
    return b"".join([*lines[:line], text.encode("utf-8", "surrogatepass") + b"\n", *lines[line + 1 :]])[:KEPT]


def _damage_value(random: Random, content: Any) -> Any:
    if not isinstance(content, dict | list) or not content or random.random() < 0.1:
        return values(random)
    if isinstance(content, list):
        place = random.randrange(len(content))
        changed = [*content]
        kind = random.randrange(5)
        if kind == 0:
            del changed[place]
        elif kind == 1:
            changed.insert(place, values(random))
        elif kind == 2:
            changed *= random.choice((2, 50))
        else:
            changed[place] = _damage_value(random, changed[place])
        return changed
    name = random.choice(sorted(content))
    rest = {key: value for key, value in content.items() if key != name}
    kind = random.randrange(6)
    if kind == 0:
        return rest
    if kind == 1:
        return rest | {random.choice(STRINGS): content[name]}
    if kind == 2:
        return content | {random.choice((*content, *STRINGS)): values(random)}
    return content | {name: _damage_value(random, content[name])}


def damage_tar(random: Random, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """Change fields of tar headers and correct their checksums, so that a reader believes them."""
    changed = bytearray(data)
    heads = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return damage_bytes(random, data, words)
    at = random.choice(heads)
    fields = {
        "name": (0, 100),
        "mode": (100, 108),
        "size": (124, 136),
        "type": (156, 157),
        "magic": (257, 265),
        "prefix": (345, 500),
    }
    for _ in range(random.choice((1, 2))):
        begin, end = fields[random.choice(("name", "size", "size", "type", "type", "mode", "magic", "prefix"))]
        width = end - begin
        new = random.choice(
            (
                random.randbytes(width),
                b"%0*o\0" % (width - 1, random.choice(NUMBERS) % 8 ** (width - 1)) if width > 1 else b"0",
                b"\xff" * width,
                b"\x80" + bytes(max(0, width - 9)) + random.choice(NUMBERS).to_bytes(8, "big"),
                random.choice((b"L", b"K", b"x", b"g", b"S", b"5", b"2", b"7", b"\0")).ljust(width, b"\0"),
                random.choice((*WORDS, *words)),
            )
        )[:width]
        changed[at + begin : at + end] = new.ljust(width, b"\0")
    changed[at + 148 : at + 156] = b" " * 8
    changed[at + 148 : at + 156] = b"%06o\0 " % (sum(changed[at : at + 512]) % 8**6)
    return bytes(changed) if random.random() < 0.7 else damage_bytes(random, bytes(changed), words)


def damage_png(random: Random, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """Change, copy or insert chunks of a PNG, and correct their checksums; other files are changed as bytes."""
    if not data.startswith(b"\x89PNG"):
        return damage_bytes(random, data, words)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    place = random.randrange(len(chunks) or 1)
    if chunks and random.random() < 0.7:
        name, body = chunks[place]
        packed = name == b"iTXt" and body.partition(b"\0")[2][:1] == b"\1"
        if packed and random.random() < 0.8:
            head, _, text = body.partition(b"\0\0\0")
            with suppress(zlib.error):  # an input that is already damaged
                text = zlib.decompress(text)
            with_words = damage_bytes(random, text, words)
            body = head + b"\0\0\0" + zlib.compress(with_words)
        else:
            body = damage_bytes(random, body, words)
        chunks[place] = (name, body)
    else:
        name = random.choice(
            (b"iTXt", b"zTXt", b"tEXt", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"tRNS", b"PLTE", b"IHDR", b"IDAT")
        )
        chunks.insert(place, (name, random.choice((*words, random.randbytes(30), zlib.compress(bytes(1_000_000))))))
    body = b"".join(struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    return data[:8] + body


def damage_table(random: Random, data: bytes, words: Sequence[bytes] = ()) -> bytes:
    """Change types, values and names of the columns of a parquet file, and write it again."""
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read(use_threads=False)
    except (pa.ArrowException, OSError):
        return damage_bytes(random, data, words)
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(table.num_columns)
        table = _damage_column(random, table, place)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=random.choice(("zstd", "snappy", "none")))
    return buffer.getvalue()


def _damage_column(random: Random, table: pa.Table, place: int) -> pa.Table:
    name, column, rows = table.column_names[place], table.column(place), table.num_rows
    kind = random.randrange(8)
    if kind == 0 and table.num_columns > 1:
        return table.remove_column(place)
    if kind == 1:
        return table.append_column(
            name if random.random() < 0.5 else random.choice((*STRINGS[:5], "x")).replace("\ud800", "?"), column
        )
    if kind == 2:
        return pa.concat_tables([table, table]) if random.random() < 0.5 else table.slice(0, random.randrange(rows + 1))
    odd = (
        None,
        "",
        "a" * 100_000,
        b"\xff",
        0,
        -1,
        2**31,
        2**62,
        1.5,
        float("nan"),
        True,
        [1],
        {"a": 1},
        "\0",
        "[",
        "{}",
        '[{"text": 1}]',
    )
    if kind < 6:  # one value of the column's own kind
        items = column.to_pylist()
        fits = [value for value in odd if value is None or any(type(value) is type(item) for item in items)]
        if items:
            items[random.randrange(rows)] = random.choice(fits)
        try:
            return table.set_column(place, name, pa.array(items, column.type))
        except (pa.ArrowException, OverflowError):
            return table
    value = random.choice(odd)
    new = pa.array([value] * rows) if rows else pa.array([], pa.string())
    if random.random() < 0.3:
        target = random.choice(
            (pa.binary(), pa.large_string(), pa.int8(), pa.uint64(), pa.float32(), pa.null(), pa.date32())
        )
        new = pa.nulls(rows, target)
    return table.set_column(place, name, new)


def wrapped(unwrap: Callable[[bytes], bytes], wrap: Callable[[bytes, bytes], bytes], inner: Mutator) -> Mutator:
    """Return a mutator of a part of a file, whose lengths and checksums are then correct again.

    Args:
        unwrap: File -> part.
        wrap: File and new part -> new file.
        inner: Changes the part.
    """

    def mutate(random: Random, data: bytes, words: Sequence[bytes] = ()) -> bytes:
        try:
            return wrap(data, inner(random, unwrap(data), words))
        except (ValueError, struct.error, IndexError, zlib.error):
            return damage_bytes(random, data, words)

    return mutate
