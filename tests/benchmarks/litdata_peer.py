"""litData as its documentation has it: ``optimize`` writes, StreamingDataset and StreamingDataLoader read."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import litdata
from streaming_peers import Item, Row


def encoded_item(row: Row) -> Item:
    """Of ``optimize``: the image keeps its bytes, and is decoded when it is read."""
    return {"number": row[0], "image": litdata.Image(bytes=row[1]), "caption": row[2]}


def plain_item(row: Row) -> Item:
    """Of ``optimize``: the image is read as bytes."""
    return {"number": row[0], "image": row[1], "caption": row[2]}


def write(rows: Iterable[Row], folder: Path, per_file: int | None, encoded: bool) -> Path:
    """See StreamingPeer."""
    size: dict[str, Any] = {"chunk_bytes": "64MB"} if per_file is None else {"chunk_size": per_file}
    item = encoded_item if encoded else plain_item
    options = {"num_workers": 1, "start_method": "fork", "keep_data_ordered": True, "verbose": False}
    litdata.optimize(item, list(rows), str(folder), **size, **options)
    return folder


def open_loader(
    folder: Path, batch: int, workers: int, decode: Callable[[Item], Item], collate: Callable[[list[Item]], Any]
) -> Any:
    """See StreamingPeer."""
    dataset = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True, transform=decode)
    return litdata.StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, collate_fn=collate)
