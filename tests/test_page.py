"""The running page over HTTP: its addresses, headers, events, order, refusals, logs and end."""

import http.client
import json
import re
import shutil
import signal
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image
from toys.served_pages import Served, served
from toys.served_releases import add_files, write_toy_release

from leam_mm.errors import UserError
from leam_mm.marking.detection import find_marks
from leam_mm.marking.generated_image import SOURCE_TYPE
from leam_mm.marking.spread_spectrum import SpreadSpectrum
from leam_mm.release.serve_verified import check_verified, serve_verified
from leam_mm.serving.serve_command import ServeOptions

pytest.importorskip("gradio")

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>"
CLASSES = {"classes": ["c", "s"], "languages": {"de": {"names": {"c": ["Kreis"], "s": ["Stern"]}},
                                               "en": {"names": {"c": ["circle"], "s": ["star"]}}}}  # fmt: skip


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, toy_checkpoints: dict[str, Path]) -> Path:
    folder = write_toy_release(tmp_path_factory.mktemp("served") / "release", toy_checkpoints, f"toy {HOSTILE}")
    add_files(folder, {
        "documents/en/policy.md": f"# Policy {HOSTILE}\n\n{HOSTILE}\n", "documents/captions.txt": f"a\n{HOSTILE}\n",
        "documents/classes.json": json.dumps(CLASSES), "documents/table.csv": "a,b\n",
    })  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def page(release: Path) -> Iterator[Served]:
    with served(release) as found:
        yield found


def event_with(page: Served, inputs: int, language: str = "en") -> int:
    """Number of the event with so many inputs that starts a request: 5 draw, 8 edit, 3 label."""
    found = [d["id"] for d in page.config(language)["dependencies"] if len(d["inputs"]) == inputs and d["queue"]]
    assert len(found) == 1
    return found[0]


def upload(page: Served, content: bytes, name: str = "photo.png") -> dict:
    """Upload a file as the browser does."""
    boundary = "xxboundary"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
    body = head.encode() + b"Content-Type: image/png\r\n\r\n" + content + f"\r\n--{boundary}--\r\n".encode()
    parts = urllib.parse.urlsplit(page.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request("POST", "/en/gradio_api/upload", body,
                       {"Content-Type": f"multipart/form-data; boundary={boundary}"})  # fmt: skip
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    (path,) = json.loads(answer.read())
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def test_the_start_page_leads_to_the_language_of_the_browser(page: Served) -> None:
    for header, language in (("de-DE,de;q=0.9,en;q=0.5", "de"), ("fr", "en")):
        status, headers, _ = page.get("", Accept_Language=header)
        assert (status, headers["location"]) == (303, f"/{language}/")
        status, headers, body = page.get(f"{language}/")
        text = body.decode()
        assert status == 200 and f'<html\n\tlang="{language}"' in text
        assert "connect-src 'self'" in headers["content-security-policy"]
        head = text.split("<body")[0]
        assert "script>alert" not in text and "og:image" not in head and "gradio.app" not in head


def test_addresses_of_this_machine_only() -> None:
    from leam_mm.serving.page_server import is_loopback, local_hosts

    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "localhost.example.org", "")))
    assert "0.0.0.0" not in local_hosts("127.0.0.1")


def test_other_hosts_and_addresses_that_fetch_are_refused(page: Served) -> None:
    assert page.get("en/", Host="attacker.example")[0] == 421
    for path in ("en/gradio_api/proxy=http://example.org/", "en/gradio_api/file=http://example.org/x", "en/monitoring",
                 "files/README.md/../../x", "files/leam_mm_release.json", "images/x/y.png",
                 "en/gradio_api/file=/etc/passwd", "en/gradio_api/file/http://192.0.2.1/x",
                 "en/gradio_api/file//etc/passwd", "en/gradio_api/deep_link?session_hash=x"):  # fmt: skip
        assert page.get(path)[0] in (403, 404), path
    assert page.get("files/documents/table.csv")[2] == b"a,b\n"


def post(page: Served, path: str, body: bytes | Iterator[bytes] = b"{}", **headers: str) -> int:
    """Status of an answer; the connection may be closed while the body is sent."""
    parts = urllib.parse.urlsplit(page.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", path, body, headers)
    return connection.getresponse().status


def test_what_the_pages_of_other_sites_send_is_refused(page: Served) -> None:
    own = page.url.rstrip("/")
    form = {"Content_Type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'
    for other in ({"Origin": "http://attacker.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"},
                  {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}):  # fmt: skip
        assert post(page, "/en/gradio_api/upload", body, **form, **other) == 403, other
    for same in ({"Origin": own}, {"Sec_Fetch_Site": "same-origin", "Origin": "https://lab.example"}, {}):
        assert post(page, "/en/gradio_api/upload", body, **form, **same) == 200, same


def test_long_bodies_and_other_posts_are_refused_before_they_are_read() -> None:
    from fastapi import FastAPI, Request
    from fastapi.testclient import TestClient

    from leam_mm.serving.page_server import KeepLocal

    app, read = FastAPI(), []

    @app.post("/{path:path}")
    async def read_all(path: str, request: Request) -> int:
        async for part in request.stream():
            read.append(len(part))
        return sum(read)

    client = TestClient(KeepLocal(app, None))
    join = "/en/gradio_api/queue/join"
    assert client.post(join, content=b"{}").json() == 2
    assert client.post(join, content=b"{}", headers={"content-length": str(10**10)}).status_code == 413
    assert client.post(join, content=(bytes(1 << 20) for _ in range(100))).status_code == 413  # of unknown length
    assert sum(read) <= 1_000_002
    for name in ("process_recording", "component_server", "vibe-edit", "call/x", "api/x", "login"):
        assert client.post(f"/en/gradio_api/{name}", content=b"{}").status_code == 404, name


def test_an_image_is_served_as_the_marked_file(page: Served) -> None:
    states = page.ask("s1", event_with(page, 5), [f"ein Kreis {HOSTILE}", 7, 2, 2, 4.0])
    assert "Finished." in states[-1][0] and HOSTILE not in str(states)
    sources = re.findall(r'<img src="\.\./(images/[^"]+)" alt="([^"]*)"', states[-1][1])
    assert len(sources) == 2 and "ein Kreis &lt;script&gt;" in sources[0][1]
    status, headers, content = page.get(sources[0][0])
    assert status == 200 and headers["content-type"] == "image/png" and "no-store" in headers["cache-control"]
    marks = find_marks(content, [SpreadSpectrum()], 1e-3)
    assert marks.found and not marks.problem and marks.texts["DigitalSourceType"] == SOURCE_TYPE
    assert marks.credentials is not None and marks.credentials.state == "Valid"


def test_uploads_are_edited_and_labelled(page: Served, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "photo.png")
    photo = upload(page, (tmp_path / "photo.png").read_bytes())
    states = page.ask("s2", event_with(page, 8), [photo, None, 0.5, "x", 1, 1, 2, 4.0])
    assert "AI-edited" in states[-1][1]
    states = page.ask("s3", event_with(page, 3), [photo, "de", ""])
    assert "Kreis" in states[-1][1] and "&lt;script&gt;" in states[-1][1] and HOSTILE not in states[-1][1]
    states = page.ask("s4", event_with(page, 3), [photo, "own", "rot, blau"])
    assert "rot" in states[-1][1]


def test_bad_input_gets_a_clear_message_in_the_language_of_the_page(page: Served) -> None:
    bad = upload(page, b"no image", "photo.png")
    edit, draw, label = (event_with(page, count) for count in (8, 5, 3))
    numbers = [1, 1, 2, 4.0]
    for data, event, message in (
        ([bad, None, 0.5, "x", *numbers], edit, "not an image that can be read"),
        ([None, None, 0.5, "x", *numbers], edit, "choose an image first"),
        ([bad, "de", ""], label, "not an image that can be read"),
        (["", *numbers], draw, "what the image should show"),
        (["x" * 1001, *numbers], draw, "1001 characters"),
        (["x", "first", 1, 2, 4.0], draw, "whole number"),
        (["x", "9" * 10, 1, 2, 4.0], draw, "Seed: please give a number from 0 to"),
    ):
        states = page.ask("s5", event, data)
        assert message in states[-1][0] and 'class="fault"' in states[-1][0], states
    states = page.ask("s6", event_with(page, 5, "de"), ["", *numbers], "de")
    assert "was das Bild zeigen soll" in states[-1][0]


def test_an_uploaded_address_is_not_fetched(page: Served, server) -> None:
    server.answers["/x.png"] = (200, {}, b"x")
    for path in (f"{server.url}/x.png", "/etc/passwd"):
        page.join("s7", event_with(page, 3), [{"path": path, "meta": {"_type": "gradio.FileData"}}, "de", ""])
        last = [message for message in page.messages("s7") if message["msg"] == "process_completed"]
        assert not last[-1]["success"]
    assert server.requests == []


def test_requests_of_gone_clients_are_dropped(page: Served) -> None:
    draw, large = event_with(page, 5), ["x", 1, 8, 100, 4.0]
    start = time.monotonic()
    page.ask("patient", draw, large)
    alone = time.monotonic() - start
    for client in range(6):
        page.join(f"gone{client}", draw, large)
        stream = page.messages(f"gone{client}")
        next(stream)
        stream.close()
    start = time.monotonic()
    states = page.ask("here", draw, ["x", 1, 1, 1, 4.0])
    assert "Finished." in states[-1][0]
    assert time.monotonic() - start < 3 * alone + 2


@pytest.mark.slow
def test_logs_name_no_prompt_and_ctrl_c_ends_it(release: Path) -> None:
    with served(release) as page:
        page.ask("s1", event_with(page, 5), ["my secret prompt", 7, 1, 1, 4.0])
        page.ask("s1", event_with(page, 5), ["my secret prompt", "my secret seed", 1, 1, 4.0])
        page.join("gone", event_with(page, 5), ["my secret prompt", 7, 8, 100, 4.0])
        stream = page.messages("gone")
        next(stream)
        stream.close()
    log = "".join(page.lines)
    assert page.process.returncode == 0 and "secret" not in log and "Traceback" not in log, log
    assert "the page is closed" in log


@pytest.mark.slow
def test_other_machines_are_answered_only_if_asked_and_with_a_warning(release: Path) -> None:
    with served(release, "--host", "0.0.0.0", "--open-to-network") as page:
        assert "warning: the page is open to every machine" in "".join(page.lines)
        page.url = page.url.replace("0.0.0.0", "127.0.0.1")
        assert page.get("en/", Host="lab.example")[0] == 200


@pytest.mark.slow
def test_it_ends_with_a_termination_signal(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with served(release) as page:
        assert list(tmp_path.glob("leam_mm_page_*"))
        page.process.send_signal(signal.SIGTERM)
        assert page.process.wait(30) in (0, 143)
    assert not list(tmp_path.glob("leam_mm_page_*"))


def test_a_changed_release_is_not_served(release: Path, tmp_path: Path) -> None:
    check_verified(release)
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    card = bytearray((copy / "README.md").read_bytes())
    card[5] ^= 1
    (copy / "README.md").write_bytes(bytes(card))
    with pytest.raises(UserError, match=r"is not served: README\.md"):
        serve_verified(ServeOptions(copy, port=0))


@pytest.mark.slow
def test_fifty_requests_of_ten_clients(release: Path) -> None:
    """All are answered in the order in which they came, and memory does not grow."""
    finished: list[tuple[int, int]] = []
    with served(release) as page:
        draw = event_with(page, 5)

        def client(number: int, rounds: int) -> None:
            for request in range(rounds):
                states = page.ask(f"client{number}", draw, [f"client {number}", request, 2, 4, 4.0])
                assert "Finished." in states[-1][0]
                finished.append((number, request))

        def together(rounds: int) -> int:
            threads = [threading.Thread(target=client, args=(number, rounds)) for number in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return page.memory()

        warm = together(1)
        finished.clear()
        after = together(5)
        assert len(finished) == 50
        # Each client sends its next request when the last is answered, so that rounds follow each other.
        rounds = [request for _, request in finished]
        assert all(abs(place // 10 - request) <= 1 for place, request in enumerate(rounds)), rounds
        print(f"resident memory {warm / 1e6:.0f} MB after 10 requests, {after / 1e6:.0f} MB after 60")
        assert after - warm < 30e6
