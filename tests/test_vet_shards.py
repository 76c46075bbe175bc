import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from toys.images import soft_jpeg
from toys.recipes import ROOT
from toys.shards import Members, small_sample, write_samples
from toys.vetting import file_digests, hostile_samples, read_ledger, vet, write_hostile, write_rules
from toys.vetting_rules import Even, Fails, Mirror, Redden, SameMean

from data_tools.samples.image_repair import encode_image
from data_tools.samples.shard_check import check_folder
from data_tools.vet_shards import common_reasons
from data_tools.vetting.vetting_rule import Sample
from leam_mm.data.keep_list import KEEP
from leam_mm.data.shard_index import MANIFEST, ShardFolder, read_samples
from leam_mm.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """35 samples in four shards; numbers 30 to 34 show the pictures 0 to 4 again."""
    samples = [small_sample(number, image=soft_jpeg(number % 30)) for number in range(35)]
    return write_samples(tmp_path_factory.mktemp("vetting") / "shards", samples)


def test_a_sample_that_ends_two_processes_is_dropped_and_the_run_goes_on(shards: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "rules:\n"
        "- {class_path: toys.vetting_rules.Kills, init_args: {numbers: [3]}}\n"
        "- {class_path: toys.vetting_rules.SameMean}\n"
        "- {class_path: toys.vetting_rules.Kills, init_args: {numbers: [5]}}\n"
    )
    vetted = vet(shards, rules, tmp_path / "vetted", "--max-errors", "0.2")
    dropped = {
        int(row["key"]): row["value"] for row in read_ledger(vetted) if not row["kept"] and row["rule"] != "same_mean"
    }
    assert dropped == {3: "crash", 5: "error"}
    assert ShardFolder(vetted).samples == 35 - 2 - 4  # numbers 30 to 34 repeat 0 to 4, of which 3 is dropped itself


def test_keep_list_and_ledger(shards: Path, tmp_path: Path) -> None:
    vetted = vet(shards, write_rules(tmp_path / "r.yaml", Even, SameMean), tmp_path / "vetted")
    keys = [key for key, _ in read_samples(vetted)]
    assert keys == [f"{number:06d}" for number in range(0, 30, 2)]
    rows = read_ledger(vetted)
    # Each is asked by Even, 18 stay and are asked by SameMean, 15 of them stay for good.
    assert Counter((row["rule"], row["kept"]) for row in rows) == {
        **{("even", True): 18, ("even", False): 17},
        **{("same_mean", True): 15, ("same_mean", False): 3, ("kept", True): 15},
    }
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    about = [row for row in rows if row["key"] == "000030"]
    assert [(row["rule"], row["kept"], row["reason"]) for row in about] == [
        ("even", True, ""),
        ("same_mean", False, "as 000000"),
    ]
    assert about[0]["evidence"] == '{"half": 15.0}' and about[0]["uid"] == f"{30:032x}"
    assert (about[0]["stage"], about[0]["domain"], about[0]["width"]) == ("vet_shards", "pictures.example", 72)
    report = json.loads((vetted / "vetting.json").read_text())
    assert report["kept"] == 15 and report["shards"] == ShardFolder(shards).merkle_root
    assert [found["dropped"] for found in report["found"]] == [0, 17, 3]
    timing = json.loads((vetted / "timing.json").read_text())
    assert [row["rule"] for row in timing] == ["sample", "even", "same_mean"]
    assert all(row["cpu_ms_per_image"] > 0 for row in timing)
    assert not list(tmp_path.glob("vetted.*"))


def test_materialised_shards_hold_the_changes(shards: Path, tmp_path: Path) -> None:
    listed = write_rules(tmp_path / "r.yaml", Even, Redden, SameMean)
    (tmp_path / "vetted.partial").mkdir()
    (tmp_path / "vetted.partial/ledger.parquet.tmp-1-0123abcd").touch()  # of a killed writer
    vetted = vet(shards, listed, tmp_path / "vetted", "--materialise")
    assert not list(vetted.glob("*.tmp-*"))
    assert not check_folder(vetted)[1].faults and not (vetted / KEEP).exists()
    before = dict(read_samples(shards))
    after = dict(read_samples(vetted))
    for key, members in after.items():
        record, old = json.loads(members["json"]), json.loads(before[key]["json"])
        red = int(key) % 3 == 0
        assert record["red"] == red and "mean" in record
        shown = Sample(key, record, "jpg", members["jpg"]).pixels
        if red:
            assert shown[..., 0].mean() > 240 and record["transforms"] == ["red"]
        else:
            assert members["jpg"] == before[key]["jpg"]
        changed = {"red", "mean", "transforms", "width", "height"}
        assert {name: value for name, value in record.items() if name not in changed} == {
            name: value for name, value in old.items() if name not in changed
        }
    values = {row["key"]: row["value"] for row in read_ledger(vetted) if row["rule"] == "kept"}
    assert values["000006"] == "red" and values["000002"] == ""


@pytest.mark.parametrize(
    "kills",
    [
        ["vetted.work/findings0_0/*"],  # during the first pass
        pytest.param(["vetted.work", "vetted.work/findings0_0/*", "vetted.work/shards/*"], marks=pytest.mark.slow),
    ],
    ids=["one", "three"],
)
def test_kills_and_processes_change_no_byte(kills: list[str], shards: Path, tmp_path: Path) -> None:
    listed = write_rules(tmp_path / "r.yaml", (Even, {"sleep": 0.15}), Redden, SameMean, Mirror)
    wanted = file_digests(vet(shards, listed, tmp_path / "a" / "vetted", "--materialise"))
    assert len(wanted) == 3 * 2 + 4  # manifest, ledger, vetting.json, README.md; nothing of the last shard stays
    output = tmp_path / "b" / "vetted"
    command = [sys.executable, "-m", "data_tools.vet_shards", "--shards", str(shards), "--rules", str(listed)]
    command += ["--output", str(output), "--materialise", "--processes", "2"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    killed, generator = 0, random.Random(7)
    for started in kills:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not any(output.parent.glob(started)) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == len(kills)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert file_digests(output) == wanted and not list(output.parent.glob("vetted.*"))
    vet(shards, listed, output, "--materialise")
    assert file_digests(output) == wanted


def test_rules_after_a_dataset_rule_see_what_it_kept(shards: Path, tmp_path: Path) -> None:
    listed = write_rules(tmp_path / "r.yaml", Even, Redden, SameMean, Mirror)
    vetted = vet(shards, listed, tmp_path / "vetted", "--materialise")
    assert [found["asked"] for found in json.loads((vetted / "vetting.json").read_text())["found"]] == [
        35,
        35,
        18,
        18,
        15,
    ]
    before = dict(read_samples(shards))
    for key, members in read_samples(vetted):
        pixels, record = Sample(key, {}, "jpg", before[key]["jpg"]).pixels.copy(), json.loads(members["json"])
        if int(key) % 3 == 0:
            pixels[..., 0] = 255
        assert record["saw_red"] == (int(key) % 3 == 0) and record["transforms"][-1] == "mirror"
        assert members["jpg"] == encode_image(Image.fromarray(pixels[:, ::-1]), "jpg")  # encoded once
    values = {row["key"]: row["value"] for row in read_ledger(vetted) if row["rule"] == "kept"}
    assert values["000006"] == "red;mirror" and values["000002"] == "mirror"
    other = write_samples(tmp_path / "other", [small_sample(100, image=soft_jpeg(4))])
    without = vet(shards, listed, tmp_path / "without", "--materialise", "--against", str(other))
    assert ShardFolder(without).samples == 14


def test_other_settings_do_not_resume(shards: Path, tmp_path: Path) -> None:
    listed = write_rules(tmp_path / "r.yaml", Even, Redden)
    with pytest.raises(UserError, match="redden changed images or captions"):
        vet(shards, listed, tmp_path / "vetted")
    write_rules(tmp_path / "r.yaml", (Even, {"sleep": 0.001}), Redden)
    with pytest.raises(UserError, match="started with another rules"):
        vet(shards, listed, tmp_path / "vetted", "--materialise")
    write_rules(tmp_path / "r.yaml", Even, Redden)
    reviewed = {path: path.stat().st_mtime_ns for path in (tmp_path / "vetted.work").glob("findings0_0/*/*")}
    assert reviewed
    vet(shards, listed, tmp_path / "vetted", "--materialise")
    with pytest.raises(UserError, match="exists already"):
        vet(shards, listed, tmp_path / "vetted")
    assert vet(shards, write_rules(tmp_path / "s.yaml", Even), tmp_path / "vetted", "--overwrite")
    assert (tmp_path / "vetted" / KEEP).exists() and not (tmp_path / "vetted" / MANIFEST).exists()


def test_hostile_samples_are_reported_and_dropped(tmp_path: Path) -> None:
    hostile = hostile_samples()
    good = Sample("K", {}, "jpg", soft_jpeg(9))
    from toys.vetting import tar_member

    sound = tar_member("K.jpg", good.content) + tar_member("K.json", small_sample(2)["json"])
    folder = write_hostile(tmp_path / "shards", [raw for raw, _ in hostile.values()] + [sound, sound])
    vetted = vet(folder, write_rules(tmp_path / "r.yaml", Even), tmp_path / "vetted", "--materialise")
    assert [key for key, _ in read_samples(vetted)] == ["K"]
    rows = read_ledger(vetted)
    assert [row["value"] for row in rows[: len(hostile)]] == [value for _, value in hostile.values()]
    assert all(row["reason"] and not row["kept"] and row["rule"] == "sample" for row in rows[: len(hostile)])
    # The last sample has the key of the one before it.
    assert [(row["rule"], row["kept"]) for row in rows[len(hostile) :]] == [
        *[("even", True), ("kept", True)],
        *[("sample", False), ("even", True)],
    ]


def test_damaged_shards_are_reported(shards: Path, tmp_path: Path) -> None:
    samples: list[Members] = [small_sample(number) for number in range(12)]
    folder = write_samples(tmp_path / "shards", samples, per_shard=3)
    raw = bytearray((folder / "00000.tar").read_bytes())
    raw[700] ^= 1
    (folder / "00000.tar").write_bytes(raw)
    (folder / "00001.index.parquet").write_bytes(b"PAR1")
    (folder / "00002.tar").unlink()
    vetted = vet(folder, write_rules(tmp_path / "r.yaml", Even), tmp_path / "vetted")
    assert [key for key, _ in read_samples(vetted)] == ["000010"]
    damaged = [row for row in read_ledger(vetted) if row["value"] == "shard"]
    assert len(damaged) == 9 and {row["reason"][:9] for row in damaged} == {"00000.tar", "00001.tar", "00002.tar"}


def test_samples_of_other_data_sets_are_dropped(shards: Path, tmp_path: Path) -> None:
    other = write_samples(
        tmp_path / "other", [small_sample(100 + number, image=soft_jpeg(number)) for number in (4, 8, 40)]
    )
    listed = write_rules(tmp_path / "r.yaml", Even, SameMean)
    vetted = vet(shards, listed, tmp_path / "vetted", "--against", str(other))
    keys = [int(key) for key, _ in read_samples(vetted)]
    assert keys == [number for number in range(0, 30, 2) if number not in (4, 8)]
    values = {
        row["key"]: row["reason"] for row in read_ledger(vetted) if row["rule"] == "same_mean" and not row["kept"]
    }
    assert values["000004"] == "as 000000 against" and values["000034"] == "as 000000 against"
    assert json.loads((vetted / "vetting.json").read_text())["against"] == [ShardFolder(other).merkle_root]
    with pytest.raises(UserError, match="no rule looks across"):
        vet(shards, write_rules(tmp_path / "s.yaml", Even), tmp_path / "w", "--against", str(other))


def test_samples_for_which_a_rule_fails_are_dropped(shards: Path, tmp_path: Path) -> None:
    listed = write_rules(tmp_path / "r.yaml", Fails)
    vetted = vet(shards, listed, tmp_path / "vetted")
    assert ShardFolder(vetted).samples == 34
    row = next(row for row in read_ledger(vetted) if not row["kept"])
    assert (row["key"], row["value"]) == ("000003", "error")
    assert row["reason"] == "the rule could not judge: ZeroDivisionError: cannot"
    with pytest.raises(UserError, match="failed for 1 of 35"):
        vet(shards, listed, tmp_path / "again", "--max-errors", "0.01")


def test_vetted_folders_can_be_vetted_again(shards: Path, tmp_path: Path) -> None:
    first = vet(shards, write_rules(tmp_path / "r.yaml", Even), tmp_path / "first")
    second = vet(first, write_rules(tmp_path / "s.yaml", SameMean), tmp_path / "second")
    copied = vet(first, write_rules(tmp_path / "s.yaml", SameMean), tmp_path / "copied", "--materialise")
    assert [key for key, _ in read_samples(second)] == [f"{number:06d}" for number in range(0, 30, 2)]
    assert [key for key, _ in read_samples(copied)] == [key for key, _ in read_samples(second)]


def test_errors_in_rules_are_one_line(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "r.yaml").write_text("rules:\n- class_path: data_tools.vetting.vetting_rule.Nothing\n")
    with pytest.raises(UserError, match=r"r\.yaml"):
        vet(shards, tmp_path / "r.yaml", tmp_path / "vetted")
    (tmp_path / "r.yaml").write_text("rules: []\n")
    with pytest.raises(UserError, match="no rule"):
        vet(shards, tmp_path / "r.yaml", tmp_path / "vetted")
    with pytest.raises(UserError, match="no_file"):
        vet(shards, tmp_path / "no_file.yaml", tmp_path / "vetted")
    with pytest.raises(UserError, match="min_side"):
        (tmp_path / "r.yaml").write_text(
            "rules: [{class_path: data_tools.vetting.image_quality.ImageQuality, init_args: {min_side: 0}}]"
        )
        vet(shards, tmp_path / "r.yaml", tmp_path / "vetted")
    assert not (tmp_path / "vetted").exists()


def test_reasons_are_printed_with_their_numbers(tmp_path: Path) -> None:
    for name, numbers in (("a", (1, 1, 2, 3, 3)),):
        write_samples(tmp_path / name, [small_sample(n, image=soft_jpeg(k)) for n, k in enumerate(numbers)])
    vetted = vet(tmp_path / "a", ROOT / "configs/vet_basic.yaml", tmp_path / "vetted")
    found = common_reasons(vetted / "ledger.parquet")
    rows = [row for row in read_ledger(vetted) if not row["kept"]]
    assert sum(count for _, count in found) == len(rows) > 0
    assert found == sorted(found, key=lambda entry: (-entry[1], entry[0]))
    assert not any(letter.isdigit() for (_, reason), _ in found for letter in reason)
