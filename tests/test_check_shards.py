import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toys.images import blank_png
from toys.shards import Members, complete_sample, write_samples
from toys.vetting import hostile_samples, write_hostile

from data_tools.check_shards import main
from data_tools.samples.shard_check import check_folder
from leam_mm.data.shard_index import MANIFEST, ShardFolder, ShardWriter
from leam_mm.errors import UserError


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 255
    path.write_bytes(raw)


def test_sound_folder_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_samples(tmp_path / "a", [complete_sample() for _ in range(6)], 4)
    main([str(folder)])
    out = capsys.readouterr().out
    assert out.endswith("sound\n") and ShardFolder(folder).merkle_root in out
    found = check_folder(folder)[1]
    assert (found.samples, found.faults, dict(found.languages)) == (6, [], {"en": 6, "de": 6})
    assert dict(found.sizes) == {"8x6": 6} and dict(found.licences) == {"CC0-1.0": 6}


@pytest.mark.parametrize("position", [0, 600, 2000, -1])
def test_any_changed_byte_is_found(position: int, tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "a", [complete_sample() for _ in range(6)], 4)
    flip(folder / "00001.tar", position)
    faults = check_folder(folder, decode=False)[1].faults
    assert faults and all("00001.tar" in fault for fault in faults)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut tar": (lambda f: (f / "00000.tar").write_bytes((f / "00000.tar").read_bytes()[:3000]), "has 3000 bytes"),
    "no tar": (lambda f: (f / "00000.tar").unlink(), "is missing"),
    "no index": (lambda f: (f / "00000.index.parquet").unlink(), "is missing"),
    "other index": (
        lambda f: (f / "00000.index.parquet").write_bytes((f / "00001.index.parquet").read_bytes()),
        "4 of the",
    ),
    "stray tar": (lambda f: (f / "00009.tar").write_bytes(b""), "not listed in"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_ends_with_code_1_and_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_samples(tmp_path / "a", [complete_sample() for _ in range(6)], 4)
    damage, word = DAMAGE[name]
    damage(folder)
    with pytest.raises(SystemExit) as ended:
        main([str(folder)])
    broken = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken: ")]
    assert ended.value.code == 1 and len(broken) == 1 and word in broken[0]


def test_swapped_shards_are_found(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "a", [complete_sample(url=str(number)) for number in range(8)], 4)
    first, second = (folder / f"0000{n}.tar" for n in range(2))
    a, b = first.read_bytes(), second.read_bytes()
    assert len(a) == len(b) and a != b
    first.write_bytes(b)
    second.write_bytes(a)
    assert len([fault for fault in check_folder(folder)[1].faults if MANIFEST in fault]) == 2


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ({"png": blank_png()}, "no json"),
        ({"png": blank_png(), "json": b"{"}, "its json cannot be used"),
        ({"png": blank_png(), "json": b"[]"}, "not an object"),
        (complete_sample(captions=[]), "no usable captions"),
        (complete_sample(captions=[{"text": " ", "language": "en"}]), "an empty caption"),
        (complete_sample(captions=[{"text": "x"}]), "language"),
        ({"json": complete_sample()["json"]}, "holds 0 images"),
        (complete_sample() | {"jpg": blank_png()}, "holds 2 images"),
        (complete_sample() | {"png": blank_png("L")}, "is L, should be RGB"),
        (complete_sample() | {"png": blank_png()[:45]}, "cannot be decoded"),
        (complete_sample(width=9), "its json says"),
        (complete_sample() | {"json": b'{"captions": [{"text": "x", "language": "en"}], "url": "u"}'}, "lacks domain"),
        (
            {"latent.npy": b"x", "caption_state.npy": b"x", "json": complete_sample()["json"]},
            "latent.npy cannot be read",
        ),
        ({"latent.npy": b"x", "json": complete_sample()["json"]}, "latent.npy|caption_state.npy"),
    ],
)
def test_samples_that_break_the_contract(members: Members, word: str, tmp_path: Path) -> None:
    faults = check_folder(write_samples(tmp_path / "a", [members, complete_sample()]))[1].faults
    assert len(faults) == 1 and "sample 00000" in faults[0]
    assert any(part in faults[0] for part in word.split("|"))


@pytest.mark.parametrize("name", [name for name, (_, value) in hostile_samples().items() if value in ("member", "tar")])
def test_members_that_readers_take_differently_are_found_though_all_digests_are_right(
    name: str, tmp_path: Path
) -> None:
    faults = check_folder(write_hostile(tmp_path / "a", [hostile_samples()[name][0]]))[1].faults
    assert len(faults) == 1 and "sample K: " in faults[0] and "sha256" not in faults[0]


def test_fast_decodes_no_image(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_samples(tmp_path / "a", [complete_sample() | {"png": b"no image"}])
    main([str(folder), "--fast"])
    assert "not decoded" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(folder)])


def test_latents_must_be_finite(tmp_path: Path) -> None:
    def latent(value: float) -> Members:
        found = {}
        for name, shape in (("latent.npy", (4, 2, 2)), ("caption_state.npy", (1, 3, 8))):
            buffer = io.BytesIO()
            np.save(buffer, np.full(shape, value, np.float16))
            found[name] = buffer.getvalue()
        return found | {"json": complete_sample()["json"]}

    assert check_folder(write_samples(tmp_path / "a", [latent(0.5)]))[1].faults == []
    assert "NaN or infinite" in check_folder(write_samples(tmp_path / "b", [latent(np.inf)]))[1].faults[0]


def test_bucket_folders_are_checked_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    latent: Members = {"json": complete_sample()["json"]}
    for name, shape in (("latent.npy", (4, 2, 2)), ("caption_state.npy", (1, 3, 8)), ("image_feature.npy", (4, 3))):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(shape, np.float16))
        latent[name] = buffer.getvalue()
    for name in ("8x16", "16x8"):
        write_samples(tmp_path / name, [latent])
    listed = [{"folder": f"{h}x{w}", "height": h, "width": w, "samples": 1} for h, w in ((8, 16), (16, 8))]
    (tmp_path / "buckets.json").write_text(json.dumps({"buckets": listed}))
    main([str(tmp_path)])
    said = capsys.readouterr().out
    assert said.count("Merkle root") == 2 and "sound" in said
    write_samples(tmp_path / "16x8", [latent | {"image_feature.npy": latent["latent.npy"]}])
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "image_feature.npy has shape (4, 2, 2)" in capsys.readouterr().out


def test_a_key_that_occurs_twice_is_found(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a", 1) as writer:
        writer.write("k", complete_sample())
        writer.write("k", complete_sample())
    assert "twice" in check_folder(tmp_path / "a")[1].faults[0]


def test_other_folders_end_with_code_2(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard folder"):
        main([str(tmp_path)])
    program = Path(__file__).resolve().parent.parent / "data_tools/check_shards.py"
    ended = subprocess.run([sys.executable, str(program), str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
