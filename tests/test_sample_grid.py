import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leam_mm.callbacks.sample_grid import SampleGrid
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.image_grid import draw_grid, label_font, read_prompts, save_image, spread, wrap


class Painter:
    """A module that paints each prompt in one colour."""

    def sample(self, prompts: list[str], seed: int, steps: int, guidance: float) -> torch.Tensor:
        self.asked = (prompts, seed, steps, guidance)
        return torch.linspace(0, 1, len(prompts)).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_pictures_keep_their_pixels_and_order() -> None:
    images = torch.rand(5, 3, 4, 6)
    grid = np.asarray(draw_grid(images, list("abcde"), columns=2, scale=3))
    exact = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).repeat_interleave(3, 1).repeat_interleave(3, 2)
    cell_width, cell_height = 6 * 3 + 6, 4 * 3 + 3 * 14 + 6
    assert grid.shape == (3 * cell_height + 6, 2 * cell_width + 6, 3)
    for place in range(5):
        top, left = 6 + place // 2 * cell_height, 6 + place % 2 * cell_width
        assert np.array_equal(grid[top : top + 12, left : left + 18], exact[place].numpy())


def test_whole_numbers_and_broken_pictures_are_drawn() -> None:
    whole = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8)
    assert (np.asarray(draw_grid(whole, ["x"], 4, 1))[6:10, 6:10] == 200).all()
    broken = torch.full((1, 3, 4, 4), float("nan"))
    assert (np.asarray(draw_grid(broken, ["x"], 4, 1))[6:10, 6:10] == 0).all()
    with pytest.raises(ValueError, match="2 labels"):
        draw_grid(broken, ["x", "y"], 4, 1)


@pytest.mark.parametrize("text", ["ένας κόκκινος κύκλος", "червен кръг", "żewġ ċrieki ħomor", "raudonų žiedų į ūkį"])
def test_the_font_has_the_letters_of_all_languages(text: str) -> None:
    missing = bytes(label_font().getmask("\U0010fffe"))
    for letter in set(text) - {" "}:
        assert bytes(label_font().getmask(letter)) != missing, letter


def test_labels_fit_their_width() -> None:
    lines = wrap("ein sehr langer Satz über viele Dinge " * 4 + "Donaudampfschifffahrtsgesellschaft", 90)
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert all(label_font().getlength(line) <= 90 for line in lines)
    assert wrap("Donaudampfschifffahrtsgesellschaft", 60)[0].endswith("…")
    assert wrap("kurz", 90) == ["kurz"]


def test_prompts_from_every_form(tmp_path: Path) -> None:
    texts = ["ein Kreis", "δύο κύκλοι"]
    forms = {
        "a.json": texts,
        "b.json": [{"text": t} for t in texts],
        "c.json": {"prompts": [{"text": t} for t in texts]},
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        assert read_prompts(tmp_path / name) == texts
    (tmp_path / "d.txt").write_text("\n".join([*texts, ""]), encoding="utf-8")
    assert read_prompts(tmp_path / "d.txt") == read_prompts(texts) == texts
    (tmp_path / "e.json").write_text('{"prompts": 3}')
    for bad in (tmp_path / "e.json", tmp_path / "none.json", [" "], [3]):
        with pytest.raises(UserError, match="prompts in"):
            read_prompts(bad)  # type: ignore[arg-type]


def test_spread_is_even() -> None:
    assert spread([str(n) for n in range(24)], 4) == ["0", "6", "12", "18"]
    assert spread(["a", "b"], 16) == ["a", "b"]


def test_a_grid_every_n_optimizer_steps_and_once(tmp_path: Path) -> None:
    callback = SampleGrid(
        [f"prompt {n}" for n in range(6)], every_n_steps=2, count=3, sampling=SamplerSettings(5, 2.0), seed=7
    )
    painter: Any = Painter()
    trainer: Any = SimpleNamespace(global_step=0, is_global_zero=True, default_root_dir=str(tmp_path), loggers=[])
    callback.on_fit_start(trainer, painter)
    for step in (0, 1, 2, 2, 3, 4):  # 2 stands twice: two micro-batches of one optimizer step
        trainer.global_step = step
        callback.on_train_batch_end(trainer, painter, None, None, 0)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]
    assert painter.asked == (["prompt 0", "prompt 2", "prompt 4"], 7, 5, 2.0)
    with pytest.raises(UserError, match="generates no images"):
        callback.on_fit_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 1"):
        SampleGrid(["a"], every_n_steps=0)


def test_a_saved_picture_leaves_nothing_beside_it(tmp_path: Path) -> None:
    save_image(Image.new("RGB", (2, 3), "red"), tmp_path / "new" / "grid.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]
    assert Image.open(tmp_path / "new" / "grid.png").size == (2, 3)
