"""What a run needs of data: rates, cores, bandwidth, bytes and files; and the lines of a plan."""

import io
from pathlib import Path

import numpy as np
import pytest

from leam_mm.data.tar_members import tar_member as real_member
from leam_mm.planning.__main__ import main
from leam_mm.planning.data_needs import (
    checkpoint_bytes,
    data_needs,
    image_sample_bytes,
    latent_sample_bytes,
    recipe_sample_bytes,
    tar_member,
)
from leam_mm.planning.recipe_file import read_recipe

CONFIGS = Path(__file__).parent.parent / "configs"


def test_rates_and_sizes_are_products() -> None:
    needs = data_needs(3.6e9, 100.0, 4, 50_000, 4e8, 1e9, decode_rate=250.0)
    assert needs.samples_per_second == 10_000
    assert (needs.cores, needs.cores_per_node) == (40, 10)
    assert needs.read_bytes_per_second == 10_000 * 50_000
    assert needs.dataset_bytes == 4e8 * 50_000
    assert needs.dataset_files == 2 * 40_000 + 1
    assert needs.checkpoints_bytes == 3e9


def test_twice_the_time_halves_rate_and_cores_but_no_size() -> None:
    short, long = (data_needs(1e9, hours, 2, 1e5, 1e8, 1e9) for hours in (10.0, 20.0))
    assert short.samples_per_second == 2 * long.samples_per_second and short.cores == 2 * long.cores
    assert short.dataset_bytes == long.dataset_bytes


def test_latents_need_no_decoding() -> None:
    needs = data_needs(1e9, 10.0, 2, 1e5, 1e8, 1e9, decode_rate=None)
    assert needs.cores == 0 and "no decoding" in needs.report()[0]


def test_members_take_what_real_tars_take() -> None:
    for size in (0, 1, 511, 512, 513, 60_000):
        assert tar_member(size) == len(real_member("a.jpg", bytes(size)))
    latent, state = io.BytesIO(), io.BytesIO()
    np.save(latent, np.zeros((16, 32, 32), np.float16))
    np.save(state, np.zeros((64, 512), np.float16))
    stored = sum(len(real_member("a.npy", one.getvalue())) for one in (latent, state))
    assert latent_sample_bytes(16, 32, 64, 512) == stored + tar_member(600)


def test_recipes_say_which_samples_they_read() -> None:
    size, latents = recipe_sample_bytes(read_recipe([CONFIGS / "generator_8gpu.yaml"]), 64)
    assert latents and size == latent_sample_bytes(16, 32, 64, 512)
    assert recipe_sample_bytes(read_recipe([CONFIGS / "clip_vit_b32.yaml"]), 64) == (image_sample_bytes(), False)


def test_checkpoint_of_the_largest_recipe_is_as_large_as_its_header_says() -> None:
    assert checkpoint_bytes(6_978_623_552, 6_978_623_552, 1, 8) == pytest.approx(110e9, rel=0.02)


def test_plan_prints_memory_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", str(CONFIGS / "clip_vit_b32.yaml"), "--cluster", "juwels_booster", "--nodes", "32",
          "--dataset-samples", "400000000", "--image-bytes", "30000"])  # fmt: skip
    text = capsys.readouterr().out
    assert "memory of a device (an estimate)" in text and "largest micro-batch as it is: 256" in text
    assert "cores to decode" in text and "80,001 files" in text and "--dataset-samples" not in text
    main(["plan", str(CONFIGS / "scenes_generator.yaml"), "--cluster", "cpu"])
    text = capsys.readouterr().out
    assert "memory of a device: not known" in text and "data: not known" in text
