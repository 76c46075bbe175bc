"""Reconstruction: scores in closed form, a perfect codec and a poor one, ranks, and the ways a codec comes in."""

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from PIL import Image
from toys.ranks import process_group

import evaluate
from leam_mm.callbacks.evaluate_every import EvaluateEvery
from leam_mm.codec_module import LatentCodecModule
from leam_mm.codecs.latent_codec import DCCodec, KLCodec
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.data.shard_index import ShardWriter
from leam_mm.distances.frechet import frechet_distance_of_features
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.evaluators.image_features import ImageFeatures
from leam_mm.evaluators.reconstruction import EXACT, WINDOW, Reconstruction, image_scores, reconstruct

SIZE, COUNT = 16, 29


class Quadrants(ImageFeatures):
    """Twelve features: the mean of each channel in each quarter of the picture."""

    protocol = "quadrants"

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1).cpu()


class Rigged:
    """Takes the place of a codec: gives pictures back with a constant error; latents are the pictures."""

    def __init__(self, error: float) -> None:
        self.error, self.tiles = error, []  # type: ignore[var-annotated]

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent + self.error).clamp(-1, 1)

    def set_tile(self, tile: int | None) -> None:
        self.tiles.append(tile)


def pictures(count: int = COUNT) -> torch.Tensor:
    return torch.randint(40, 200, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reconstruction") / "shards"
    with ShardWriter(folder, 10) as writer:
        for number, picture in enumerate(pictures()):
            buffer = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
            writer.write(f"{number:03d}", {"png": buffer.getvalue(), "json": json.dumps({"captions": []}).encode()})
    return folder


def measure(shards: Path, codec: Any, output: Path, **settings: Any) -> dict[str, Metric]:
    evaluator = Reconstruction(shards, SIZE, Quadrants(), **({"batch_size": 8} | settings))
    context = EvaluationContext(None, None, output, codec=codec)
    return {metric.name.removeprefix("reconstruction/"): metric for metric in evaluator.run(context)}


def codec(kind: type = KLCodec, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if kind is DCCodec:
        return DCCodec(latent_channels=4, widths=[8, 8, 8], layers=[0, 1, 1]).eval()
    return KLCodec(latent_channels=4, widths=[8, 8, 8], layers=1, norm_groups=4).eval()


def windowed(first: numpy.ndarray, second: numpy.ndarray) -> float:
    """Structural similarity of two channels by its definition, window by window (eq. 13 to 17 of the paper)."""
    distance = numpy.arange(WINDOW) - WINDOW // 2
    weight = numpy.exp(-(distance**2) / (2 * 1.5**2))
    weight = numpy.outer(weight, weight) / weight.sum() ** 2
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for top in range(first.shape[0] - WINDOW + 1):
        for left in range(first.shape[1] - WINDOW + 1):
            x, y = (part[top : top + WINDOW, left : left + WINDOW] for part in (first, second))
            mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
            var_x, var_y = (weight * (x - mean_x) ** 2).sum(), (weight * (y - mean_y) ** 2).sum()
            both = (weight * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            found.append(luminance * (2 * both + c2) / (var_x + var_y + c2))
    return float(numpy.mean(found))


def test_structural_similarity_is_its_definition() -> None:
    first = pictures(3)
    second = (first.float() + 30 * torch.randn(first.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255)
    _, similarity, _ = image_scores(second.to(torch.uint8), first)
    for number in range(3):
        channels = zip(first[number].double().numpy(), second[number].to(torch.uint8).double().numpy(), strict=True)
        expected = numpy.mean([windowed(a, b) for a, b in channels])
        assert similarity[number].item() == pytest.approx(expected, rel=1e-9)


def test_scores_of_flat_images_in_closed_form() -> None:
    black, grey = torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.full((1, 3, 16, 16), 51, dtype=torch.uint8)
    ratio, similarity, error = image_scores(grey, black)
    c1 = (0.01 * 255) ** 2
    assert ratio.item() == pytest.approx(20 * math.log10(5), rel=1e-12)
    assert similarity.item() == pytest.approx(c1 / (51**2 + c1), rel=1e-9)
    assert error.item() == pytest.approx(0.2, rel=1e-12)
    assert [score.item() for score in image_scores(grey, grey)] == pytest.approx([EXACT, 1.0, 0.0], abs=1e-12)


def test_perfect_codec_and_constant_error_in_closed_form(shards: Path, tmp_path: Path) -> None:
    perfect = measure(shards, Rigged(0.0), tmp_path)
    assert [perfect[name].value for name in ("frechet_distance", "psnr", "ssim", "l1")] == pytest.approx(
        [0, EXACT, 1, 0], abs=1e-6
    )
    assert "29 of them without any error count 100 dB" in perfect["psnr"].note
    rigged = Rigged(20 / 127.5)  # twenty steps of 255, far from black and white
    found = measure(shards, rigged, tmp_path, tile=64)
    # Features move by 20 each and their spread stays: the distance is 12 times 20 squared.
    assert found["frechet_distance"].value == pytest.approx(12 * 400, rel=1e-9)
    assert found["psnr"].value == pytest.approx(20 * math.log10(255 / 20), rel=1e-9)
    assert found["psnr"].low == pytest.approx(found["psnr"].high)
    assert found["l1"].value == pytest.approx(20 / 255, rel=1e-9)
    assert rigged.tiles == [64, None] and "tiles of 64" in found["l1"].note
    assert {metric.samples for metric in found.values()} == {COUNT}
    shown = json.loads((tmp_path / "reconstructions.json").read_text())["images"]
    assert [entry["label"] for entry in shown[:2]] == ["image", "codec, 22.1 dB"]
    with Image.open(tmp_path / shown[0]["image"]) as image:
        assert image.size == (SIZE, SIZE) and "DigitalSourceType" not in image.info


def test_numbers_are_those_of_a_direct_computation(shards: Path, tmp_path: Path) -> None:
    own = codec()
    found = measure(shards, own, tmp_path)
    # In the evaluator's batches: other batch sizes may differ in last digits, and so in pixels after rounding.
    made = torch.cat([reconstruct(own, part) for part in pictures().split(8)])
    scores = image_scores(made, pictures())
    for name, values in zip(("psnr", "ssim", "l1"), scores, strict=True):
        metric = found[name]
        assert metric.value == pytest.approx(values.mean().item(), rel=1e-9)
        assert metric.low < metric.value < metric.high  # type: ignore[operator]
    features = Quadrants()
    distance = frechet_distance_of_features(features.extract(pictures()), features.extract(made))
    assert found["frechet_distance"].value == pytest.approx(distance, rel=1e-9)
    assert found["frechet_distance"].low < distance < found["frechet_distance"].high  # type: ignore[operator]


def one_rank(rank: int, world: int, shards: Path, folder: Path) -> None:
    with process_group(folder, rank, world):
        found = [dataclasses.asdict(metric) for metric in measure(shards, codec(), folder).values()]
        (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_ranks_find_the_numbers_of_one_process(shards: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, args=(2, shards, tmp_path), nprocs=2)
    alone = [dataclasses.asdict(metric) for metric in measure(shards, codec(), tmp_path).values()]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [alone, alone]


@pytest.mark.parametrize("kind", [KLCodec, DCCodec])
def test_folder_of_diffusers_is_evaluated_by_the_program(kind: type, shards: Path, tmp_path: Path) -> None:
    own = codec(kind)
    own.measure(own.encode_raw(pictures().float() / 127.5 - 1))
    own.save(tmp_path / "vae")
    features = {"class_path": f"{__name__}.Quadrants"}
    settings = {"reference": str(shards), "image_size": SIZE, "features": features, "batch_size": 8}
    evaluators = [{"class_path": "leam_mm.evaluators.reconstruction.Reconstruction", "init_args": settings}]
    content = {"codec": str(tmp_path / "vae"), "evaluators": evaluators, "output": str(tmp_path / "out")}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(content))
    evaluate.main(["--config", str(tmp_path / "evaluate.yaml"), "--device", "cpu"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    expected = measure(shards, own, tmp_path)
    assert {row["name"]: row["value"] for row in rows} == {m.name: m.value for m in expected.values()}
    evidence = load_codec(tmp_path / "vae").checkpoint_evidence
    assert rows[0]["checkpoints"]["codec"] == evidence | {"path": "vae"}


def test_training_evaluates_the_averaged_codec(shards: Path, tmp_path: Path) -> None:
    module = LatentCodecModule(codec(), ema=0.5)
    for weight in module.codec.parameters():
        weight.data.zero_()  # the trained one differs from the average
    evaluator = Reconstruction(shards, SIZE, Quadrants())
    logged: dict[str, float] = {}

    class Trainer:
        default_root_dir, global_step, callbacks = str(tmp_path), 1, ()

        @property
        def loggers(self) -> list[Any]:
            return [self]

        def log_metrics(self, values: dict[str, float], step: int) -> None:
            logged.update(values)

    EvaluateEvery([evaluator]).measure(Trainer(), module)  # type: ignore[arg-type]
    expected = measure(shards, codec(), tmp_path, batch_size=32)
    assert logged["reconstruction/psnr"] == expected["psnr"].value
    assert module.training


def test_mistakes_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--codec"):
        measure(shards, None, tmp_path)
    with pytest.raises(UserError, match="at least 11"):
        Reconstruction(shards, 8, Quadrants())
    with pytest.raises(UserError, match="at least 8"):
        measure(shards, Rigged(0.0), tmp_path, samples=7)
    with pytest.raises(UserError, match="not finite"):
        measure(shards, Rigged(math.nan), tmp_path)
    with pytest.raises(UserError, match="tile is 10"):
        measure(shards, codec(), tmp_path, tile=10)
