"""Numbers equal torch-fidelity 0.4.0, on shared features and from images, with random weights in its layout."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import nn
from toys.images import soft_image

from leam_mm.distances.feature_statistics import FeatureMoments
from leam_mm.distances.frechet import frechet_distance, frechet_distance_of_features
from leam_mm.distances.inception_score import inception_score
from leam_mm.distances.kernel_distance import kernel_distance
from leam_mm.distances.precision_recall import precision_recall
from leam_mm.evaluators.image_features import Inception
from leam_mm.evaluators.inception import InceptionNetwork

fidelity = pytest.importorskip("torch_fidelity", reason="torch-fidelity is in the extra `peers`")

IMAGES = 16
SETTINGS: dict[str, Any] = {
    "cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False, "kid_subsets": 5, "kid_subset_size": 12,
    "batch_size": IMAGES, "feature_extractor": "inception-v3-compat",
}  # fmt: skip


def features(count: int, shift: float, seed: int, size: int = 96) -> torch.Tensor:
    """Correlated features that are never negative, float32."""
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(99)) / size**0.5
    return (torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) @ mix + shift).relu()


def test_frechet_distance_of_shared_features() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    sets = [features(1000, 0.3, 1), features(800, 0.5, 2)]
    statistics = [fid_features_to_statistics(part) for part in sets]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    # Their mean is float32; ours is float64.
    assert frechet_distance_of_features(*sets) == pytest.approx(theirs, rel=1e-5)
    cast = [each | {"mu": each["mu"].astype(numpy.float64)} for each in statistics]
    moments = [
        FeatureMoments(len(part), torch.from_numpy(each["mu"]), FeatureMoments.of(part).moment)
        for part, each in zip(sets, cast, strict=True)
    ]
    exact = fid_statistics_to_metric(*cast, False)["frechet_inception_distance"]
    assert frechet_distance(*moments) == pytest.approx(exact, rel=1e-9)
    # Parts merged, as ranks or batches give them, change nothing.
    for parts in (2, 7):
        merged = [FeatureMoments.of_batches(part.chunk(parts)) for part in sets]
        assert frechet_distance(*merged) == pytest.approx(frechet_distance_of_features(*sets), rel=1e-12)


def test_other_distances_of_shared_features() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    first, second = features(600, 0.3, 1), features(500, 0.8, 2)
    options = {"kid_subsets": 20, "kid_subset_size": 200, "rng_seed": 2020, "verbose": False}
    # In double precision both do the same; their own float32 loses digits to cancellation.
    for dtype, digits in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        theirs = kid_features_to_metric(first.to(dtype), second.to(dtype), **options)
        ours = kernel_distance(first, second, subsets=20, subset_size=200)
        assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=digits)
    theirs = prc_features_to_metric(first, second, verbose=False, save_cpu_ram=False)  # generated first
    ours = precision_recall(second, first)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-6)
    assert 0.01 < ours.precision < 0.99
    theirs = isc_features_to_metric(10 * first)
    assert inception_score(10 * first) == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert inception_score(10 * first) > 1.1


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that keep the scale of the features (He et al. 1502.01852); default ones make them constant."""
    torch.manual_seed(0)
    network = InceptionNetwork()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    network.fc.weight.data *= 50  # classes that differ, for the Inception Score
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_features_and_all_numbers_from_images(weights: Path, tmp_path: Path) -> None:
    sets = []
    # Every other image of one set is dark: torch-fidelity's float32 has no digits for a small kernel distance.
    for name, seeds, divisor in (("generated", range(IMAGES), 1), ("real", range(100, 100 + IMAGES), 4)):
        (tmp_path / name).mkdir()
        pixels = [numpy.asarray(soft_image(seed, 40)) // (divisor if seed % 2 else 1) for seed in seeds]
        images = [Image.fromarray(each) for each in pixels]
        for number, image in enumerate(images):
            image.save(tmp_path / name / f"{number:02d}.png")
        sets.append([torch.from_numpy(numpy.asarray(image)).permute(2, 0, 1) for image in images])
    ours = Inception(weights)
    generated, real = (ours.extract_each(images) for images in sets)
    theirs = fidelity.calculate_metrics(
        input1=str(tmp_path / "generated"), input2=str(tmp_path / "real"), fid=True, kid=True, isc=True, prc=True,
        feature_extractor_weights_path=str(weights), **SETTINGS,
    )  # fmt: skip
    distance = frechet_distance_of_features(real["features"], generated["features"])
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    kernel = kernel_distance(generated["features"], real["features"], subsets=5, subset_size=12)
    assert kernel == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    score = inception_score(generated["logits"])
    assert score == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    shares = precision_recall(real["features"], generated["features"])
    assert (shares.precision, shares.recall) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-5)
    assert (
        score > 1.01 and 0 < min(shares.precision, shares.recall) < 1
    )  # which one is below 1 depends on the processor
