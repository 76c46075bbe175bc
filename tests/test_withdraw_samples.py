"""data_tools/withdraw_samples.py: exactly the selected samples go, everywhere, with proof, and after any kill."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toys.images import encoded_image, soft_image
from toys.published import derived_from, keys_of, withdraw, write_published
from toys.recipes import ROOT

from data_tools.links.blocklists import DigestList
from data_tools.samples.shard_check import check_folder
from data_tools.withdrawal.shard_withdrawal import staging
from data_tools.work.signature import make_key, read_private_key, sign_file
from leam_mm.data.hash_files import read_hashes
from leam_mm.data.ledger import LEDGER, read_ledger
from leam_mm.data.shard_index import ShardFolder, ShardWriter, read_samples
from leam_mm.errors import UserError


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_published(tmp_path / "shards")
    before = content(folder)
    withdraw("--shards", folder, "--domain", "site3.example")
    said = capsys.readouterr().out
    assert "4 of 23 samples" in said and "0000013" in said and "dry run" in said
    assert before == content(folder)
    withdraw("--shards", folder, "--domain", "elsewhere.example", "--apply", "--unsigned")
    assert "no sample matches" in capsys.readouterr().out
    assert before == content(folder)


def test_exactly_the_selected_samples_go(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_published(tmp_path / "shards")
    make_key(tmp_path / "lab.pem")
    before, old = ShardFolder(folder), {key: members for key, members in read_samples(folder)}
    untouched = {name: (folder / name).stat().st_ino for name in ("00000.tar", "00002.tar")}
    withdraw("--shards", folder, "--url", "https://img.site1.example/6.png", "--caption", "number 16 of",
        "--match", "contains", "--date", "2026-11-22", "--key", tmp_path / "lab.pem", "--apply")  # fmt: skip
    after = ShardFolder(folder)
    new = {key: members for key, members in read_samples(folder)}
    assert set(old) - set(new) == {"0000006", "0000016"} and all(old[key] == new[key] for key in new)
    assert check_folder(folder)[1].faults == []
    assert untouched == {name: (folder / name).stat().st_ino for name in untouched}
    assert [entry.samples for entry in after.shards] == [5, 4, 5, 4, 3]
    assert not staging(folder).exists() and before.merkle_root != after.merkle_root

    said = json.loads((folder / "withdrawals/0001.json").read_text())
    assert said["data_sets"][0]["merkle_root_before"] == before.merkle_root
    assert said["data_sets"][0]["merkle_root_after"] == after.merkle_root
    verify = (
        "--shards",
        folder,
        "--verify",
        folder / "withdrawals/0001.json",
        "--public-key",
        tmp_path / "lab.pem.pub",
    )
    withdraw(*verify)
    assert "holds none of the 2 samples" in capsys.readouterr().out
    stones = [json.loads(line) for line in (folder / "tombstones.jsonl").read_text().splitlines()]
    assert [stone["key"] for stone in stones] == ["0000006", "0000016"]
    for path in folder.rglob("*"):  # nothing of the content is left or published
        if path.is_file():
            found = path.read_bytes()
            assert b"img.site1.example/6.png" not in found and b"Picture number 16" not in found, path
            assert encoded_image(soft_image(6))[40:] not in found

    rows = [row for batch in read_ledger(folder / LEDGER) for row in batch.to_pylist()]
    assert [(row["key"], row["kept"], row["stage"]) for row in rows[23:]] == [
        ("0000006", False, "withdraw_samples"), ("0000016", False, "withdraw_samples")]  # fmt: skip
    assert {row["key"] for row in rows[:23] if row["rule"] == "withdrawn"} == {"0000006", "0000016"}
    assert {row["key"] for row in rows[:23] if row["domain"] is None} == {"0000006", "0000016"}
    lists = tmp_path / "shards.blocklists"
    blocked = DigestList(lists / "url_sha256.txt")
    assert blocked.find({"https://img.site1.example/6.png"}) and not blocked.find({"https://img.site1.example/1.png"})
    known = read_hashes(lists / "withdrawn.sha256")["sha256"]
    assert known == {hashlib.sha256(encoded_image(soft_image(n))).digest() for n in (6, 16)}
    assert len((lists / "withdrawn.pdq").read_text().split()) == 2

    withdraw("--shards", folder, "--url", "https://img.site1.example/6.png", "--apply", "--unsigned")
    assert "no sample matches" in capsys.readouterr().out
    digest = json.loads(old["0000003"]["json"])["sha256"]
    withdraw("--shards", folder, "--sha256", digest, "--unsigned", "--apply")
    assert len(list((folder / "withdrawals").glob("*.json"))) == 2
    with pytest.raises(UserError, match="another state"):
        withdraw(*verify)


def test_a_forged_statement_is_detected(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "shards", 10)
    for name in ("lab.pem", "other.pem"):
        make_key(tmp_path / name)
    withdraw("--shards", folder, "--url", "https://img.site1.example/6.png", "--key", tmp_path / "lab.pem", "--apply")
    file = folder / "withdrawals/0001.json"
    with pytest.raises(UserError, match="was made with the key"):
        withdraw("--shards", folder, "--verify", file, "--public-key", tmp_path / "other.pem.pub")
    good = json.loads(file.read_text())
    for change, word in (
        ({"merkle_root_after": "0" * 64}, "is not that of manifest_after"),
        ({"samples_before": 11}, "is not the sum"),
        ({"manifest_after": good["data_sets"][0]["manifest_before"]}, "is not that of manifest_after"),
    ):
        bad = good | {"data_sets": [good["data_sets"][0] | change]}
        file.write_text(json.dumps(bad))
        sign_file(file, read_private_key(tmp_path / "lab.pem"))
        with pytest.raises(UserError, match=word):
            withdraw("--shards", folder, "--verify", file, "--public-key", tmp_path / "lab.pem.pub")


def test_salted_hashes_cannot_be_guessed(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "shards", 10)
    (tmp_path / "salt").write_bytes(bytes(range(32)))
    digest = hashlib.sha256(encoded_image(soft_image(6))).hexdigest()
    withdraw("--shards", folder, "--sha256", digest, "--salt", tmp_path / "salt", "--unsigned", "--apply")
    for path in folder.rglob("*"):
        assert path.is_dir() or digest.encode() not in path.read_bytes(), path


def test_derived_folders_lose_the_samples(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "shards")
    kept, latents = derived_from(folder, tmp_path)
    before, given = keys_of(kept), ("--shards", folder, "--derived", kept, "--derived", latents)
    withdraw(*given, "--domain", "site3.example", "--apply", "--unsigned")
    gone = {"0000003", "0000008", "0000013", "0000018"}
    assert keys_of(kept) == [key for key in before if key not in gone]
    assert ShardFolder(kept).merkle_root.startswith(ShardFolder(folder).merkle_root + "+keep.")
    left = keys_of(latents / "8x16") + keys_of(latents / "16x8")
    assert sorted(left) == keys_of(folder) == [f"{n:07d}" for n in range(23) if f"{n:07d}" not in gone]
    listed = json.loads((latents / "buckets.json").read_text())["buckets"]
    counts = {entry["folder"]: entry["samples"] for entry in listed}
    assert counts == {"8x16": len(keys_of(latents / "8x16")), "16x8": len(keys_of(latents / "16x8"))}
    # A second time: the latents were made from a state that is no longer there, and are still known.
    withdraw(*given, "--domain", "site2.example", "--apply", "--unsigned")
    assert len(keys_of(folder)) == 14 == len(keys_of(latents / "8x16") + keys_of(latents / "16x8"))
    other = write_published(tmp_path / "other", 7)
    with pytest.raises(UserError, match="none of --shards"):
        withdraw("--shards", other, "--derived", latents, "--domain", "site3.example")
    with pytest.raises(UserError, match="keep-list"):
        withdraw("--shards", kept, "--domain", "site3.example")


def test_a_link_goes_from_all_folders_even_if_its_caption_differs(tmp_path: Path) -> None:
    first, second = write_published(tmp_path / "a"), tmp_path / "b"
    with ShardWriter(second, 9) as writer:
        for key, members in read_samples(first):
            record = json.loads(members["json"])
            record["captions"][0]["text"] = "redacted"
            writer.write(key, members | {"json": json.dumps(record).encode()})
    withdraw("--shards", first, "--shards", second, "--caption", "picture number 6 of a lake", "--apply", "--unsigned")
    assert keys_of(first) == keys_of(second) and "0000006" not in keys_of(second)


def test_withdrawal_of_all_samples_and_damaged_shards_are_refused(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "shards", 7)
    with pytest.raises(UserError, match="delete the folder instead"):
        withdraw("--shards", folder, "--caption", "picture", "--match", "contains", "--apply", "--unsigned")
    raw = bytearray((folder / "00001.tar").read_bytes())
    raw[600] ^= 1
    (folder / "00001.tar").write_bytes(raw)
    with pytest.raises(UserError, match="sample 0000005 is damaged"):
        withdraw("--shards", folder, "--url", "https://img.site1.example/6.png", "--apply", "--unsigned")
    for args, word in (
        (["--domain", "localhost"], "is not a domain"),
        (["--sha256", "12"], "64 hex digits"),
        (["--url", " "], "is empty"),
        ([], "nothing to look for"),
        (["--image", str(tmp_path / "absent.png")], "cannot be read"),
        (["--url", "x", "--apply"], "needs --key"),
    ):
        with pytest.raises(UserError, match=word):
            withdraw("--shards", folder, *args)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    chance = random.Random(1)
    wanted = write_published(tmp_path / "whole" / "shards")
    derived = derived_from(wanted, tmp_path / "whole")
    args = ["--domain", "site3.example", "--date", "2026-11-22", "--apply", "--unsigned"]

    def command(place: Path) -> list[str]:
        program = [sys.executable, str(ROOT / "data_tools/withdraw_samples.py"), "--shards", str(place / "shards")]
        return [*program, "--derived", str(place / "kept"), "--derived", str(place / "latents"), *args]

    begin = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - begin
    assert len(keys_of(wanted)) == 19 and len(derived) == 2

    kills = 0
    for attempt in range(10):
        place = tmp_path / str(attempt)
        write_published(place / "shards")
        derived_from(place / "shards", place)
        process = subprocess.Popen(command(place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds * (0.4 + 0.6 * chance.random()))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        subprocess.run(command(place), check=True, stdout=subprocess.DEVNULL)
        assert content(place) == content(tmp_path / "whole")
    assert kills >= 5


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_between_any_two_steps_it_ends_with_the_same_bytes(
    stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    class Kill(BaseException):
        pass

    write_published(tmp_path / "new" / "shards", 12)
    derived_from(tmp_path / "new" / "shards", tmp_path / "new")

    def attempt(place: Path, steps: int) -> bool:
        shutil.copytree(tmp_path / "new", place)
        left = [steps]

        def counted(name: str):
            real = getattr(os, name)

            def step(*args: object, **settings: object) -> object:
                if "withdrawal" in str(args[0]) + str(args[1] if len(args) > 1 else ""):
                    if left[0] == 0:
                        raise Kill
                    left[0] -= 1
                return real(*args, **settings)

            return step

        given = ["--shards", place / "shards", "--derived", place / "kept", "--derived", place / "latents",
                 "--domain", "site3.example", "--date", "2026-11-22", "--apply", "--unsigned"]  # fmt: skip
        with monkeypatch.context() as patch:
            for name in ("replace", "rename"):
                patch.setattr(os, name, counted(name))
            try:
                withdraw(*given)
                return True
            except Kill:
                pass
        withdraw(*given)
        return False

    assert attempt(tmp_path / "whole", 10**6)
    expected = content(tmp_path / "whole")
    steps, ended = 0, False
    while not ended:
        place = tmp_path / f"at{steps}"
        ended = attempt(place, steps)
        assert content(place) == expected, steps
        assert {path.name for path in place.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
        steps += stride
    assert steps > 15
    assert pq.ParquetFile(tmp_path / "whole/shards" / LEDGER).metadata.num_rows == 14


def test_a_list_that_a_killed_withdrawal_left_unfinished_is_removed(tmp_path: Path) -> None:
    write_published(tmp_path / "shards")
    lists = tmp_path / "shards.blocklists"
    lists.mkdir()
    (lists / "withdrawn.pdq.tmp-1-00000000").touch()
    record = next(read_samples(tmp_path / "shards"))[1]["json"]
    withdraw("--shards", tmp_path / "shards", "--url", json.loads(record)["url"], "--apply", "--unsigned")
    assert {path.suffix for path in lists.iterdir()} <= {".txt", ".sha256", ".pdq"}
