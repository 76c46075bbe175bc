import hashlib
import http.client
import http.server
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools.check_shards import check_folder
from data_tools.download_shards import main
from data_tools.image_fetch import FetchSetting, build_opener
from data_tools.image_repair import ImageFault, ImageRule, repair_image
from data_tools.link_table import LinkRefused, address_fault, check_link, folder_links, read_links
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """Red in the upper left corner, so that its orientation can be told."""
    pixels = np.full((height, width, 3), (20, 60, 200), np.uint8)
    pixels[: height // 2, : width // 2] = (220, 30, 30)
    return Image.fromarray(pixels)


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise when shown
    return encoded(picture(), "JPEG", quality=95, exif=exif)


def deep_png(channels: int, value: int) -> bytes:
    """A 16-bit PNG of one value, 8 x 8 pixels, built by hand: Pillow writes no 16-bit RGB."""
    row = b"\0" + struct.pack(">H", value) * 8 * channels
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, {1: 0, 3: 2}[channels], 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(row * 8)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(body)) + n + body + struct.pack(">I", zlib.crc32(n + body)) for n, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


class Server(http.server.ThreadingHTTPServer):
    """Answers from a dict: path -> (status, headers, body); counts the requests and keeps the agents' names."""

    request_queue_size = 128

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.requests: list[str] = []
        self.agents: set[str] = set()
        self.delay = 0.0
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.agents.add(self.headers["User-Agent"])
        time.sleep(self.server.delay)
        status, headers, body = self.server.answers.get(self.path, (404, {}, b"gone"))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/drip":
            for _ in range(100):
                time.sleep(0.2)
                self.wfile.write(b".")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture()
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def cases(server: Server) -> list[tuple[str, str, str]]:
    """All kinds of links: name, address, expected rule."""
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    clear = Image.fromarray(np.full((8, 8, 4), (255, 0, 0, 0), np.uint8))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    answers: list[tuple[str, int, dict[str, str], bytes, str]] = [
        ("good.png", 200, {}, encoded(picture()), "kept"),
        ("rotated.jpg", 200, {}, rotated_jpeg(), "kept"),
        ("grey16.png", 200, {}, deep_png(1, 257 * 100), "kept"),
        ("colour16.png", 200, {}, deep_png(3, 257 * 100), "kept"),
        ("grey.png", 200, {}, encoded(grey), "kept"),
        ("clear.png", 200, {}, encoded(clear), "kept"),
        ("é ü.png", 200, {}, encoded(picture(16, 16)), "kept"),
        ("broken.jpg", 200, {}, encoded(noise, "JPEG")[:900], "decode"),
        ("page.jpg", 200, {"Content-Type": "image/jpeg"}, b"<html>no image</html>", "decode"),
        ("gone.png", 404, {}, b"gone", "download"),
        ("short.png", 200, {"Content-Length": "9999"}, b"\x89PNG", "download"),
        ("heavy.png", 200, {}, b"x" * 30_000, "bytes"),
        ("wide.png", 200, {}, encoded(Image.new("RGB", (300, 300))), "pixels"),
        ("tdm.png", 200, {"TDM-Reservation": "1"}, encoded(picture()), "reservation"),
        ("robots.png", 200, {"X-Robots-Tag": "none"}, encoded(picture()), "reservation"),
        ("inward.png", 302, {"Location": f"http://localhost:{server.server_port}/good.png"}, b"", "private_address"),
        ("file.png", 302, {"Location": "file:///etc/hostname"}, b"", "download"),
    ]
    for name, status, headers, body, _ in answers:
        server.answers["/" + urllib.parse.quote(name)] = (status, headers, body)
    found = [(name, f"{server.url}/{name}", rule) for name, *_, rule in answers]
    found += [("file", "file:///etc/hostname", "scheme"), ("data", "data:image/png;base64,iVBORw0KGgo=", "scheme")]
    found += [("private", "http://10.0.0.1/a.png", "private_address"), ("ftp", "ftp://example.org/a.png", "scheme")]
    found += [("loopback", f"http://127.1.1.1:{server.server_port}/good.png", "private_address")]
    found += [("caption", f"{server.url}/good.png", "caption"), ("captions", f"{server.url}/good.png", "captions")]
    return found


def test_every_row_has_its_fate(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    links = cases(server)
    names = [name for name, *_ in links]
    german = [{"text": "ein Bild", "language": "de", "source": "test", "machine_translated": False}]
    table = pa.table(
        {
            "url": [url for _, url, _ in links],
            "caption": ["" if name == "caption" else f"the {name}" for name in names],
            "captions": [
                "[1" if name == "captions" else json.dumps(german) if name == "good.png" else None for name in names
            ],
            "licence": ["CC0-1.0"] * len(links),
            "metadata": [json.dumps({"class_id": name}) for name in names],
        }
    )
    pq.write_table(table, tmp_path / "links.parquet")
    output = tmp_path / "shards"
    command = ["--table", str(tmp_path / "links.parquet"), "--output", str(output), "--allow-private", "127.0.0.1"]
    command += ["--agent-name", "TestAgent", "--agent-contact", "https://lab.example/bot", "--threads", "4"]
    command += ["--processes", "1", "--retries", "0", "--max-bytes", "20000", "--max-pixels", "50000", "--keep-work"]
    main([*command, "--min-success", "0.2", "--samples-per-shard", "3"])

    ledger = {row["key"]: row for row in pq.read_table(output / "ledger.parquet").to_pylist()}
    assert sorted(ledger) == [f"{number:07d}" for number in range(len(links))]
    rules = {names[int(key)]: row["rule"] for key, row in ledger.items()}
    assert rules == {name: rule for name, _, rule in links}
    assert all(row["kept"] == (row["rule"] == "kept") and bool(row["reason"]) != row["kept"] for row in ledger.values())
    assert server.agents == {"TestAgent (+https://lab.example/bot)"}
    assert server.requests.count("/good.png") == 1  # neither the redirect to localhost nor the refused rows got there

    samples = {names[int(key)]: members for key, members in read_samples(output)}
    keys = [key for key, _ in read_samples(output)]
    assert keys == sorted(keys) and set(samples) == {name for name, _, rule in links if rule == "kept"}
    assert check_folder(output)[1].faults == []
    assert samples["good.png"]["png"] == server.answers["/good.png"][2]  # nothing to mend: the very same bytes
    record = json.loads(samples["good.png"]["json"])
    assert record["captions"] == german and record["metadata"] == {"class_id": "good.png"}
    assert record["sha256"] == hashlib.sha256(server.answers["/good.png"][2]).hexdigest()
    assert record["domain"] == "127.0.0.1" and record["fetched_at"] is None and record["licence"] == "CC0-1.0"
    assert json.loads(samples["grey.png"]["json"])["captions"][0] == {
        "text": "the grey.png", "language": "und", "source": "alt", "machine_translated": False,
    }  # fmt: skip
    pixels = {name: np.asarray(Image.open(io.BytesIO(next(iter(found.values()))))) for name, found in samples.items()}
    assert all(found.ndim == 3 and found.dtype == np.uint8 for found in pixels.values())
    assert (pixels["grey16.png"] == 100).all() and (pixels["colour16.png"] == 100).all()
    assert (pixels["clear.png"] == 255).all()
    assert pixels["rotated.jpg"].shape == (40, 24, 3)
    assert pixels["rotated.jpg"][5, 20, 0] > 180 and pixels["rotated.jpg"][5, 3, 2] > 150  # red went to the upper right

    before, asked = {path.name: path.read_bytes() for path in output.glob("*.tar")}, len(server.requests)
    with pytest.raises(UserError, match=r"only 7 of 24 .*decode 2.*failed-ledger"):
        main([*command, "--min-success", "0.9", "--overwrite"])
    assert pq.read_table(tmp_path / "shards.failed-ledger.parquet").num_rows == len(links)
    assert before == {path.name: path.read_bytes() for path in output.glob("*.tar")}
    with pytest.raises(UserError, match=r"agent_name.*'TestAgent', now 'Other'"):
        main([*command, "--overwrite", "--agent-name", "Other"])
    with pytest.raises(UserError, match="exists already"):
        main(command)
    main([*command, "--min-success", "0.2", "--samples-per-shard", "3", "--overwrite"])
    assert before == {path.name: path.read_bytes() for path in output.glob("*.tar")}
    assert len(server.requests) == asked  # all that came from the work folder
    assert "7 of 24 rows kept" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_bytes(server: Server, tmp_path: Path) -> None:
    rows = 300
    for number in range(rows):
        server.answers[f"/{number}.png"] = (
            200,
            {},
            encoded(Image.new("RGB", (8, 8), (number % 256, number // 256, 0))),
        )
    table = {"url": [f"{server.url}/{i}.png" for i in range(rows)], "caption": [f"picture {i}" for i in range(rows)]}
    pq.write_table(pa.table(table), tmp_path / "links.parquet")

    def command(output: str) -> list[str]:
        program = [
            sys.executable,
            str(ROOT / "data_tools/download_shards.py"),
            "--table",
            str(tmp_path / "links.parquet"),
        ]
        return [*program, "--output", str(tmp_path / output), "--allow-private", "127.0.0.1", "--threads", "2"]

    server.delay = 0.02
    process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    raw = tmp_path / "killed.work" / "raw"
    end = time.monotonic() + 60
    while len(list(raw.glob("*_stats.json"))) < 2 and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(list(raw.glob("*_stats.json")))
    assert 2 <= done < 8 and not (tmp_path / "killed").exists()
    time.sleep(2)
    quiet = len(server.requests)
    time.sleep(0.5)
    assert len(server.requests) == quiet  # no orphan goes on fetching
    server.delay = 0.0
    subprocess.run(command("killed"), check=True, timeout=120)
    assert len(server.requests) < 2 * rows  # finished parts were not fetched again
    subprocess.run(command("whole"), check=True, timeout=120)
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
    assert (tmp_path / "whole/manifest.jsonl").read_bytes() == (tmp_path / "killed/manifest.jsonl").read_bytes()


@pytest.mark.slow
def test_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a b", "sub/ü"):
        (folder / f"{name}.png").write_bytes(encoded(picture()))
        (folder / f"{name}.txt").write_text(f"caption of {name}\n")
    main(["--folder", str(folder), "--output", str(tmp_path / "shards"), "--resize", "center_crop", "--size", "16"])
    records = [json.loads(members["json"]) for _, members in read_samples(tmp_path / "shards")]
    assert [record["url"] for record in records] == ["file:a%20b.png", "file:sub/%C3%BC.png"]  # no path of this machine
    assert [record["captions"][0]["text"] for record in records] == ["caption of a b", "caption of sub/ü"]
    assert all((record["width"], record["height"], record["domain"]) == (16, 16, "") for record in records)


def test_private_addresses_in_every_spelling() -> None:
    public = ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
    private = [
        "127.0.0.1",
        "10.1.1.1",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
    ]
    private += [
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ]
    assert [address for address in public if address_fault(address)] == []
    assert [address for address in private if not address_fault(address)] == []


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("file:///etc/passwd", "scheme"),
        ("data:image/png;base64,AA", "scheme"),
        ("gopher://example.org/", "scheme"),
        ("", "scheme"),
        (None, "scheme"),
        ("http:///a.png", "host"),
        ("http://user:word@example.org/a.png", "host"),
        ("http://example.org:99999/a.png", "url"),
        ("http://localhost/a.png", "private_address"),
        ("http://printer.local/a.png", "private_address"),
        ("http://[::1]/a.png", "private_address"),
        ("http://169.254.169.254/latest", "private_address"),
    ],
)
def test_links_that_are_refused(url: str | None, rule: str, tmp_path: Path) -> None:
    with pytest.raises(LinkRefused) as refused:
        check_link(url, tmp_path, allow_file=False, allow_private=["127.0.0.1"])
    assert refused.value.rule == rule and refused.value.reason


def test_links_that_pass(tmp_path: Path) -> None:
    fetch, public, domain = check_link("http://bücher.example/ä b.png?q=ü#part", tmp_path, False, [])
    assert (fetch, domain) == ("http://xn--bcher-kva.example/%C3%A4%20b.png?q=%C3%BC", "xn--bcher-kva.example")
    assert public == "http://bücher.example/ä b.png?q=ü#part"
    assert check_link("http://[::1]:80/a", tmp_path, False, ["::1"])[0] == "http://[::1]:80/a"
    inside = check_link("file:a%20b.png", tmp_path, True, [])
    assert inside == ((tmp_path / "a b.png").resolve().as_uri(), "file:a%20b.png", "")
    with pytest.raises(LinkRefused, match="leads out"):
        check_link("file:../secret.png", tmp_path, True, [])
    assert check_link("file:///srv/x/a.png", tmp_path, True, [])[1] == "file:a.png"


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("links.csv", "address,caption\nhttp://a.example/,x\n", "no column 'url'"),
        ("links.csv", "url\nhttp://a.example/\n", "no column 'caption'"),
        ("links.csv", "url,caption\n", "no row"),
        ("links.csv", "", "cannot be read as csv"),
        ("links.parquet", "not parquet", "cannot be read as parquet"),
        ("links.jsonl", "{broken", "cannot be read as jsonl"),
        ("links.jsonl", "[1]\n", "not a JSON object"),
        ("links.xls", "x", "use .parquet, .csv or .jsonl"),
    ],
)
def test_tables_that_cannot_be_used(name: str, content: str, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=word) as error:
        read_links(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_three_formats_hold_the_same_table(tmp_path: Path) -> None:
    rows = {"url": ["http://a.example/1", "http://a.example/2"], "caption": ["007", "two, lines\nof text"]}
    pq.write_table(pa.table(rows | {"unknown": [1, 2]}), tmp_path / "links.parquet")
    (tmp_path / "links.csv").write_text(
        'url,caption\nhttp://a.example/1,007\nhttp://a.example/2,"two, lines\nof text"\n'
    )
    lines = [json.dumps(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    (tmp_path / "links.jsonl").write_text("\n".join(lines))
    for name in ("links.parquet", "links.csv", "links.jsonl"):
        assert read_links(tmp_path / name).to_pydict() == rows


def test_folder_without_captions_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        folder_links(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    with pytest.raises(UserError, match=r"a\.txt"):
        folder_links(tmp_path)
    (tmp_path / "captions.csv").write_text("url,caption\na.png,text\n")
    assert folder_links(tmp_path).to_pydict() == {"url": ["file:a.png"], "caption": ["text"]}


def test_public_hosts_need_a_contact(tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text("url,caption\nhttp://museum.example/1.png,x\n")
    with pytest.raises(UserError, match=r"--agent-contact.*museum\.example"):
        main(["--table", str(tmp_path / "links.csv"), "--output", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["links.csv"]


def test_opener_stops_at_bytes_seconds_and_private_names(server: Server, tmp_path: Path) -> None:
    server.answers["/drip"] = (200, {"Content-Length": "500"}, b"")
    server.answers["/heavy"] = (200, {"Content-Length": "999999999999"}, b"x")
    server.answers["/chunk"] = (200, {"Content-Length": "", "Connection": "close"}, b"x" * 5000)
    setting = FetchSetting("", str(tmp_path), "Agent", "", allow_private=["127.0.0.1"], max_bytes=1000, timeout=1)
    opener = build_opener(setting)
    with pytest.raises(OSError, match="too many bytes: 999999999999"):
        opener.open(f"{server.url}/heavy", timeout=1).read()
    with pytest.raises(OSError, match="too many bytes: over 1000"):
        opener.open(f"{server.url}/chunk", timeout=1).read()
    with pytest.raises(urllib.error.URLError, match=r"localhost leads to .* loopback"):
        opener.open(f"http://localhost:{server.server_port}/drip", timeout=1)
    for url in ("file:///etc/hostname", "ftp://127.0.0.1/", "data:,x"):
        with pytest.raises(urllib.error.URLError, match="unknown url type"):
            opener.open(url)
    assert server.agents == {"Agent"} and not any(path == "/drip" for path in server.requests)


@pytest.mark.slow
def test_dripping_answer_ends(server: Server, tmp_path: Path) -> None:
    server.answers["/drip"] = (200, {"Content-Length": "500"}, b"")
    opener = build_opener(FetchSetting("", str(tmp_path), "Agent", "", allow_private=["127.0.0.1"], timeout=1))
    begin = time.monotonic()
    with pytest.raises((OSError, http.client.HTTPException)):
        opener.open(f"{server.url}/drip", timeout=1).read()
    assert 4 < time.monotonic() - begin < 10  # six times the timeout, though every read came in time


def test_repair_keeps_or_mends() -> None:
    rule = ImageRule()
    raw = encoded(picture(), "JPEG")
    assert repair_image(raw, rule).content == raw and repair_image(raw, rule).transforms == []
    assert repair_image(encoded(picture(), "GIF"), rule).extension == "png"
    assert repair_image(encoded(picture(), "BMP"), ImageRule(format="webp")).extension == "webp"
    again = [repair_image(rotated_jpeg(), rule) for _ in range(2)]
    assert again[0] == again[1] and (again[0].width, again[0].height) == (24, 40)
    assert (again[0].original_width, again[0].original_height) == (40, 24)
    cmyk = repair_image(encoded(picture().convert("CMYK"), "JPEG"), rule)
    assert Image.open(io.BytesIO(cmyk.content)).mode == "RGB"
    assert "exif" not in Image.open(io.BytesIO(again[0].content)).info


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("no", (40, 24)),
        ("keep_ratio", (20, 12)),
        ("keep_ratio_largest", (12, 7)),
        ("center_crop", (12, 12)),
        ("border", (12, 12)),
    ],
)
def test_resize_modes(mode: str, size: tuple[int, int]) -> None:
    image = repair_image(encoded(picture()), ImageRule(size=12, resize=mode))
    assert (image.width, image.height) == size == Image.open(io.BytesIO(image.content)).size
    bigger = repair_image(encoded(picture()), ImageRule(size=64, resize=mode))
    assert (bigger.width, bigger.height) == ((64, 64) if mode in ("center_crop", "border") else (40, 24))


@pytest.mark.parametrize(
    ("raw", "rule", "name"),
    [
        (b"", ImageRule(), "decode"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ImageRule(), "decode"),
        (encoded(picture())[:60], ImageRule(), "decode"),
        (encoded(picture())[:-5], ImageRule(), "decode"),
        (encoded(picture()).replace(b"IDAT", b"IDAT\0"), ImageRule(), "decode"),
        (encoded(picture()), ImageRule(max_pixels=959), "pixels"),
        (encoded(picture()), ImageRule(max_bytes=20), "bytes"),
        (encoded(picture()), ImageRule(min_side=25), "side"),
    ],
)
def test_images_that_are_not_kept(raw: bytes, rule: ImageRule, name: str) -> None:
    with pytest.raises(ImageFault) as fault:
        repair_image(raw, rule)
    assert fault.value.rule == name and fault.value.reason


def test_program_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "data_tools/download_shards.py"), "--table", "absent.csv", "--output", "out"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: absent.csv")
    assert not list(tmp_path.iterdir())
