"""Provenance of a release: an in-toto statement without anything of the machine, and the same from the same input."""

import getpass
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from leam_mm.code_commit import code_commit
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.release.provenance import Ingredient, build_time, statement
from leam_mm.release_record import RELEASE

DIGESTS = {"README.md": "ab" * 32, "configs/clip.yaml": "cd" * 32}


def test_the_statement_names_every_file_and_what_it_was_made_of(built_release: Path) -> None:
    content = json.loads((built_release / "provenance.json").read_text())
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {one["name"]: one["digest"]["sha256"] for one in content["subject"]}
    files = {path.relative_to(built_release).as_posix() for path in built_release.rglob("*") if path.is_file()}
    assert subjects.keys() == files - {"provenance.json", RELEASE}
    assert all(file_sha256(built_release / name) == digest for name, digest in subjects.items())
    definition = content["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["configs"]["configs/clip.yaml"]["sha256"] == subjects["configs/clip.yaml"]
    materials = {one["name"]: one for one in definition["resolvedDependencies"]}
    record = json.loads((built_release / RELEASE).read_text())
    clip = record["stages"]["clip"]
    assert materials["checkpoint of clip"]["digest"]["sha256"] == clip["checkpoint_sha256"]
    assert materials["checkpoint of clip"]["annotations"] == {
        "samples_seen": 640, "training_seconds": 3600.0, "hardware": "2 x a device",
        "began_at": "2026-01-02T03:04:05+00:00", "ended_at": "2026-01-02T04:04:05+00:00",
    }  # fmt: skip
    assert materials["data of clip: shards"]["digest"]["merkleRoot"] in clip["data"]
    assert materials["data of generator: l"]["annotations"]["samples"] == "not known"
    assert materials["torch"]["uri"].startswith("pkg:pypi/torch@2.")
    assert "digest" not in materials["leam_mm"] or re.fullmatch(
        r"[0-9a-f]{40,64}", materials["leam_mm"]["digest"]["gitCommit"]
    )


def test_nothing_of_the_machine_is_in_it(built_release: Path) -> None:
    text = (built_release / "provenance.json").read_text()
    assert str(built_release.parent) not in text and str(Path.home()) not in text
    assert not re.search(r'"/|file://|/tmp', text)
    words = set(re.findall(r"[\w.-]+", text))
    assert not words & ({socket.gethostname()} | ({getpass.getuser()} - {"leam_mm", "build"}))


def test_the_time_is_that_of_source_date_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one = statement(DIGESTS, {}, [Ingredient("a", {"sha256": "00"}, {"samples": None})])
    assert one == statement(DIGESTS, {}, [Ingredient("a", {"sha256": "00"}, {"samples": None})])
    assert one["predicate"]["runDetails"]["metadata"]["startedOn"] == "2023-11-14T22:13:20Z"
    for wrong in ("yesterday", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UserError, match="give seconds since 1970"):
            build_time()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_says_whether_the_code_was_changed(tmp_path: Path) -> None:
    assert code_commit(tmp_path) == (None, None)

    def git(*words: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *settings, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "x")
    assert code_commit(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "code.py").write_text("2")
    assert code_commit(tmp_path)[1] is True
