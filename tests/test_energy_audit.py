"""Energy of using models: known power gives known energy; what was not measured never passes."""

from pathlib import Path

import pytest
import torch
from toys.encoders import three_layer_encoder
from toys.generators import generator_module

from leam_mm.audits import energy
from leam_mm.audits.audit import AuditContext, NotRun
from leam_mm.audits.energy import Energy
from leam_mm.audits.energy_use import EnergyRuns, EnergyUse, energy_use
from leam_mm.callbacks.carbon import CarbonFactors
from leam_mm.controls.coded_models import CodedEncoder
from leam_mm.controls.energy_controls import ITEMS, SECONDS, ControlClock, KnownCounter, known_use
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.planning.counted_flops import count_image

CPU = torch.device("cpu")


def test_known_power_gives_known_energy() -> None:
    use = known_use(100.0)
    assert use.joules == (100.0 * SECONDS / ITEMS,) * 3
    # 30 s in calls of 2 s, three times; the warm-up of 4 s is in none of them.
    assert use.items == 3 * 15 * ITEMS
    assert use.interval() == (25.0, 25.0, 25.0)
    assert use.measured == 1.0 and not use.estimated


def test_interval_is_students() -> None:
    mean, low, high = EnergyUse((1.0, 2.0, 3.0), 3, "", "", False).interval()
    assert (mean, high) == (2.0, pytest.approx(2 + 4.30265 / 3**0.5, rel=1e-5))
    assert low == 0.0  # energy is not negative
    assert str(EnergyUse((1.0,), 1, "", "", True).interval()) == "(1.0, nan, nan)"


def test_without_a_counter_flops_or_seconds_are_the_estimate() -> None:
    encoder = three_layer_encoder().eval()
    calls = []

    def work(items: int) -> None:
        calls.append(items)
        with torch.no_grad():
            encoder.encode_image(torch.zeros(items, 3, 16, 16))

    flops = count_image(three_layer_encoder().to("meta"), 16)
    use = energy_use(work, 4, EnergyRuns(joules_per_flop=1e-9), CPU, [])
    assert calls == [1]
    assert use.joules == (pytest.approx(flops * 1e-9),) and use.estimated
    assumed = energy_use(work, 4, EnergyRuns(), CPU, [])
    assert assumed.joules == (pytest.approx(flops * 2.2e-10),) and "assumed for cpu" in assumed.source
    seconds = energy_use(work, 4, EnergyRuns(seconds=0.01, warm_up=0, watts_per_core=5.0), CPU, [])
    assert len(seconds.joules) == 3 and seconds.estimated and "CPU seconds" in seconds.source


def audited(monkeypatch: pytest.MonkeyPatch, use: EnergyUse, device: torch.device = CPU, **changes: object):
    monkeypatch.setattr(energy, "energy_use", lambda *_: use)
    clip = CodedEncoder(lambda image: torch.ones(len(image), 4), lambda text: torch.ones(4), image_size=112)
    context = AuditContext(clip, None, Path("nowhere"), device)
    return Energy(embeddings=4, **changes).run(context)[0]


def test_threshold_follows_the_pixels_and_emissions_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 0.005 / 4  # at half the side
    joules = limit * 3600
    below = EnergyUse((0.9 * joules,) * 3, 12, "counter", "node", False)
    result = audited(monkeypatch, below, carbon=CarbonFactors(grams_per_kwh=400, pue=1.5, source="x 2026"))
    assert result.value == pytest.approx(0.9 * limit) and result.verdict == "pass"
    emitted = result.slices["g CO2 per 1,000, location-based"]
    assert emitted["value"] == pytest.approx(0.9 * limit * 400 * 1.5) and emitted["note"] == "x 2026"
    assert result.slices["g CO2 per 1,000, market-based"] == {"value": None, "note": "not given"}
    above = EnergyUse((1.1 * joules,) * 3, 12, "counter", "node", False)
    assert audited(monkeypatch, above).verdict == "fail"


@pytest.mark.parametrize(
    ("use", "device", "reason"),
    [
        (EnergyUse((1e-9,), 1, "estimated: x", "not measured", True), "cpu", "estimated, not measured"),
        (EnergyUse((1e9,), 1, "estimated: x", "not measured", True), "cpu", "estimated, not measured"),
        (EnergyUse((1e-9,) * 3, 9, "RAPL", "cpu", False, measured=0.5), "cpu", "only 50% of the time"),
        (EnergyUse((1e-9,) * 3, 9, "RAPL", "cpu", False), "cuda", "leaves the GPU out"),
    ],
)
def test_what_was_not_measured_decides_nothing(
    monkeypatch: pytest.MonkeyPatch, use: EnergyUse, device: str, reason: str
) -> None:
    result = audited(monkeypatch, use, torch.device(device))
    assert result.verdict == "inconclusive" and reason in result.as_dict()["note"]


def test_generator_and_encoder_are_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ControlClock()
    counters = [lambda: KnownCounter(50.0, clock)]

    def known(work, items, runs, device):
        def timed(number: int) -> None:
            work(number)
            clock.work(number)

        return energy_use(timed, items, runs, device, counters, clock)

    monkeypatch.setattr(energy, "energy_use", known)
    clip = CodedEncoder(lambda image: torch.ones(len(image), 4), lambda text: torch.ones(4))
    context = AuditContext(clip, generator_module().eval(), tmp_path)
    runs = EnergyRuns(seconds=1.0, warm_up=0.0)
    images, embeddings = Energy(runs, batch_size=2, embeddings=5, sampling=SamplerSettings(2)).run(context)
    assert images.audit == "energy/images" and embeddings.audit == "energy/embeddings"
    assert images.value == pytest.approx(1000 * 50.0 * SECONDS / 2 / 3.6e6) and images.samples == 6
    assert embeddings.value == pytest.approx(1000 * 50.0 * SECONDS / 5 / 3.6e6) and embeddings.samples == 15
    assert "images of 4 x 4 pixels, 2 steps" in images.reason
    assert images.threshold is not None and images.threshold.most == pytest.approx(0.5 * (4 / 512) ** 2)


def test_settings_and_inputs(tmp_path: Path) -> None:
    with pytest.raises(NotRun, match="add --generator or --clip"):
        Energy().run(AuditContext(None, None, tmp_path))
    for wrong in ({"repeats": 2}, {"seconds": 0.0}, {"warm_up": -1.0}):
        with pytest.raises(UserError, match="at least 3 repeats of more than 0 seconds"):
            EnergyRuns(**wrong)
