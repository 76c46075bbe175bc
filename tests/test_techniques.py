"""The arithmetic of the benchmark `techniques`: intervals over seeds, equal seconds, and what they say."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from leam_mm.errors import UserError

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
from technique_run import Batches
from techniques import at_seconds, compare, same_work, spread, verdict


def end(frechet: float, right: list[bool], seconds: float = 10.0) -> dict[str, Any]:
    early = {"frechet": 2 * frechet, "colour": 0.0, "colour_right": [False] * len(right), "cpu_seconds": seconds / 2}
    late = {"frechet": frechet, "colour": sum(right) / len(right), "colour_right": right, "cpu_seconds": seconds}
    return {"curve": [early, late], "order": "a", "beginning": "b"}


def test_the_interval_is_students() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0 and found["high"] - 2.0 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert spread([1.0])["low"] is None


def test_verdicts_follow_the_interval_and_what_is_better() -> None:
    assert verdict(spread([-3.0, -3.1, -2.9]), -1) == "gain" and verdict(spread([-3.0, -3.1, -2.9]), 1) == "loss"
    assert "neither" in verdict(spread([-1.0, 1.0, 0.5]), 1) and "not shown" in verdict(spread([5.0]), 1)


def test_differences_are_between_equal_seeds_and_at_equal_seconds() -> None:
    plain = {1: end(100.0, [True, False, False, False]), 2: end(80.0, [True, True, False, False])}
    other = {1: end(90.0, [True, True, False, False], 20.0), 2: end(70.0, [True, True, True, False], 20.0)}
    found = {"plain": plain, "other": other}
    distance, colour = compare(found, "other", "frechet"), compare(found, "other", "colour")
    assert distance["at_equal_samples"]["values"] == [-10.0, -10.0] and distance["verdict"] == "gain"
    # After 10 s the slower arm is at its first look.
    assert distance["at_equal_seconds"]["values"] == [180.0 - 100.0, 140.0 - 80.0]
    assert colour["at_equal_samples"]["values"] == [0.25, 0.25] and colour["over_pictures"]["pictures"] == 4
    assert at_seconds(other[1]["curve"], "frechet", 15.0) == 135.0


def test_arms_that_saw_other_samples_are_no_comparison() -> None:
    found = {"plain": {1: end(1.0, [True])}, "other": {1: end(1.0, [True]) | {"order": "c"}}}
    with pytest.raises(UserError, match="samples and captions"):
        same_work(found)


def test_batches_of_a_seed_are_the_same_and_walk_over_all(tmp_path: Path) -> None:
    length = torch.tensor([[2, 3]] * 6)
    parts = {"latent": torch.arange(6.0)[:, None], "image_feature": torch.zeros(6, 1, 1)}
    parts |= {"prompt": torch.ones(6, 2, 5, dtype=torch.int64), "prompt_length": length + 1}
    torch.save({**parts, "caption_state": torch.zeros(6, 2, 3, 1), "caption_length": length}, tmp_path / "data.pt")
    one, two, other = (Batches(tmp_path / "data.pt", seed, 4) for seed in (1, 1, 2))
    latents = torch.cat([one.next()["latent"] for _ in range(3)])
    assert torch.equal(latents, torch.cat([two.next()["latent"] for _ in range(3)]))
    assert sorted(latents[:6, 0].tolist()) == sorted(latents[6:, 0].tolist()) == list(range(6))
    for _ in range(3):
        batch = other.next()
    assert one.digest.hexdigest() == two.digest.hexdigest() != other.digest.hexdigest()
    assert batch["sample_index"].tolist() == [8, 9, 10, 11]
    assert batch["caption_state"].shape[1] == int(batch["caption_length"].max())
    assert batch["prompt"].shape == (4, int(batch["prompt_length"].max()))
