"""Withdrawals do not come back: twenty-odd ways to fetch, gather or vet a withdrawn image again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toys.images import encoded_image
from toys.published import withdraw
from toys.servers import Server

from data_tools import gather_folder, vet_shards
from data_tools.download_shards import main as download
from data_tools.links.withdrawn_lists import LEAST_QUALITY, lists_beside, read_lists
from data_tools.network.link_address import address_key
from data_tools.withdrawal.sample_selector import blocked_digests
from leam_mm.data.perceptual_hash import pdq
from leam_mm.data.shard_index import ShardWriter, read_samples
from leam_mm.errors import UserError

RULES = "rules:\n- class_path: data_tools.vetting.exact_duplicates.ExactDuplicates\n"


def photo(seed: int, side: int = 256) -> Image.Image:
    """An image with structure at several scales, as photographs have."""
    generator = np.random.default_rng(seed)
    total = np.zeros((side, side, 3))
    for cells in (4, 8, 16, 32):
        pixels = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(pixels.resize((side, side), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(total.astype(np.uint8))


def changed(kind: str) -> bytes:
    """A copy of the withdrawn image, with other bytes."""
    image = photo(7)
    return {
        "jpeg": lambda: encoded_image(image, "JPEG", quality=70),
        "webp": lambda: encoded_image(image, "WEBP", quality=60),
        "smaller": lambda: encoded_image(image.resize((180, 180), Image.Resampling.LANCZOS), "JPEG", quality=80),
        "larger": lambda: encoded_image(image.resize((400, 400), Image.Resampling.BICUBIC)),
        "mirrored": lambda: encoded_image(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "turned": lambda: encoded_image(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=80),
        "brighter": lambda: encoded_image(image.point(lambda value: min(255, value + 12))),
        "grey": lambda: encoded_image(image.convert("L")),
        "trailing": lambda: encoded_image(image, "PNG", compress_level=1) + b"trailing",
    }[kind]()


class Answers(dict):
    """Gives the withdrawn image at every address that names it, however it is spelled."""

    def get(self, path: str, default: Any = None) -> Any:
        if path in self:
            return self[path]
        plain = path.casefold().replace("%69", "i").replace("%37", "7")
        return (200, {}, encoded_image(photo(7))) if "i7" in plain or "elsewhere" in plain else default


@pytest.fixture()
def published(server: Server, tmp_path: Path) -> Path:
    """Shards of three images, of which one is withdrawn."""
    server.answers = Answers()
    for number in (1, 2):
        server.answers[f"/photos/i{number}.png"] = (200, {}, encoded_image(photo(number)))
    fetch(server, tmp_path, "shards", [f"{server.url}/photos/i{number}.png" for number in (1, 2, 7)])
    withdraw("--shards", tmp_path / "shards", "--url", f"{server.url}/photos/i7.png", "--apply", "--unsigned")
    return tmp_path


def fetch(server: Server, folder: Path, output: str, urls: list[str], *more: str) -> list[dict[str, Any]]:
    table = folder / f"{output}.parquet"
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {n}" for n in range(len(urls))]}), table)
    command = ["--table", str(table), "--output", str(folder / output), "--allow-private", "127.0.0.1"]
    command += ["--allow-private", "localhost", "--min-success", "0", "--retries", "0", "--processes", "1"]
    try:
        download([*command, "--agent-contact", "https://lab.example/bot", *more])
    except UserError:  # nothing could be kept
        return pq.read_table(folder / f"{output}.failed-ledger.parquet").to_pylist()
    return pq.read_table(folder / output / "ledger.parquet").to_pylist()


def test_the_image_has_structure() -> None:
    assert pdq(np.asarray(photo(7)))[1] >= LEAST_QUALITY


def test_no_other_spelling_brings_an_image_back(server: Server, published: Path) -> None:
    host, port = "127.0.0.1", server.server_port
    paths = ["/photos/%697.png", "/photos/i%37.png", "/%70hotos/i7.png", "/x/../photos/i7.png", "/photos/./i7.png"]
    paths += ["/photos//i7.png", "//photos/i7.png", "/x/%2e%2e/photos/i7.png", "/photos/i7.png?utm=1"]
    paths += ["/photos/i7.png?utm_source=a&utm_campaign=b", "/photos/i7.png?fbclid=9", "/photos/i7.png?"]
    paths += ["/photos/i7.png#top", "/photos/i7.png?&"]
    hosts = [f"{name}:{port}" for name in ("127.0.0.1.", "127.1", "0x7f.0.0.1", "2130706433", "%3127.0.0.1")]
    ways = [f"http://{host}:{port}{path}" for path in paths] + [f"http://{each}/photos/i7.png" for each in hosts]
    ways += [f"HTTP://{host}:{port}/photos/i7.png", f"https://{host}:{port}/photos/i7.png", f" {ways[0]} "]
    assert len(ways) > 20
    server.requests.clear()
    rows = fetch(server, published, "again", [*ways, f"{server.url}/photos/i1.png"])
    assert [row["rule"] for row in rows] == ["blocked_url"] * len(ways) + ["kept"]
    assert server.requests == ["/photos/i1.png"]  # nothing else was asked for


def test_no_other_address_or_copy_brings_an_image_back(server: Server, published: Path) -> None:
    kinds = ("jpeg", "webp", "smaller", "larger", "mirrored", "turned", "brighter", "grey", "trailing")
    for kind in kinds:
        server.answers[f"/copies/{kind}"] = (200, {}, changed(kind))
    server.answers["/moved"] = (302, {"Location": "/photos/i7.png"}, b"")
    ways = [f"{server.url}/copies/{kind}" for kind in kinds]
    ways += [f"{server.url}/elsewhere.png", f"{server.url}/photos/I7.PNG", f"{server.url}/photos/i7.png?size=1"]
    ways += [f"http://localhost:{server.server_port}/photos/i7.png", f"{server.url}/moved"]
    rows = fetch(server, published, "again", [*ways, f"{server.url}/photos/i2.png"])
    assert [row["rule"] for row in rows] == ["withdrawn"] * len(ways) + ["kept"]
    assert not any(row["reason"] == "" for row in rows[:-1])


def test_a_retry_leaves_out_what_was_withdrawn_from_other_shards(server: Server, tmp_path: Path) -> None:
    server.answers = Answers()
    for number in (1, 2):
        server.answers[f"/photos/i{number}.png"] = (200, {}, encoded_image(photo(number)))
    server.answers |= {"/copy.jpg": (200, {}, changed("jpeg")), "/late.png": (500, {}, b"")}
    server.answers["/moved"] = (302, {"Location": "/photos/i7.png"}, b"")
    paths = ("/photos/i1.png", "/copy.jpg", "/elsewhere.png", "/moved", "/photos/i7.png", "/late.png")
    urls = [server.url + path for path in paths]
    assert [row["rule"] for row in fetch(server, tmp_path, "other", urls)] == ["kept"] * 5 + ["download"]
    fetch(server, tmp_path, "shards", [f"{server.url}/photos/i{number}.png" for number in (1, 2, 7)])
    withdraw("--shards", tmp_path / "shards", "--url", f"{server.url}/photos/i7.png", "--apply", "--unsigned")
    server.answers["/late.png"] = (200, {}, encoded_image(photo(3)))
    rows = fetch(server, tmp_path, "other", urls, "--retry-failed")
    assert [row["rule"] for row in rows] == ["kept", *["withdrawn"] * 4, "kept"]
    assert [row["kept"] for row in rows] == [True, *[False] * 4, True]
    assert [key for key, _ in read_samples(tmp_path / "other")] == [rows[0]["key"], rows[5]["key"]]


def test_gathering_and_vetting_bring_nothing_back(server: Server, published: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for name, content in (("copy.jpg", changed("jpeg")), ("same.png", encoded_image(photo(7)))):
        (archive / name).write_bytes(content)
    (archive / "other.png").write_bytes(encoded_image(photo(3)))
    for path in list(archive.iterdir()):
        path.with_suffix(".txt").write_text("a picture")
    words = ["--source", archive, "--output", tmp_path / "gathered", "--legal-basis", "synthetic"]
    words += [
        "--licence",
        "CC0-1.0",
        "--rights-holder",
        "us",
        "--purpose",
        "a test",
        "--generator",
        "test",
        "--",
        "--min-success",
        "0",
    ]
    gather_folder.main(list(map(str, words)))
    rows = pq.read_table(tmp_path / "gathered/ledger.parquet").to_pylist()
    assert [row["rule"] for row in rows] == ["withdrawn", "kept", "withdrawn"]

    with ShardWriter(tmp_path / "older", 10) as writer:  # from before the withdrawal
        for number, (url, content) in enumerate(
            [
                (f"{server.url}/photos/i7.png?utm=1", encoded_image(photo(4))),
                ("https://elsewhere.example/a.png", changed("smaller")),
                ("https://elsewhere.example/b.png", encoded_image(photo(5))),
            ]
        ):
            record = {"url": url, "captions": [{"text": "a picture", "language": "en"}], "sha256": None}
            extension = "jpg" if content[:2] == b"\xff\xd8" else "png"
            writer.write(f"{number:07d}", {extension: content, "json": json.dumps(record).encode()})
    (tmp_path / "rules.yaml").write_text(RULES)
    vet = ["--shards", tmp_path / "older", "--rules", tmp_path / "rules.yaml", "--output", tmp_path / "vetted"]
    vet_shards.main([*map(str, vet), "--materialise"])
    assert [key for key, _ in read_samples(tmp_path / "vetted")] == ["0000002"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("https://a.example/x.png", "http://A.example.:80/./x.png?utm_medium=m#f", True),
        ("https://a.example/x.png?b=2&a=1", "https://a.example/x.png?a=1&b=2", True),
        ("https://a.example/b/x.png", "https://a.example/b%2Fx.png", True),
        ("https://a.example/b/x.png", "https://a.example/b%5Cx.png", True),
        (
            "https://a.example/x.png",
            "https://a.example/x.png;jsessionid=4F?gbraid=1&srsltid=2&_hsenc=4",
            True,
        ),
        ("https://a.example/x.png", "https://a.example/x.png;size=2", False),
        ("https://a.example/x.png", "https://a.example/x.png?size=2", False),
        ("https://a.example/x.png", "https://a.example:8443/x.png", False),
        ("https://a.example/x.png", "https://a.example/X.png", False),
        ("file:x.png", "file:y.png", False),
    ],
)
def test_keys_of_addresses(first: str, second: str, same: bool) -> None:
    assert (address_key(first) == address_key(second)) is same
    assert bool(blocked_digests(first) & blocked_digests(second)) is same


def test_damaged_lists_stop_a_run(tmp_path: Path) -> None:
    lists = tmp_path / "shards.blocklists"
    assert lists_beside(tmp_path / "out") == () and not read_lists(())
    lists.mkdir()
    (lists / "withdrawn.sha256").write_text("not a hash\n")
    with pytest.raises(UserError, match=r"withdrawn\.sha256, line 1"):
        read_lists(lists_beside(tmp_path / "out"))
