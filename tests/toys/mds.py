"""MosaicML MDS folders, written as MDSWriter does."""

import gzip
import json
from pathlib import Path

import numpy as np


def write_mds(
    folder: Path, columns: dict[str, tuple[str, int | None]], samples: list[dict[str, bytes]], packed: bool = False
) -> Path:
    """Write one MDS shard as MDSWriter does, compared with it in test_small_writer_equals_the_real_one."""
    names, sizes = list(columns), [size for _, size in columns.values()]
    data = {"column_encodings": [code for code, _ in columns.values()], "column_names": names, "column_sizes": sizes,
            "compression": "gz" if packed else None, "format": "mds", "hashes": [],
            "size_limit": 1 << 26, "version": 2}  # fmt: skip
    described = json.dumps(data, sort_keys=True).encode()
    raws = []
    for sample in samples:
        head = b"".join(
            len(sample[n]).to_bytes(4, "little") for n, size in zip(names, sizes, strict=True) if size is None
        )
        raws.append(head + b"".join(sample[name] for name in names))
    count = len(samples)
    start = 4 * (count + 2) + len(described)
    offsets = np.cumsum([start, *map(len, raws)]).astype("<u4").tobytes()
    content = count.to_bytes(4, "little") + offsets + described + b"".join(raws)
    folder.mkdir()
    entry = data | {
        "raw_data": {"basename": "shard.00000.mds", "bytes": len(content), "hashes": {}},
        "samples": count,
        "zip_data": None,
    }
    if packed:
        stored = gzip.compress(content)
        entry["zip_data"] = {"basename": "shard.00000.mds.gz", "bytes": len(stored), "hashes": {}}
        (folder / "shard.00000.mds.gz").write_bytes(stored)
    else:
        (folder / "shard.00000.mds").write_bytes(content)
    (folder / "index.json").write_text(json.dumps({"shards": [entry], "version": 2}, sort_keys=True))
    return folder
