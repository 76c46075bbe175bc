import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys.command_line import array_of, encode_latents
from toys.shards import write_toy_shards

from data_tools import encode_latents as program
from data_tools.latents.latent_encoder import choose_captions, trained_image_size
from data_tools.samples.shard_check import check_folder
from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.captions.caption_encoders import open_caption_encoder
from leam_mm.checkpoint import load_module
from leam_mm.codecs.latent_codec import DCCodec
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.latents_module import LatentDecoding, LatentsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.shard_index import ShardFolder, ShardWriter, read_samples
from leam_mm.errors import UserError


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_checkpoints: dict[str, Path]) -> Path:
    output = tmp_path_factory.mktemp("encoded") / "latents"
    said = encode_latents(toy_shards, toy_checkpoints, output)
    assert "96 samples will take about" in said and "wrote 96 samples" in said
    return output


def test_samples_keep_their_order_and_their_record(encoded: Path, toy_shards: Path) -> None:
    pairs = list(zip(read_samples(toy_shards), read_samples(encoded), strict=True))
    assert len(pairs) == 96
    for (key, original), (same_key, members) in pairs:
        record, before = json.loads(members["json"]), json.loads(original["json"])
        assert key == same_key
        assert {name: record[name] for name in before} == before
        assert record["latent"]["downscale"] == 4 and len(record["latent"]["codec_sha256"]) == 64
    assert [entry.samples for entry in ShardFolder(encoded).shards] == [20, 20, 20, 20, 16]


def first_batches(folder: Path) -> Any:
    made = LatentsModule(folder, 24, loading=Loading(0))
    made.setup("fit")
    return made.train_dataloader()


def test_captions_can_be_stored_as_texts_only(
    encoded: Path, tmp_path: Path, toy_shards: Path, toy_checkpoints: dict[str, Path]
) -> None:
    output, codec = tmp_path / "latents", {"codec": toy_checkpoints["codec"]}
    said = encode_latents(toy_shards, codec, output, "--texts-only", "--verify", "8")
    assert "read back 96 samples" in said and "caption states 0.0" in said
    for (_, members), (_, others) in zip(read_samples(output), read_samples(encoded), strict=True):
        assert members.keys() == {"json", "latent.npy"} and members["latent.npy"] == others["latent.npy"]
        texts, with_states = (json.loads(one["json"])["caption_states"] for one in (members, others))
        assert texts == [{key: value for key, value in one.items() if key != "length"} for one in with_states]
    assert not check_folder(output)[1].faults
    batches = [next(iter(first_batches(folder))) for folder in (output, encoded)]
    assert batches[0].keys() == batches[1].keys() - {"caption_state", "caption_length"}
    assert batches[0]["caption"] == batches[1]["caption"]
    # The frozen encoder reads the texts of a batch as it wrote the states.
    encoder = open_caption_encoder(toy_checkpoints["clip"], 128)
    for row, text in enumerate(batches[0]["caption"]):
        state, mask = encoder.encode([text])
        length = int(batches[1]["caption_length"][row])
        assert int(mask.sum()) == length
        torch.testing.assert_close(state[0, :length], batches[1]["caption_state"][row, :length], rtol=2e-3, atol=2e-3)


def test_states_and_texts_only_do_not_mix(encoded: Path, tmp_path: Path, toy_shards: Path) -> None:
    with pytest.raises(UserError, match="--texts-only stores no caption states: give it without --clip"):
        program.parse(["--shards", "s", "--codec", "c", "--output", "o", "--texts-only", "--clip", "run"])
    decode = LatentDecoding(0)
    key, members = next(read_samples(encoded))
    record = json.loads(members["json"])
    record["caption_states"] = [{k: v for k, v in one.items() if k != "length"} for one in record["caption_states"]]
    texts = {"json": json.dumps(record).encode(), "latent.npy": members["latent.npy"]}
    with pytest.raises(UserError, match="only some with --features or --texts-only"):
        decode.collate([decode(key, members, 0), decode(key, texts, 1)])
    with pytest.raises(UserError, match="caption_states has the length"):  # states without lengths are damage
        decode(key, {**members, "json": texts["json"]}, 0)


def test_latents_have_unit_variance_over_the_data_set(encoded: Path) -> None:
    latents = np.stack([array_of(members, "latent.npy") for _, members in read_samples(encoded)])
    assert latents.shape == (96, 4, 4, 4) and latents.dtype == np.float16
    assert np.isclose(np.square(latents.astype(np.float64)).mean(), 1, rtol=2e-3)
    statistics = json.loads((encoded / "codec_statistics.json").read_text())
    raw = latents.astype(np.float64) / statistics["scale"] + statistics["shift"]
    np.testing.assert_allclose(raw.mean((0, 2, 3)), statistics["mean"], rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(raw.std((0, 2, 3)), statistics["std"], rtol=1e-2)
    assert statistics["count"] == 96 * 16 and statistics["shift"] == 0


def test_tiles_are_those_of_the_codec_and_part_of_the_settings(
    encoded: Path, tmp_path: Path, toy_shards: Path, toy_checkpoints: dict[str, Path]
) -> None:
    output = tmp_path / "latents"
    given = ("--image-size", "32", "--tile", "16", "--statistics", str(encoded))
    encode_latents(toy_shards, toy_checkpoints, output, *given)
    codec = load_codec(toy_checkpoints["codec"])
    codec.load_statistics(encoded)
    _, original = next(read_samples(toy_shards))
    pixels = ImageDecoding(32)(original["png"], np.random.default_rng(0))[None].float() / 127.5 - 1
    stored = array_of(next(read_samples(output))[1], "latent.npy")
    with torch.no_grad():
        whole = codec.encode(pixels)[0].numpy()
        codec.set_tile(16)
        tiled = codec.encode(pixels)[0].numpy()
    np.testing.assert_allclose(stored, tiled, rtol=2e-3, atol=2e-3)
    assert np.abs(tiled - whole).max() > 0.02
    with pytest.raises(UserError, match="written with other data or settings"):
        encode_latents(toy_shards, toy_checkpoints, output, *given[:2], *given[4:])
    settings = json.loads((output / "encoding.json").read_text())
    assert settings.pop("tile") == 16
    (output / "encoding.json").write_text(json.dumps(settings))  # as folders of before the tiles have it
    encode_latents(toy_shards, toy_checkpoints, output, *given[:2], *given[4:])


def test_latents_are_those_of_the_codec_with_the_stored_statistics(
    encoded: Path, toy_shards: Path, toy_checkpoints: dict[str, Path]
) -> None:
    codec, size = load_codec(toy_checkpoints["codec"]), trained_image_size(toy_checkpoints["codec"])
    codec.load_statistics(encoded)
    assert size == 16
    _, original = next(read_samples(toy_shards))
    _, members = next(read_samples(encoded))
    pixels = ImageDecoding(16)(original["png"], np.random.default_rng(0))[None]
    with torch.no_grad():
        expected = codec.encode(pixels.float() / 127.5 - 1)[0].numpy()
    np.testing.assert_allclose(array_of(members, "latent.npy"), expected, rtol=2e-3, atol=2e-3)


def test_caption_states_are_those_of_the_encoder_and_end_with_the_caption(
    encoded: Path, toy_checkpoints: dict[str, Path]
) -> None:
    captions = CaptionEncoder.from_module(load_module(toy_checkpoints["clip"], ContrastiveModule))
    for _, members in list(read_samples(encoded))[:3]:
        entries, states = json.loads(members["json"])["caption_states"], array_of(members, "caption_state.npy")
        lengths = [entry["length"] for entry in entries]
        assert states.dtype == np.float16 and states.shape[:2] == (len(entries), max(lengths))
        expected, _ = captions.encode([entry["text"] for entry in entries])
        for entry, stored, state in zip(entries, states, expected.numpy(), strict=True):
            length = entry["length"]
            np.testing.assert_allclose(stored[:length], state[:length], rtol=2e-3, atol=2e-3)
            assert not stored[length:].any() and stored[:length].any()


def test_same_command_writes_the_same_bytes_or_nothing(
    encoded: Path, toy_shards: Path, toy_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    encode_latents(toy_shards, toy_checkpoints, tmp_path / "again")
    assert ShardFolder(tmp_path / "again").merkle_root == ShardFolder(encoded).merkle_root
    assert "nothing to do" in encode_latents(toy_shards, toy_checkpoints, tmp_path / "again")


def test_interrupted_run_resumes_and_ends_equal(
    encoded: Path, toy_shards: Path, toy_checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ShardWriter.write
    done: list[str] = []

    def stop_at_50(self: ShardWriter, key: str, members: dict[str, bytes]) -> None:
        if len(done) == 50:
            raise KeyboardInterrupt
        done.append(key)
        write(self, key, members)

    output = tmp_path / "latents"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "write", stop_at_50)
        encode_latents(toy_shards, toy_checkpoints, output)
    assert not output.exists()
    with pytest.raises(UserError, match="other data or settings"):
        encode_latents(toy_shards, toy_checkpoints, output, "--seed", "1")
    assert "continuing after 40 samples" in encode_latents(toy_shards, toy_checkpoints, output)
    assert ShardFolder(output).merkle_root == ShardFolder(encoded).merkle_root
    assert not list(tmp_path.glob("*.partial"))


def test_captions_are_spread_over_languages_and_drawn_from_seed_and_key() -> None:
    captions = [{"text": f"{language}{i}", "language": language} for language in ("de", "en", "fi") for i in range(3)]
    for key in map(str, range(20)):
        chosen = choose_captions(captions, 3, 0, key)
        assert {caption["language"] for caption in chosen} == {"de", "en", "fi"}
        assert chosen == choose_captions(captions, 3, 0, key)
    everything = choose_captions(captions, 99, 0, "a")
    assert sorted(caption["text"] for caption in everything) == sorted(caption["text"] for caption in captions)
    first = {choose_captions(captions, 1, 0, str(key))[0]["text"] for key in range(200)}
    assert len(first) == 9
    orders = {choose_captions(captions, 1, seed, "a")[0]["text"] for seed in range(50)}
    assert len(orders) > 1
    only = choose_captions(captions, 99, 0, "a", [captions[0]["language"]])
    assert {caption["language"] for caption in only} == {captions[0]["language"]}
    # A sample without any of the languages keeps the captions it has, as in training.
    assert choose_captions(captions, 99, 0, "a", ["xx"]) == everything


def test_held_out_shards_take_the_statistics_of_training(
    encoded: Path, toy_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    held_out = write_toy_shards(tmp_path / "shards", samples=8, first=96)
    encode_latents(held_out, toy_checkpoints, tmp_path / "latents", "--statistics", str(encoded))
    names = [folder / "codec_statistics.json" for folder in (encoded, tmp_path / "latents")]
    assert json.loads(names[0].read_text()) == json.loads(names[1].read_text())
    with pytest.raises(UserError, match="other data or settings"):
        encode_latents(held_out, toy_checkpoints, tmp_path / "latents")
    with pytest.raises(UserError, match="names no codec_statistics"):
        encode_latents(held_out, toy_checkpoints, tmp_path / "other", "--statistics", str(held_out))


def test_diffusers_folder_as_codec(toy_shards: Path, toy_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    DCCodec(latent_channels=4, widths=[8, 8, 16], layers=[0, 1, 1]).save(tmp_path / "vae")
    given = {**toy_checkpoints, "codec": tmp_path / "vae"}
    with pytest.raises(UserError, match="give --image-size"):
        encode_latents(toy_shards, given, tmp_path / "latents")
    encode_latents(toy_shards, given, tmp_path / "latents", "--image-size", "8", "--captions-per-sample", "1")
    _, members = next(read_samples(tmp_path / "latents"))
    assert array_of(members, "latent.npy").shape == (4, 2, 2) and len(array_of(members, "caption_state.npy")) == 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--image-size", "18"], "multiple of 4"),
        (["--captions-per-sample", "0"], "at least 1"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_wrong_settings_are_refused(
    more: list[str], reason: str, toy_shards: Path, toy_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    if "cuda" in more and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match=reason):
        encode_latents(toy_shards, toy_checkpoints, tmp_path / "latents", *more)
    assert not list(tmp_path.iterdir())


def test_swapped_checkpoints_are_refused(toy_shards: Path, toy_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LatentCodecModule is needed"):
        encode_latents(
            toy_shards, {"codec": toy_checkpoints["clip"], "clip": toy_checkpoints["clip"]}, tmp_path / "latents"
        )


def test_damaged_samples_are_named(toy_checkpoints: dict[str, Path], toy_shards: Path, tmp_path: Path) -> None:
    _, members = next(read_samples(toy_shards))
    for name, broken, reason in [
        ("picture", {**members, "png": b"no image"}, "no sample can be read, the first: sample 7: unreadable"),
        ("json", {**members, "json": b'{"captions": []}'}, "sample 7: its json has no usable captions"),
    ]:
        with ShardWriter(tmp_path / name, 1) as writer:
            writer.write("7", broken)
        with pytest.raises(UserError, match=reason):
            encode_latents(tmp_path / name, toy_checkpoints, tmp_path / "latents")
        assert not (tmp_path / "latents").exists()
        shutil.rmtree(tmp_path / "latents.partial", ignore_errors=True)


@pytest.mark.slow
def test_program_ends_with_one_line(tmp_path: Path) -> None:
    root = Path(program.__file__).parents[1]
    command = [sys.executable, "data_tools/encode_latents.py", "--shards", str(tmp_path), "--codec", str(tmp_path)]
    done = subprocess.run(
        [*command, "--clip", str(tmp_path), "--output", str(tmp_path / "out")],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: no checkpoint at")
