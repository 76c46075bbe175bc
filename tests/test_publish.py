"""Publishing: a version is complete or absent, never changed, continued after a kill, and latest moves last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from toys.built_releases import write_keys
from toys.hub_server import HubServer
from toys.recipes import ROOT

from leam_mm.errors import UserError
from leam_mm.release.__main__ import main
from leam_mm.release.publication import Publication, prepare
from leam_mm.release.publish_folder import open_folder
from leam_mm.release.verify_release import verify_release
from leam_mm.release.version_page import Version, version_page
from leam_mm.release_record import RELEASE, read_record, write_record

TOKEN = "hf_secretsecretsecretsecret"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_bytes(release: Path) -> None:
    """Make it another release of the same name."""
    record = read_record(release)
    facts = {key: value for key, value in record.content.items() if key not in ("files", "own_sha256", "format")}
    digests = {name: stated.sha256 for name, stated in record.files.items()}
    write_record(release, digests, facts | {"note": "other"})


def publish(release: Path, to: str, *words: str) -> None:
    main(["publish", str(release), "--to", to, *words])


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_a_version_is_published_and_a_second_time_changes_nothing(
    release: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = {"path": str(tmp_path / "m"), "file": f"file://{tmp_path}/m", "memory": f"memory://{tmp_path.name}/m"}[
        kind
    ]
    publish(release, address, "--version", "1.0.0", "--dry-run")
    assert "nothing was sent" in capsys.readouterr().out and not (tmp_path / "m").exists()
    publish(release, address, "--version", "1.0.0")
    system, root = fsspec.core.url_to_fs(address)
    found = {str(path)[len(root) + 1 :]: system.cat_file(path) for path in system.find(root)}
    expected = {f"1.0.0/{name}": content for name, content in files(release).items()}
    assert {name: found[name] for name in expected} == expected
    assert found.keys() - expected.keys() == {"latest.json", "versions.json", "index.html"}
    latest = json.loads(found["latest.json"])
    assert latest == {"version": "1.0.0", "own_sha256": read_record(release).own_sha256}
    capsys.readouterr()
    publish(release, address, "--version", "1.0.0")
    assert "was published already" in capsys.readouterr().out
    other_bytes(release)
    with pytest.raises(UserError, match=r"1\.0\.0 holds another release: a published version is never changed"):
        publish(release, address, "--version", "1.0.0")
    publish(release, address, "--version", "1.0.1", "--keep-latest")
    assert json.loads(system.cat_file(f"{root}/latest.json"))["version"] == "1.0.0"
    publish(release, address, "--version", "1.0.1")
    assert json.loads(system.cat_file(f"{root}/latest.json"))["version"] == "1.0.1"
    assert [one["version"] for one in json.loads(system.cat_file(f"{root}/versions.json"))] == ["1.0.1", "1.0.0"]
    if kind != "memory":
        assert verify_release(tmp_path / "m/1.0.0").faults == []


def test_a_release_with_a_fault_goes_nowhere(release: Path, tmp_path: Path) -> None:
    (release / "LICENSE").write_text("x")
    with pytest.raises(SystemExit) as end:
        publish(release, str(tmp_path / "mirror"))
    assert end.value.code == 1 and not (tmp_path / "mirror").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "s3://key:secret@bucket/x"], "holds credentials"),
        (["--to", "https://example.org/x"], "takes no files"),
        (["--to", "nosuch://x"], "cannot be opened"),
        (["--to", "hf://owner"], "give hf://owner/name"),
        (["--to", "memory://v", "--version", "../x"], "letters, digits"),
        (["--to", "memory://v", "--version", "latest"], "not 'latest'"),
    ],
)
def test_addresses_and_versions_that_cannot_be_meant(release: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main(["publish", str(release), *words])
    assert "secret" not in str(caught.value)


KILLER = """
import os, sys
from leam_mm.release import publish_folder
count, replace = [0], os.replace
def killing(*names):
    count[0] += 1
    if count[0] == int(sys.argv[1]):
        os.kill(os.getpid(), 9)
    replace(*names)
os.replace = killing
from leam_mm.release.__main__ import main
main(["publish", *sys.argv[2:]])
"""


def test_a_killed_upload_continues_and_latest_is_always_complete(release: Path, tmp_path: Path) -> None:
    mirror, count = tmp_path / "mirror", len(files(release))
    publish(release, str(mirror), "--version", "0")
    # Killed before it writes: the second file, the record, the list of versions, the page, latest.
    for number, moment in enumerate((3, count + 1, count + 2, count + 3, count + 4), start=1):
        words = [str(release), "--to", str(mirror), "--version", str(number)]
        command = [sys.executable, "-c", KILLER, str(moment), *words]
        done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == -9, done.stderr[-2000:]
        assert json.loads((mirror / "latest.json").read_text())["version"] == str(number - 1)
        listed = [one["version"] for one in json.loads((mirror / "versions.json").read_text())]
        assert (str(number) in listed) == (moment > count + 2)
        assert all(verify_release(mirror / version).faults == [] for version in listed)
        assert (mirror / str(number) / RELEASE).exists() == (moment > count + 1)
        publish(release, str(mirror), "--version", str(number))
        assert json.loads((mirror / "latest.json").read_text())["version"] == str(number)
        assert files(mirror / str(number)) == files(release)


def publication(release: Path, version: str) -> Publication:
    return prepare(release, verify_release(release), version, True)


def test_parts_of_another_upload_are_refused(release: Path, tmp_path: Path) -> None:
    target = open_folder(str(tmp_path / "mirror"))
    (tmp_path / "mirror/1.0").mkdir(parents=True)
    (tmp_path / "mirror/1.0/holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="holds files of no release"):
        target.publish(publication(release, "1.0"))
    (tmp_path / "mirror/2.0").mkdir()
    (tmp_path / "mirror/2.0/unfinished.json").write_text('{"own_sha256": "00"}')
    with pytest.raises(UserError, match="a part of another release"):
        target.publish(publication(release, "2.0"))
    found = publication(release, "3.0")
    (release / "LICENSE").write_bytes(b"X" * found.sizes["LICENSE"])
    with pytest.raises(UserError, match="LICENSE changed while it was uploaded"):
        target.publish(found)
    assert not (tmp_path / "mirror/3.0" / RELEASE).exists() and not (tmp_path / "mirror/latest.json").exists()


def test_the_page_of_versions_is_escaped_and_loads_nothing(release: Path) -> None:
    hostile = "<script>alert(1)</script>"
    one = Version("1.0", hostile, '"><img src=x>', "ab" * 32, "2026-11-29", True, [["a b/<i>.md", 3, "cd" * 32]])
    page = version_page([one], "1.0")
    assert "<script" not in page and "<img" not in page and "<i>.md" not in page
    assert 'href="1.0/a%20b/%3Ci%3E.md"' in page and "default-src 'none'" in page


HUB = """
import sys
from leam_mm.errors import run
from leam_mm.release.__main__ import main
run(lambda: main(["publish", *sys.argv[1:]]))
"""


def to_hub(server: HubServer, release: Path, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    command = [sys.executable, "-c", HUB, str(release), "--to", "hf://lab/toy", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


def test_a_hub_gets_a_tag_first_and_main_last(release: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path / "keys")
    server, home = HubServer(), tmp_path / "home"
    done = to_hub(server, release, home, "--version", "1.0", "--dry-run")
    assert done.returncode == 0 and "nothing was sent" in done.stdout, done.stderr
    assert all(line.startswith("GET") for line in server.log) and server.repository is None
    server.die_at = "/tag/"
    done = to_hub(server, release, home, "--version", "1.0")
    assert done.returncode == 2 and "it continues" in done.stderr.splitlines()[-1]
    assert set(server.files("main")) == {".gitattributes"} and server.tags == {}
    assert server.created.get("visibility") == "private" or server.created.get("private")
    server.die_at, server.log = None, []
    done = to_hub(server, release, home, "--version", "1.0")
    assert done.returncode == 0 and "published lab/toy 1.0" in done.stdout, done.stderr
    assert not [line for line in server.log if "/blob/" in line]  # large files were there already
    for revision in ("main", "1.0"):
        assert {n: c for n, c in server.files(revision).items() if n != ".gitattributes"} == files(release)
    changes = [line for line in server.log if line.startswith("POST") and ("/tag/" in line or "/commit/main" in line)]
    assert [line.rpartition("/toy/")[2] for line in changes] == ["tag/publish-1.0", "commit/main"]
    assert set(server.branches) == {"main"}
    other_bytes(release)
    done = to_hub(server, release, home, "--version", "1.0")
    assert done.returncode == 2 and "never changed" in done.stderr
    done = to_hub(server, release, home, "--version", "1.1")
    assert done.returncode == 0 and server.files("1.0") != server.files("1.1") == server.files("main")
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == [] and private.exists() and public.exists()


def test_a_release_goes_to_a_repository_of_its_name_only(release: Path) -> None:
    from leam_mm.release.publish_hub import open_repository

    with pytest.raises(UserError, match="build it with --name lab/other"):
        open_repository("hf://lab/other", private=True).state(publication(release, "1.0"))
