"""Parquet files of strangers claim what they like; one file opens them, and reads no more than its limits."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys.parquet_bombs import claiming
from toys.shards import write_toy_shards

from leam_mm.data.keep_list import KEEP, PLACE, ROOT, kept_keys, read_keep_list
from leam_mm.data.ledger import SCHEMA as LEDGER_SCHEMA
from leam_mm.data.ledger import read_ledger
from leam_mm.data.parquet_file import MAX_DENSITY, MAX_MEMORY, open_parquet
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError

TREE = Path(__file__).parent.parent
MODULES = ("pyarrow.parquet", "pyarrow.dataset", "pandas", "datasets", "polars", "duckdb")
READS = ("ParquetFile", "ParquetDataset", "FileSystemDataset", "dataset", "load_dataset", "from_parquet")
WORK_FILES = {
    "data_tools/importing/sample_import.py",  # readers of files that the same program has written into its work folder
    *("data_tools/crawl_links.py", "data_tools/download/fetched_part.py", "data_tools/download/image_repair_pool.py"),
    *("data_tools/latents/shard_embedding.py", "data_tools/links/row_filters.py"),
    *("data_tools/vetting/shard_findings.py", "data_tools/indexing/shard_adoption.py"),
}
KEPT = pa.table(
    {
        "shard": pa.array([0] * 50, pa.int32()),
        "row": pa.array(range(50), pa.int32()),
        "key": [str(n) for n in range(50)],
    }
).replace_schema_metadata({ROOT: b"x"})
LEDGER = LEDGER_SCHEMA.empty_table()


def write_bombs(folder: Path) -> None:
    """Write files of a kilobyte in which a page claims a gigabyte."""
    keep, ledger = folder / "keep", pa.Table.from_pylist([{"uid": "a", "key": "b", "url": "c"}] * 9, LEDGER_SCHEMA)
    for name, column in (("row", "row"), ("key", "key")):
        (keep / name).mkdir(parents=True)
        (keep / name / KEEP).write_bytes(claiming(KEPT, column))
        (keep / name / PLACE).write_text('{"shards": "../shards"}')
    (folder / "ledger.parquet").write_bytes(claiming(ledger, "url"))
    shards = write_toy_shards(folder / "shards", 20)
    index = shards / "00000.index.parquet"
    index.write_bytes(claiming(pq.read_table(index), "offset"))
    (shards / "ledger.parquet").write_bytes(claiming(ledger, "licence"))


def read_bombs(folder: Path) -> None:
    """Read each file with its own reader; print the message of each, and the most memory that pyarrow asked for."""
    from data_tools.withdrawal.shard_withdrawal import write_ledger
    from data_tools.work.text_tables import text_batches
    from leam_mm.release.shard_counts import count_column

    shards, ledger = ShardFolder(folder / "shards"), folder / "ledger.parquet"
    for read in (
        lambda: read_keep_list(folder / "keep" / "row"),
        lambda: kept_keys(folder / "keep" / "key"),
        lambda: shards.index(0),
        lambda: list(read_ledger(ledger)),
        lambda: count_column(shards, "licence"),
        lambda: write_ledger(ledger, folder / "new.parquet", [], None),
        lambda: list(text_batches(ledger, 10, list)),
    ):
        try:
            read()
            print("read")
        except UserError as error:
            print(str(error))
    print(pa.default_memory_pool().max_memory())


def test_files_of_a_kilobyte_do_not_ask_for_a_gigabyte(tmp_path: Path) -> None:
    write_bombs(tmp_path)
    assert (tmp_path / "keep" / "row" / KEEP).stat().st_size < 1200
    command = [sys.executable, __file__, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{TREE}{os.pathsep}{TREE / 'tests'}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    *messages, memory = done.stdout.splitlines() or [done.stderr]
    assert len(messages) == 7 and all("a page has 1073741824 bytes, more than" in one for one in messages), messages
    assert int(memory) < 20_000_000
    assert not (tmp_path / "new.parquet").exists()


def test_pages_lie_within_their_columns(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(100)), "b": [str(n) for n in range(100)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    content = (tmp_path / "a.parquet").read_bytes()
    with open_parquet(content) as file:
        assert file.read(["b", "a"]).equals(table.select(["b", "a"]))
    with open_parquet(content[:4] + content[300:]) as file, pytest.raises((ValueError, OSError)):
        file.read()
    refused = pytest.raises((ValueError, OSError, pa.ArrowException))
    with refused, open_parquet(content[4:]) as file:
        file.read()


@pytest.mark.parametrize("read", [lambda file: file.read(), lambda file: list(file.batches(10**6))])
def test_a_value_that_all_rows_share_is_not_copied_for_each(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"a": shared, "b": ["b"] * 3000}), path, compression="zstd")
    assert path.stat().st_size < 20_000 and MAX_MEMORY < 3000 * 1_000_000
    with open_parquet(path) as file, pytest.raises(ValueError, match="too much memory for a file of its size"):
        read(file)


def test_rows_that_no_file_of_its_size_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = 20_000_000
    options = {"row_group_size": rows, "max_rows_per_page": rows, "data_page_size": 1 << 27, "compression": "brotli"}
    pq.write_table(pa.table({"a": pa.nulls(rows, pa.int8())}), path, **options)
    assert path.stat().st_size < 1000 < rows / MAX_DENSITY
    with pytest.raises(ValueError, match="it claims 20000000 rows in"), open_parquet(path):
        pass


@pytest.mark.parametrize("way", ["read", "batches", "coded_batches", "nested_batches"])
def test_other_rows_than_the_footer_claims_are_an_error(way: str) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"number": [1, 2]}), buffer)
    content = buffer.getvalue().to_pybytes()
    # In compact thrift: two rows as a 64-bit number, and the list of row groups.
    claims = [b"\x16\x04\x19", b"\x16\x06\x19"]
    assert content.count(claims[0]) == 1

    def rows(data: bytes) -> int:
        with open_parquet(data) as file:
            if way == "read":
                return len(file.read())
            return sum(len(batch) for batch in getattr(file, way)(1, ["number"]))

    assert rows(content) == 2
    with pytest.raises(ValueError, match="it claims 3 rows and has 2"):
        rows(content.replace(*claims))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"row_group_size": 70, "data_page_size": 256}])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_ordinary_files_are_read_as_they_are(
    version: str, options: dict[str, Any], compression: str, tmp_path: Path
) -> None:
    texts = [None if number % 7 == 0 else f"text {number % 40} ü" for number in range(1000)]
    table = pa.table(
        {
            "text": pa.array(texts),
            "large": pa.array(texts, pa.large_string()),
            "bytes": pa.array(texts).cast(pa.binary()),
            "number": pa.array([None if number % 5 == 0 else number for number in range(1000)]),
            "flag": [number % 3 == 0 for number in range(1000)],
            "real": [number / 7 for number in range(1000)],
            "day": pa.array(range(1000), pa.timestamp("us")),
            "nothing": pa.nulls(1000),
        }
    ).replace_schema_metadata({"a": "b"})
    pq.write_table(table, tmp_path / "a.parquet", data_page_version=version, compression=compression, **options)
    with open_parquet(tmp_path / "a.parquet") as file:
        assert (file.rows, file.schema) == (1000, table.schema)
        assert file.read().equals(table, check_metadata=True)
        assert file.read(["flag", "text"]).to_pydict() == table.select(["flag", "text"]).to_pydict()
        parts = list(file.batches(128))
        assert pa.Table.from_batches(parts).to_pydict() == table.to_pydict() and max(map(len, parts)) in (128, 70)
    pq.write_table(table[:0], tmp_path / "b.parquet")
    with open_parquet((tmp_path / "b.parquet").read_bytes()) as file:
        assert file.read().equals(table[:0]) and not list(file.batches(128))


def test_nested_columns_are_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [[1, 2]], "b": [1]}), tmp_path / "a.parquet")
    with open_parquet(tmp_path / "a.parquet") as file:
        assert file.read(["b"]).to_pydict() == {"b": [1]}
        with pytest.raises(ValueError, match="the column a is of type list"):
            file.read()


def reads_of_parquet(source: str) -> set[str]:
    """Return the calls of a source text that read parquet files."""
    found: set[str] = set()
    names: dict[str, str] = {}  # what a name of the text stands for
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition(".")
            module, _, name = (names.get(first, first) + dot + rest).rpartition(".")
            if module.startswith(MODULES) and (name in READS or name.startswith(("read_", "scan_"))):
                found.add(f"{module}.{name}")
    return found


def test_nothing_else_opens_a_parquet_file() -> None:
    door = "leam_mm/data/parquet_file.py"
    found, own = {}, set()
    for folder in ("leam_mm", "data_tools"):
        for path in (TREE / folder).rglob("*.py"):
            text, name = path.read_text("utf-8"), str(path.relative_to(TREE))
            if name != door and (reads := reads_of_parquet(text)):
                found[name] = reads
            if name != door and "own_parquet" in text:
                own.add(name)
    assert not found and own == WORK_FILES
    assert reads_of_parquet((TREE / door).read_text("utf-8"))
    for source in (
        *(
            "import pyarrow.parquet as pq\npq.read_table('a')",
            "import pyarrow.parquet\npyarrow.parquet.ParquetFile('a')",
        ),
        *(
            "from pyarrow import parquet\nparquet.read_schema('a')",
            "from pyarrow.parquet import ParquetFile\nParquetFile(1)",
        ),
        *("import pandas as pd\npd.read_parquet('a')", "import pyarrow.dataset as ds\nds.dataset('a')"),
    ):
        assert reads_of_parquet(source), source


if __name__ == "__main__":
    read_bombs(Path(sys.argv[1]))
