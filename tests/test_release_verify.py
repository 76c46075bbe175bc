"""A release is checked: every changed byte and field is found and named, and a hostile folder does nothing."""

import json
import os
import random
import shutil
import struct
from pathlib import Path

import pytest
from toys.built_releases import write_keys

from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.release.__main__ import main
from leam_mm.release.digest_cache import DigestCache
from leam_mm.release.verify_release import verify_release
from leam_mm.release_record import RELEASE, SIGNATURE, StatedFile, check_own_digest, read_record, write_record


def faults(folder: Path, public_key: Path | None = None) -> dict[str, str]:
    """First fault of each file."""
    found: dict[str, str] = {}
    for fault in verify_release(folder, public_key).faults:
        found.setdefault(fault.file, fault.text)
    return found


def seal(folder: Path) -> None:
    """Write the record anew, as somebody does who wants a change to pass."""
    record = read_record(folder)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    from leam_mm.files import file_sha256

    digests = {name: file_sha256(folder / name) for name in names if name not in (RELEASE, SIGNATURE)}
    facts = {key: value for key, value in record.content.items() if key not in ("files", "format", "own_sha256")}
    write_record(folder, digests, facts)


def test_a_built_release_is_intact(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(release), "--json", str(tmp_path / "v.json"), "--no-cache"])
    line = capsys.readouterr().out
    assert "is intact: lab/toy" in line and "not signed" in line
    outcome = json.loads((tmp_path / "v.json").read_text())
    record = read_record(release)
    assert outcome["faults"] == [] and outcome["files"] == len(record.files) + 1
    assert outcome["own_sha256"] == record.own_sha256 == check_own_digest((release / RELEASE).read_bytes())


def change_byte(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def change_field(path: Path, rng: random.Random) -> bool:
    """Change one value of a JSON file; its form stays that of the writer."""
    text = path.read_text()
    content = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
    places: list[tuple[object, object]] = []

    def walk(node: object) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):  # type: ignore[arg-type]
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(content)
    if not places:
        return False
    node, key = rng.choice(places)
    before = node[key]  # type: ignore[index]
    node[key] = before + 1 if isinstance(before, int | float) else f"{before}x"  # type: ignore[index]
    end = "\n" + "\n".join(text.splitlines()[1:]) if path.suffix == ".jsonl" else "\n"
    path.write_text(json.dumps(content, indent=None if path.suffix == ".jsonl" else 2, ensure_ascii=False) + end)
    return True


def test_200_random_changes_are_found_and_named(release: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    private, public = write_keys(tmp_path / "keys")
    main(["sign", str(release), "--private-key", str(private)])
    assert faults(release, public) == {}
    rng = random.Random(20)
    names = sorted(path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file())
    fields = [name for name in names if name.endswith((".json", ".jsonl"))]
    missed = []
    for number in range(200):
        # Each file at least once, then record and signature often: no digest outside them protects these two.
        of_fields = number % 5 == 4
        special = [RELEASE, SIGNATURE][number % 2]
        name = names[number] if number < len(names) else rng.choice([*names, special])
        name = rng.choice(fields) if of_fields else name
        before = (release / name).read_bytes()
        if not of_fields or not change_field(release / name, rng):
            change_byte(release / name, rng)
        assert (release / name).read_bytes() != before
        if name not in faults(release, public):
            missed.append((number, name))
        (release / name).write_bytes(before)
    assert missed == [] and faults(release, public) == {}


def test_missing_extra_and_moved_files_are_named(release: Path) -> None:
    (release / "LICENSE").rename(release / "LICENCE")
    (release / "onnx").mkdir()
    (release / "onnx/extra.json").write_text("{}")
    found = faults(release)
    assert found["LICENSE"].startswith("missing") and found["LICENCE"].startswith("not part of the release")
    assert found["onnx/extra.json"].startswith("not part")
    with pytest.raises(SystemExit) as end:
        main(["verify", str(release), "--no-cache"])
    assert end.value.code == 1


def test_a_change_with_new_digests_contradicts_another_document(release: Path) -> None:
    """A change of one document whose digest was written anew, as by somebody who hides it."""
    card, config = release / "README.md", release / "open_clip_config.json"
    results, provenance = release / "results.jsonl", release / "provenance.json"

    def edited(path: Path, old: str, new: str) -> dict[str, str]:
        text = path.read_text()
        assert old in text, (path, old)
        path.write_text(text.replace(old, new, 1))
        seal(release)
        found = faults(release)
        path.write_text(text)
        return found

    digest = read_record(release).content["stages"]["clip"]["checkpoint_sha256"]
    assert "license is 'mit'" in edited(card, "license: apache-2.0", "license: mit")["README.md"]
    assert "hf_tokenizer_name" in edited(config, '"lab/toy"', '"other/toy"')["open_clip_config.json"]
    assert "line 1 measured another clip" in edited(results, digest, "ab" * 32)["results.jsonl"]
    assert "does not name" in edited(provenance, digest, "ab" * 32)["provenance.json"]
    assert "states the digest" in edited(card, digest, "ab" * 32)["README.md"] if digest in card.read_text() else True
    seal(release)
    assert set(faults(release)) <= {"provenance.json"}  # states the digests of the files before


def test_the_record_states_digests_that_another_change_contradicts(release: Path) -> None:
    record = json.loads((release / RELEASE).read_text())
    record["stages"]["clip"]["parameters"] *= 3
    facts = {key: value for key, value in record.items() if key not in ("files", "own_sha256", "format")}
    write_record(release, {name: one["sha256"] for name, one in record["files"].items()}, facts)
    assert "parameters" in faults(release)["open_clip_model.safetensors"]


def hostile_names(folder: Path) -> dict[str, str]:
    (folder / "evil.bin").write_bytes(b"\x80\x04.")
    (folder / "modeling_evil.py").write_text("import os")
    (folder / "link.json").symlink_to("/etc/hostname")
    (folder / "vae").mkdir(exist_ok=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe.json")
    (folder / "<img src=x onerror=alert(1)>.md").write_text("x")
    (folder / "a\x1b[31mred\nline.md").write_text("x")
    deep = folder.joinpath(*["d"] * 9)
    deep.mkdir(parents=True)
    (deep / "x.md").write_text("x")
    return {
        "evil.bin": "pickle",
        "modeling_evil.py": "program code",
        "link.json": "symbolic link",
        "loop": "symbolic link",
        "pipe.json": "no regular file",
        "<img src=x onerror=alert(1)>.md": "HTML",
        "a\x1b[31mred\nline.md": "printable",
        "d/d/d/d/d/d/d": "too deep",
    }


def test_hostile_names_and_kinds_are_refused_and_printed_harmlessly(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = hostile_names(release)
    found = faults(release)
    assert {name: part for name, part in expected.items() if part not in found.get(name, "")} == {}
    with pytest.raises(SystemExit):
        main(["verify", str(release), "--no-cache"])
    output = capsys.readouterr().out
    assert "\x1b" not in output and "a\\x1b[31mred\\nline.md: " in output


CONTENTS = {
    "config.json": ('{"auto_map": {"AutoModel": "modeling_evil.Evil"}}', "auto_map"),
    "vae/config.json": ('{"_class_name": "os.system"}', "_class_name"),
    "model_index.json": ('{"vae": ["my_code", "Evil"], "scheduler": ["diffusers", "os;"]}', "my_code"),
    "modules.json": ('[{"type": "evil.Module"}]', "no module of sentence-transformers"),
    "preprocessor_config.json": ('{"name": "/data/secret/model"}', "path of a machine"),
    "scheduler/scheduler_config.json": ("[" * 100_000, "no JSON"),
    "tokenizer_config.json": ('{"trust_remote_code": true}', "trust_remote_code"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_code_in_configs_is_refused(release: Path, name: str) -> None:
    content, reason = CONTENTS[name]
    (release / name).parent.mkdir(exist_ok=True)
    (release / name).write_text(content)
    seal(release)
    assert reason in " ".join(fault.line for fault in verify_release(release).faults if fault.file == name)


def test_headers_of_weights_are_bounded(release: Path) -> None:
    weights = release / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    broken = {
        "claims": struct.pack("<Q", 1 << 62) + whole[8:],
        "is no object": struct.pack("<Q", 2) + b"[]",
        "another size": _with(header, name, {"shape": [1 << 40]}, whole[8 + length :]),
        "impossible": _with(header, name, {"data_offsets": [-8, 8]}, whole[8 + length :]),
        "end at byte": whole + b"hidden",
    }
    for reason, content in broken.items():
        weights.write_bytes(content)
        seal(release)
        assert reason in faults(release)["open_clip_model.safetensors"], reason


def _with(header: dict, name: str, facts: dict, tensors: bytes) -> bytes:
    text = json.dumps({**header, name: {**header[name], **facts}}).encode()
    return struct.pack("<Q", len(text)) + text + tensors


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "a\\b", "", ".", "a//b", "x\n", "<b>", "./a"]
)
def test_a_record_names_no_file_outside(release: Path, name: str) -> None:
    record = json.loads((release / RELEASE).read_text())
    record["files"][name] = {"sha256": "00" * 32, "bytes": 3}
    (release / RELEASE).write_text(json.dumps(record | {"format": "leam_mm release 1", "own_sha256": None}))
    assert "files names" in faults(release)[RELEASE]


def test_damaged_records_are_one_fault(release: Path, tmp_path: Path) -> None:
    whole = (release / RELEASE).read_bytes()
    sized = whole.replace(b'"bytes": ', b'"bytes": -', 1)
    for content in (b"", b"[]", b"{}", whole[:-3], sized, whole.replace(b"own_sha256", b"own_sha255"), whole * 2):
        (release / RELEASE).write_bytes(content)
        assert list(faults(release)) == [RELEASE]
    (release / RELEASE).unlink()
    assert "no regular file" in faults(release)[RELEASE]
    with pytest.raises(UserError, match="is no folder"):
        verify_release(tmp_path / "nowhere")


def test_what_a_hub_adds_is_a_note(release: Path) -> None:
    (release / ".gitattributes").write_text("*.safetensors filter=lfs")
    (release / ".cache/huggingface").mkdir(parents=True)
    (release / ".cache/huggingface/x.metadata").write_text("x")
    found = verify_release(release)
    assert found.faults == [] and ".gitattributes" in found.notes[0]


def test_a_refreshed_deletion_list_is_named_and_keeps_the_release_valid(release: Path) -> None:
    for hashes in ("0" * 64, "0" * 64 + "\n" + "f" * 64):
        (release / "deletion_list.pdq").write_text(hashes + "\n")
        found = verify_release(release)
        assert found.faults == []
        assert found.notes[0].startswith(f"deletion_list.pdq: {len(hashes.split())} hashes, not part of the release")
        assert file_sha256(release / "deletion_list.pdq") in found.notes[0]
    (release / "deletion_list.pdq").write_text("not a hash\n")
    (fault,) = verify_release(release).faults
    assert fault.file == "deletion_list.pdq" and "hash" in fault.text
    (release / "deletion_list.pdq").unlink()
    (release / "deletion_list.pdq").symlink_to("/etc/hostname")
    assert [fault.file for fault in verify_release(release).faults] == ["deletion_list.pdq"]


def test_cached_digests_are_of_this_content(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache/digests.json"
    file.write_bytes(b"a" * 100)
    os.utime(file, ns=(1, 1))

    def digest() -> tuple[str, int]:
        found = DigestCache(cache, large=10)
        value = found.sha256(file)
        found.save()
        return value, found.hits

    import leam_mm.release.digest_cache as module

    first = digest()
    assert first[1] == 0 and digest()[1] == 0  # changed a moment ago: a second write could leave the times
    module.RECENT, before = -(10**12), module.RECENT
    try:
        assert digest() == (first[0], 0) and digest() == (first[0], 1)
        stat = file.stat()
        file.write_bytes(b"b" * 100)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time as before; the inode's own time is not
        changed = digest()
        assert changed[0] != first[0] and changed[1] == 0
        cache.write_text("{ broken")
        assert digest() == (changed[0], 0)
        assert DigestCache(None).sha256(file) == changed[0]
    finally:
        module.RECENT = before
    shutil.rmtree(tmp_path / "cache")


def test_stated_files_are_read_from_the_record(release: Path) -> None:
    stated = read_record(release).files["LICENSE"]
    assert isinstance(stated, StatedFile) and stated.bytes == (release / "LICENSE").stat().st_size
