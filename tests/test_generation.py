"""Generation: a perfect generator scores like real images, a constant one does not; grids and prompts."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from toys.images import encoded_image

from leam_mm.data.shard_index import ShardWriter
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.evaluators.generated_images import generate
from leam_mm.evaluators.generation import Generation, PromptGrid, choose_prompts
from leam_mm.evaluators.image_features import ImageFeatures


class MeanColour(ImageFeatures):
    """Three features: the mean of each channel."""

    protocol = "mean colour"

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().mean(dim=(2, 3))


class Generator:
    """Generates the colour that the prompt names as r,g,b; or grey."""

    def __init__(self, obedient: bool = True) -> None:
        self.obedient, self.calls = obedient, []

    def sample(self, prompts: list[str], seed: int, steps: int, guidance: float, first_index: int) -> torch.Tensor:
        self.calls.append((first_index, len(prompts)))
        values = [[int(part) for part in prompt.split(":")[1].split(",")] for prompt in prompts]
        colour = torch.tensor(values) / 255 if self.obedient else torch.full((len(prompts), 3), 0.5)
        return colour[:, :, None, None].expand(-1, -1, 8, 8)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(tmp_path / "s", 50) as writer:
        for number in range(240):
            colour = torch.randint(0, 256, (3,), generator=generator).tolist()
            image = encoded_image(Image.new("RGB", (8, 8), tuple(colour)))
            text = ",".join(map(str, colour))
            captions = [{"text": f"{code}:{text}", "language": code} for code in ("en", "de")]
            record = json.dumps({"captions": captions}).encode()
            writer.write(f"{number:03d}", {"png": image, "json": record})
    return tmp_path / "s"


def measure(shards: Path, generator: Generator, **settings: int) -> dict[str, Metric]:
    evaluator = Generation(shards, shards, MeanColour(), samples=120, batch_size=50, languages=["en", "de"], **settings)
    context = EvaluationContext(None, generator, shards.parent / "out")
    return {metric.name: metric for metric in evaluator.run(context)}


def test_perfect_generator_scores_like_real_images(shards: Path) -> None:
    generator = Generator()
    good = measure(shards, generator)
    assert generator.calls == [(0, 50), (50, 50), (100, 20)]
    bad = measure(shards, Generator(obedient=False))
    floor = good["generation/frechet_distance/real"].value
    for metrics in (good, bad):
        assert metrics["generation/frechet_distance/real"].value == floor
        assert {metric.samples for metric in metrics.values()} == {120}
    assert floor is not None
    assert good["generation/frechet_distance/generated"].value < 3 * floor
    assert bad["generation/frechet_distance/generated"].value > 10 * floor
    assert bad["generation/kernel_distance/generated"].value > good["generation/kernel_distance/generated"].value
    assert good["generation/recall/generated"].value > 0.6
    assert bad["generation/recall/generated"].value < 0.1
    assert bad["generation/coverage/generated"].value < 0.1 < good["generation/coverage/generated"].value
    assert bad["generation/mind/generated"].value > 10 * good["generation/mind/real"].value
    assert good["generation/density/real"].value == pytest.approx(1, abs=0.3)
    for metric in good.values():
        assert metric.low <= metric.value <= metric.high
        assert "mean colour" in metric.note
    assert "indicative" not in good["generation/frechet_distance/generated"].note
    shown = json.loads((shards.parent / "out" / "generated.json").read_text())["images"]
    assert len(shown) == 36 and {entry["language"] for entry in shown} == {"de", "en"}
    assert all(entry["text"].startswith(f"{entry['language']}:") for entry in shown)


class Wide(MeanColour):
    """96 features."""

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().flatten(1)[:, ::2]


def test_few_images_are_marked_indicative(shards: Path) -> None:
    context = EvaluationContext(None, Generator(), shards.parent / "out")
    metrics = Generation(shards, shards, Wide(), samples=110).run(context)
    assert "indicative only: 110 images" in metrics[0].note and "indicative" not in metrics[1].note
    with pytest.raises(UserError, match="no sample has a caption in mt"):
        Generation(shards, shards, Wide(), samples=20, languages=["mt"]).run(context)


def test_numbers_that_need_more_images_are_not_measured(shards: Path, tmp_path: Path) -> None:
    generator = Generator()
    context = EvaluationContext(None, generator, tmp_path / "out")
    few = {metric.name: metric for metric in Generation(shards, shards, MeanColour(), samples=24).run(context)}
    assert set(few) == {
        "generation/frechet_distance/generated",
        "generation/kernel_distance/generated",
        "generation/kernel_distance/real",
    }
    missing = few["generation/frechet_distance/generated"]
    assert missing.value is None and missing.low is None and missing.samples == 24
    assert missing.note.startswith("all but the kernel distance are not measured: 24 images in each set")
    assert few["generation/kernel_distance/generated"].value is not None
    generator.calls.clear()
    (nothing,) = Generation(shards, shards, MeanColour(), samples=2).run(context)
    assert nothing.value is None and "2 images in each set, at least 8 are needed" in nothing.note
    assert not generator.calls  # and no image is generated for it


def test_prompt_grid_writes_images_with_their_texts(tmp_path: Path) -> None:
    prompts = [
        {"language": code, "text": f"{code}:{colour}", "objects": [{"colour": colour}]}
        for colour in ("255,0,0", "0,0,255", "0,255,0")
        for code in ("de", "en")
        if (colour, code) != ("255,0,0", "de")
    ]
    (tmp_path / "p.json").write_text(json.dumps({"prompts": prompts}))
    grid = PromptGrid(tmp_path / "p.json", languages=["en", "de"], per_language=2)
    metrics = grid.run(EvaluationContext(None, Generator(), tmp_path / "out"))
    assert metrics[0].value == 4
    content = json.loads((tmp_path / "out" / "prompts.json").read_text())
    assert content["languages"] == ["en", "de"]
    for entry in content["pictures"]:
        pixel = Image.open(tmp_path / "out" / entry["image"]).getpixel((0, 0))
        assert entry["text"] == entry["language"] + ":" + ",".join(map(str, pixel))
    assert {entry["row"] for entry in content["pictures"]} == {0, 1}
    assert (tmp_path / "out" / "prompts.png").is_file()
    assert not list((tmp_path / "out").glob("*.tmp-*"))


def test_choose_prompts_prefers_concepts_that_all_languages_have(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"prompts": [{"language": "en", "text": "a"}, {"language": "de", "text": "b"}]}')
    assert choose_prompts(path, None, 5) == (["de", "en"], [{"en": "a"}, {"de": "b"}])
    names = {"a": ["x"], "b": ["y"], "c": ["z"]}
    languages = {"en": {"templates": ["{}!", "{}"], "names": names}, "mt": {"templates": ["{}"], "names": {"b": ["w"]}}}
    path.write_text(json.dumps({"classes": ["a", "b", "c"], "languages": languages}))
    assert choose_prompts(path, None, 1) == (["en", "mt"], [{"en": "y!", "mt": "w"}])
    assert choose_prompts(path, ["en"], 2) == (["en"], [{"en": "x!"}, {"en": "y!"}])
    for content in ("", "[]", '{"prompts": [3]}'):
        path.write_text(content)
        with pytest.raises(UserError, match="not a file of prompts"):
            choose_prompts(path, None, 1)
    path.write_text('{"prompts": []}')
    with pytest.raises(UserError, match="has no prompt in mt"):
        choose_prompts(path, ["mt"], 1)
    with pytest.raises(UserError, match="cannot be read"):
        choose_prompts(tmp_path / "missing.json", None, 1)


def test_pixels_are_rounded_and_nan_is_refused() -> None:
    class Fixed:
        def __init__(self, value: float) -> None:
            self.value = value

        def sample(self, prompts: list[str], **settings: float) -> torch.Tensor:
            return torch.full((1, 3, 1, 1), self.value)

    assert generate(Fixed(254.6 / 255), ["a"], SamplerSettings(1, 1.0), 0).unique().tolist() == [255]
    assert generate(Fixed(1.7), ["a"], SamplerSettings(1, 1.0), 0).unique().tolist() == [255]
    with pytest.raises(UserError, match="not finite"):
        generate(Fixed(float("nan")), ["a"], SamplerSettings(1, 1.0), 0)
