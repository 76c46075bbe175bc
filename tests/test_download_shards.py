import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toys.images import deep_png, encoded_image, rotated_jpeg, two_coloured_image
from toys.recipes import ROOT
from toys.servers import Server

from data_tools.download import image_download
from data_tools.download_shards import main
from data_tools.links.screening_evidence import file_digests
from data_tools.samples.shard_check import check_folder
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError


def cases(server: Server) -> list[tuple[str, str, str]]:
    """All kinds of links: name, address, expected rule."""
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    clear = Image.fromarray(np.full((8, 8, 4), (255, 0, 0, 0), np.uint8))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    answers: list[tuple[str, int, dict[str, str], bytes, str]] = [
        ("good.png", 200, {}, encoded_image(two_coloured_image()), "kept"),
        ("rotated.jpg", 200, {}, rotated_jpeg(), "kept"),
        ("grey16.png", 200, {}, deep_png(1, 257 * 100), "kept"),
        ("colour16.png", 200, {}, deep_png(3, 257 * 100), "kept"),
        ("grey.png", 200, {}, encoded_image(grey), "kept"),
        ("clear.png", 200, {}, encoded_image(clear), "kept"),
        ("é ü.png", 200, {}, encoded_image(two_coloured_image(16, 16)), "kept"),
        ("broken.jpg", 200, {}, encoded_image(noise, "JPEG")[:900], "decode"),
        ("page.jpg", 200, {"Content-Type": "image/jpeg"}, b"<html>no image</html>", "decode"),
        ("gone.png", 404, {}, b"gone", "download"),
        ("short.png", 200, {"Content-Length": "9999"}, b"\x89PNG", "download"),
        ("heavy.png", 200, {}, b"x" * 30_000, "bytes"),
        ("wide.png", 200, {}, encoded_image(Image.new("RGB", (300, 300))), "pixels"),
        ("tdm.png", 200, {"TDM-Reservation": "1"}, encoded_image(two_coloured_image()), "reservation"),
        ("robots.png", 200, {"X-Robots-Tag": "none"}, encoded_image(two_coloured_image()), "reservation"),
        ("inward.png", 302, {"Location": f"http://localhost:{server.server_port}/good.png"}, b"", "private_address"),
        ("file.png", 302, {"Location": "file:///etc/hostname"}, b"", "scheme"),
    ]
    for name, status, headers, body, _ in answers:
        server.answers["/" + urllib.parse.quote(name)] = (status, headers, body)
    found = [(name, f"{server.url}/{name}", rule) for name, *_, rule in answers]
    found += [("file", "file:///etc/hostname", "scheme"), ("data", "data:image/png;base64,iVBORw0KGgo=", "scheme")]
    found += [("private", "http://10.0.0.1/a.png", "private_address"), ("ftp", "ftp://example.org/a.png", "scheme")]
    found += [("loopback", f"http://127.1.1.1:{server.server_port}/good.png", "private_address")]
    found += [("caption", f"{server.url}/good.png", "caption"), ("captions", f"{server.url}/good.png", "captions")]
    return found


def test_every_row_has_its_decision(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
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
    assert samples["good.png"]["png"] == server.answers["/good.png"][2]  # nothing to repair: the same bytes
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
    advice = r"with --min-success 0\.291, .* after it once more with --retry-failed"
    with pytest.raises(UserError, match=r"only 7 of 24 .*decode 2.*failed-ledger.*" + advice):
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
@pytest.mark.timeout(900)
def test_killed_runs_continue_to_the_same_bytes(server: Server, tmp_path: Path) -> None:
    rows = 300
    for number in range(rows):
        content = encoded_image(Image.new("RGB", (8, 8), (number % 256, number // 256, 0)))
        server.answers[f"/{number}.png"] = (200, {}, content)
    table = {"url": [f"{server.url}/{i}.png" for i in range(rows)], "caption": [f"picture {i}" for i in range(rows)]}
    pq.write_table(pa.table(table), tmp_path / "links.parquet")
    raw = tmp_path / "killed.work" / "raw"

    def command(output: str) -> list[str]:
        program = [sys.executable, str(ROOT / "data_tools/download_shards.py")]
        program += ["--table", str(tmp_path / "links.parquet"), "--output", str(tmp_path / output)]
        return [*program, "--allow-private", "127.0.0.1", "--threads", "2"]

    server.delay = 0.02
    for finished in (1, 3, 5):  # parts
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while len(list(raw.glob("*.parquet"))) < finished and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (tmp_path / "killed").exists()
        time.sleep(1.5)
        quiet = len(server.requests)
        time.sleep(0.5)
        assert len(server.requests) == quiet  # no orphan goes on fetching
        assert finished <= len(list(raw.glob("*.parquet"))) < 8
    server.delay = 0.0
    subprocess.run(command("killed"), check=True, timeout=120)
    assert len(server.requests) < 2 * rows  # finished parts were not fetched again
    subprocess.run(command("whole"), check=True, timeout=120)
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
    assert (tmp_path / "whole/manifest.jsonl").read_bytes() == (tmp_path / "killed/manifest.jsonl").read_bytes()


@pytest.mark.slow
def test_failed_links_are_asked_again_and_the_bytes_are_those_of_one_good_run(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = 12
    good = {f"/{i}.png": (200, {}, encoded_image(two_coloured_image(8 + i, 9))) for i in range(rows)}
    good["/3.png"] = (200, {"X-Robots-Tag": "noai"}, b"")  # refused for good
    good["/4.png"] = (200, {}, b"no image")
    table = {"url": [f"{server.url}/{i}.png" for i in range(rows)], "caption": [f"picture {i}" for i in range(rows)]}
    pq.write_table(pa.table(table), tmp_path / "links.parquet")
    command = ["--table", str(tmp_path / "links.parquet"), "--allow-private", "127.0.0.1", "--min-success", "0.5"]
    command += ["--samples-per-shard", "4", "--retries", "0", "--processes", "1"]
    with pytest.raises(UserError, match="run without --retry-failed first"):
        main([*command, "--output", str(tmp_path / "shaken"), "--retry-failed"])
    server.answers = dict(good) | {f"/{i}.png": (500, {}, b"") for i in (0, 5, 11)}
    main([*command, "--output", str(tmp_path / "shaken")])
    first = (tmp_path / "shaken/manifest.jsonl").read_bytes()
    server.requests.clear()
    server.answers["/5.png"] = good["/5.png"]
    for number, expected in enumerate([["/0.png", "/11.png", "/5.png"], ["/0.png", "/11.png"], []]):
        main([*command, "--output", str(tmp_path / "shaken"), "--retry-failed"])
        assert sorted(server.requests) == expected
        server.requests.clear()
        server.answers = good
        assert (number == 2) == ("nothing to do" in capsys.readouterr().out)
    main([*command, "--output", str(tmp_path / "whole")])
    for name in ("manifest.jsonl", "download.json", "00000.tar", "00002.tar", "00000.index.parquet"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "shaken" / name).read_bytes()
    assert (tmp_path / "whole/manifest.jsonl").read_bytes() != first and not list(tmp_path.glob("*.retry*"))
    ledgers = [pq.read_table(tmp_path / name / "ledger.parquet").to_pylist() for name in ("whole", "shaken")]
    columns = ("uid", "key", "stage", "rule", "value", "kept", "reason", "bytes", "sha256", "width")
    assert [[row[name] for name in columns] for row in ledgers[0]] == [
        [row[name] for name in columns] for row in ledgers[1]
    ]
    assert [row["rule"] for row in ledgers[0]].count("kept") == rows - 2
    with pytest.raises(UserError, match=r"another size \(256, now 32\): give the settings"):
        main([*command, "--output", str(tmp_path / "shaken"), "--retry-failed", "--size", "32"])


def test_evidence_is_in_ledger_and_sample(server: Server, tmp_path: Path) -> None:
    server.answers["/a"] = (302, {"Location": "/b"}, b"")
    server.answers["/b"] = (200, {"Content-Type": "image/png", "ETag": "x"}, encoded_image(two_coloured_image()))
    row = {"url": f"{server.url}/a", "caption": "x", "uid": "f" * 32, "legal_basis": "licensed", "language": "de"}
    row |= {"consent": json.dumps({"page_rights": [], "seen": 1}), "licence": "CC-BY-4.0"}
    (tmp_path / "links.jsonl").write_text(json.dumps(row))
    output = str(tmp_path / "out")
    (tmp_path / "sources.yaml").write_text("trust_tables: [links.jsonl]")
    own = ["--allow-private", "127.0.0.1", "--sources", str(tmp_path / "sources.yaml")]
    main(["--table", str(tmp_path / "links.jsonl"), "--output", output, *own])
    (decision,) = pq.read_table(tmp_path / "out/ledger.parquet").to_pylist()
    assert (decision["uid"], decision["legal_basis"], decision["language"]) == ("f" * 32, "licensed", "de")
    assert (decision["stage"], decision["licence"]) == ("download_shards", "CC-BY-4.0")
    evidence = json.loads(decision["evidence"])
    assert [hop["status"] for hop in evidence["hops"]] == [302, 200] and evidence["attempts"] == 1
    assert evidence["seconds"] > 0 and ["etag", "x"] in evidence["headers"]
    ((_, members),) = read_samples(tmp_path / "out")
    record = json.loads(members["json"])
    assert record["uid"] == "f" * 32 and record["consent"]["seen"] == 1
    response = record["consent"]["response"]
    assert response["final_url"] == f"{server.url}/b" and response["content_type"] == "image/png"
    assert not {"seconds", "attempts", "headers"} & set(response)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--slice", "4/4"], "I/N"),
        (["--part-bytes", "0"], "--part-bytes is 0"),
        (["--delay-per-host", "-1"], "at least 0"),
        (["--image-seconds", "nan"], "Expected a float"),
    ],
)
def test_invalid_settings(given: list[str], word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=word):
        main(["--table", "links.csv", "--output", str(tmp_path / "out"), *given])


@pytest.mark.parametrize(("distributor", "extra"), [("pyspark", "spark"), ("ray", "ray")])
def test_a_distributor_that_is_not_installed_is_refused(
    distributor: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """img2dataset 1.47 would report success without any part if ray is missing."""
    monkeypatch.setattr(image_download, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"\.\[{extra}\]"):
        main(["--table", "links.csv", "--output", str(tmp_path / "out"), "--distributor", distributor])


def test_redirects_follow_registries_and_agreements(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Entries of a registry are refused behind redirects as well; hosts that agreed are not."""
    other = f"http://localhost:{server.server_port}"
    server.answers["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /closed\n")
    for name, target in (("a", f"{server.url}/listed/a"), ("b", f"{other}/closed/b"), ("c", f"{other}/open/c")):
        server.answers[f"/{name}"] = (302, {"Location": target}, b"")
        server.answers["/" + target.split("/", 3)[3]] = (200, {}, encoded_image(two_coloured_image()))
    links = [f"{server.url}/{name}" for name in "abc"] + [f"{server.url}/listed/a"]
    table = {"url": links, "caption": ["a picture"] * 4, "legal_basis": ["art4_general", "licensed", "licensed", None]}
    pq.write_table(pa.table(table), tmp_path / "links.parquet")
    (tmp_path / "registry.txt").write_text(f"{server.url}/listed/\n")
    own = ["--table", str(tmp_path / "links.parquet"), "--processes", "1", "--retries", "0", "--min-success", "0"]
    own += ["--allow-private", "127.0.0.1", "--allow-private", "localhost", "--spare-private", "--delay-per-host", "0"]
    own += ["--agent-contact", "https://lab.example/bot", "--registry", str(tmp_path / "registry.txt")]

    def rules(name: str) -> list[str]:
        main([*own, "--output", str(tmp_path / name)])
        return [row["rule"] for row in pq.read_table(tmp_path / name / "ledger.parquet").to_pylist()]

    strangers = ["reservation", "robots.txt", "kept", "reservation"]
    assert rules("strangers") == strangers
    screened = {"origin": other, "agreed": True}, {"origin": server.url, "agreed": False}
    (tmp_path / "origins.jsonl").write_text("".join(json.dumps(line) + "\n" for line in screened))
    assert rules("foreign") == strangers and "origins.jsonl is ignored" in caplog.text
    digests = file_digests(tmp_path, ("links.parquet", "origins.jsonl"))
    (tmp_path / "summary.json").write_text(json.dumps({"files": digests}))
    # The table's own addresses were judged by screen_links then; what redirects lead to is judged here.
    assert rules("screened") == ["reservation", "kept", "kept", "kept"]
    (tmp_path / "registry.txt").write_text("elsewhere.example\n")
    with pytest.raises(UserError, match="registries"):
        main([*own, "--output", str(tmp_path / "screened"), "--retry-failed"])


def test_foreign_evidence_and_claims_lift_nothing(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An origins.jsonl that is empty, of another table or changed, and a legal basis that a table claims."""
    server.answers["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /closed\n")
    server.answers["/.well-known/tdmrep.json"] = (200, {}, b'[{"location": "/reserved", "tdm-reservation": 1}]')
    for path in ("/closed/a", "/reserved/b", "/open/c"):
        server.answers[path] = (200, {}, encoded_image(two_coloured_image()))
    links = [server.url + path for path in ("/closed/a", "/reserved/b", "/open/c")]
    pq.write_table(
        pa.table({"url": links, "caption": ["x"] * 3, "legal_basis": ["consent", "public_domain", "synthetic"]}),
        tmp_path / "links.parquet",
    )
    command = ["--table", str(tmp_path / "links.parquet"), "--allow-private", "127.0.0.1", "--spare-private"]
    command += ["--processes", "1", "--retries", "0", "--min-success", "0", "--delay-per-host", "0"]
    agreed = json.dumps({"origin": server.url, "agreed": True}) + "\n"
    digests = file_digests(tmp_path, ("links.parquet",))
    empty = hashlib.sha256(b"").hexdigest()
    for number, (origins, files) in enumerate(
        [
            (None, None),
            ("", None),
            (agreed, None),
            ("", {"links.parquet": "0" * 64, "origins.jsonl": empty}),
            (agreed, digests | {"origins.jsonl": empty}),
            ("", ["links.parquet"]),
        ]
    ):
        if origins is not None:
            (tmp_path / "origins.jsonl").write_text(origins)
        if files is not None:
            (tmp_path / "summary.json").write_text(json.dumps({"files": files}))
        main([*command, "--output", str(tmp_path / f"out{number}")])
        rows = pq.read_table(tmp_path / f"out{number}/ledger.parquet").to_pylist()
        assert [row["rule"] for row in rows] == ["robots.txt", "reservation", "kept"], number
        assert len([line for line in caplog.messages if "is ignored" in line]) == number  # one line each time
        assert rows[2]["legal_basis"] == "art4_general"


def test_a_licence_ends_where_the_site_ends(server: Server, tmp_path: Path) -> None:
    """A page may license an address of its own site that redirects to the image of another."""
    victim = f"http://localhost:{server.server_port}"
    server.answers["/mine"] = (302, {"Location": f"{victim}/reserved"}, b"")
    server.answers["/moved"] = (302, {"Location": f"{victim}/free"}, b"")
    server.answers["/reserved"] = (200, {"X-Robots-Tag": "noai"}, encoded_image(two_coloured_image()))
    server.answers["/free"] = (200, {}, encoded_image(two_coloured_image()))
    links = [server.url + path for path in ("/mine", "/moved", "/free", "/reserved")]
    columns = {"url": links, "caption": ["x"] * 4, "legal_basis": ["public_domain"] * 4, "licence": ["CC0-1.0"] * 4}
    pq.write_table(pa.table(columns), tmp_path / "links.parquet")
    (tmp_path / "sources.yaml").write_text("trust_tables: [links.parquet]")
    command = ["--table", str(tmp_path / "links.parquet"), "--sources", str(tmp_path / "sources.yaml")]
    command += ["--allow-private", "127.0.0.1", "--allow-private", "localhost", "--processes", "1", "--retries", "0"]
    main([*command, "--min-success", "0", "--output", str(tmp_path / "out")])
    rows = pq.read_table(tmp_path / "out/ledger.parquet").to_pylist()
    assert [row["rule"] for row in rows] == ["reservation", "kept", "kept", "kept"]
    assert [row["legal_basis"] for row in rows][1:] == ["art4_general", "public_domain", "public_domain"]
    records = [json.loads(members["json"]) for _, members in read_samples(tmp_path / "out")]
    assert [record["licence"] for record in records] == [None, "CC0-1.0", "CC0-1.0"]


@pytest.mark.slow
def test_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a b", "sub/ü"):
        (folder / f"{name}.png").write_bytes(encoded_image(two_coloured_image()))
        (folder / f"{name}.txt").write_text(f"caption of {name}\n")
    main(["--folder", str(folder), "--output", str(tmp_path / "shards"), "--resize", "center_crop", "--size", "16"])
    records = [json.loads(members["json"]) for _, members in read_samples(tmp_path / "shards")]
    assert [record["url"] for record in records] == ["file:a%20b.png", "file:sub/%C3%BC.png"]  # no path of this machine
    assert [record["captions"][0]["text"] for record in records] == ["caption of a b", "caption of sub/ü"]
    assert all((record["width"], record["height"], record["domain"]) == (16, 16, "") for record in records)


def test_public_hosts_need_a_contact(tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text("url,caption\nhttp://museum.example/1.png,x\n")
    with pytest.raises(UserError, match=r"--agent-contact.*museum\.example"):
        main(["--table", str(tmp_path / "links.csv"), "--output", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["links.csv"]


def test_program_ends_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "data_tools/download_shards.py"), "--table", "absent.csv", "--output", "out"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: absent.csv")
    assert not list(tmp_path.iterdir())


def test_where_no_row_is_kept_the_advice_works_with_other_options(tmp_path: Path) -> None:
    """Other options need another work folder: the message says so, before the next command does."""
    settings = SimpleNamespace(output=tmp_path / "shards", retry_failed=False)
    assert "delete " + str(tmp_path / "shards.work") + " if options change" in image_download._way_on(settings, 0, 4)
