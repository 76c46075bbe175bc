import ctypes
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from leam_mm.callbacks import energy_meter
from leam_mm.callbacks.energy_counter import (
    AmdGpuCounter,
    CounterUnavailable,
    CrayCounter,
    EnergyCounter,
    GraceHopperCounter,
    NvmlCounter,
    RaplCounter,
)
from leam_mm.callbacks.energy_meter import EnergyMeter, EnergyRecord


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FixedCounter(EnergyCounter):
    """Draws a hundred joules at every look."""

    source, coverage, interval = "a fixed counter", "node", 1e6

    def __init__(self) -> None:
        self.total = 0.0

    def joules(self) -> float:
        self.total += 100.0
        return self.total


class BrokenCounter(FixedCounter):
    def joules(self) -> float:
        raise OSError("the file is gone")


class FakeNvml:
    """Three calls of the NVML library, with a dial per card."""

    def __init__(self, dials: list[int]) -> None:
        self.dials = dials

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: object) -> int:
        count._obj.value = len(self.dials)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, handle: object) -> int:
        handle._obj.value = number + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, value: object) -> int:
        value._obj.value = self.dials[handle.value - 1]
        return 0


def write(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_cray_counter_gives_the_difference(tmp_path: Path) -> None:
    write(tmp_path / "energy", "1000 J 1700000000 us")
    counter = CrayCounter(tmp_path)
    write(tmp_path / "energy", "4600 J 1700000009 us")
    assert counter.joules() == 3600.0
    write(tmp_path / "energy", "12 J 1700000010 us")
    with pytest.raises(OSError, match="decreased"):
        counter.joules()


@pytest.mark.parametrize("text", ["", "not a number"])
def test_unreadable_number_means_no_counter(tmp_path: Path, text: str) -> None:
    write(tmp_path / "energy", text)
    with pytest.raises(CounterUnavailable):
        CrayCounter(tmp_path)


@pytest.mark.parametrize("kind", [CrayCounter, GraceHopperCounter, AmdGpuCounter, RaplCounter])
def test_missing_counters_say_so(tmp_path: Path, kind: type) -> None:
    with pytest.raises(CounterUnavailable, match=r"\w"):
        kind(tmp_path / "nowhere")


def test_rapl_wraps_around_and_leaves_out_what_is_counted_twice(tmp_path: Path) -> None:
    for zone, name in [("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "package-1"), ("2", "psys")]:
        write(tmp_path / f"intel-rapl:{zone}/name", name)
        write(tmp_path / f"intel-rapl:{zone}/max_energy_range_uj", 10_000_000)
        write(tmp_path / f"intel-rapl:{zone}/energy_uj", 9_000_000)
    counter = RaplCounter(tmp_path)
    write(tmp_path / "intel-rapl:0/energy_uj", 2_000_000)  # wrapped: 3 J
    write(tmp_path / "intel-rapl:0:1/energy_uj", 9_500_000)  # 0.5 J
    write(tmp_path / "intel-rapl:0:0/energy_uj", 9_900_000)  # cores are inside the package
    write(tmp_path / "intel-rapl:2/energy_uj", 9_900_000)  # psys holds the packages
    assert counter.joules() == pytest.approx(3.5)


def test_rapl_without_permission_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "intel-rapl:0/name", "package-0")
    write(tmp_path / "intel-rapl:0/max_energy_range_uj", 10)
    write(tmp_path / "intel-rapl:0/energy_uj", 1)
    read = Path.read_text

    def refuse(self: Path, *args: object, **keys: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *args, **keys)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CounterUnavailable, match="Permission denied"):
        RaplCounter(tmp_path)


def test_grace_hopper_integrates_module_power_only(tmp_path: Path) -> None:
    for number, name in enumerate(["Module Power Socket 0", "Grace Power Socket 0", "Module Power Socket 1"]):
        write(tmp_path / f"hwmon{number}/device/power1_oem_info", name)
        write(tmp_path / f"hwmon{number}/device/power1_average", 600_000_000)
    clock = Clock()
    counter = GraceHopperCounter(tmp_path, clock)
    clock.now = 10.0
    assert counter.joules() == pytest.approx(2 * 600 * 10)
    write(tmp_path / "hwmon0/device/power1_average", 200_000_000)
    clock.now = 12.0
    assert counter.joules() == pytest.approx(2 * 600 * 10 + (400 + 600) * 2)


def test_amd_counts_each_card_once_and_skips_the_silent_die(tmp_path: Path) -> None:
    write(tmp_path / "hwmon0/name", "amdgpu")
    write(tmp_path / "hwmon0/power1_average", 300_000_000)
    write(tmp_path / "hwmon0/power1_input", 999_000_000)
    write(tmp_path / "hwmon1/name", "amdgpu")  # the module's other die has no power file
    write(tmp_path / "hwmon2/name", "amdgpu")
    write(tmp_path / "hwmon2/power1_input", 100_000_000)
    write(tmp_path / "hwmon3/name", "nvme")
    write(tmp_path / "hwmon3/power1_input", 5_000_000)
    clock = Clock()
    counter = AmdGpuCounter(tmp_path, clock)
    clock.now = 2.0
    assert counter.joules() == pytest.approx((300 + 100) * 2)
    assert "2 sensors" in counter.source


def test_nvml_adds_all_cards() -> None:
    library = FakeNvml([5_000, 7_000])
    counter = NvmlCounter(library)
    library.dials = [6_500, 7_250]
    assert counter.joules() == pytest.approx(1.75)
    with pytest.raises(CounterUnavailable, match="no GPU found"):
        NvmlCounter(FakeNvml([]))


def test_meter_takes_the_first_counter_that_answers(tmp_path: Path) -> None:
    meter = EnergyMeter(counters=[lambda: CrayCounter(tmp_path), FixedCounter, BrokenCounter])
    with meter:
        time.sleep(0.01)
    assert meter.reading is not None and meter.reading.joules == 100.0
    assert meter.reading.coverage == "node" and not meter.reading.estimated
    assert meter.reading.seconds >= 0.01


def test_unmeasured_is_none_and_never_zero() -> None:
    reading = EnergyMeter(counters=[]).start().stop()
    assert reading.joules is None and reading.source == "not measured"


def test_lost_counter_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    reading = EnergyMeter(counters=[BrokenCounter]).start().stop()
    assert reading.joules is None
    assert "the file is gone" in caplog.text


def test_estimate_is_flagged_and_follows_cpu_seconds() -> None:
    meter = EnergyMeter(watts_per_core=5.0, counters=[]).start()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    reading = meter.stop()
    assert reading.estimated and "estimated" in reading.source
    assert reading.cpu_seconds >= 0.04
    assert reading.joules == pytest.approx(reading.cpu_seconds * 5.0)


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.ones(12, 2)), batch_size=3)


def train(folder: Path, steps: int, checkpoint: Path | None = None, **settings: object) -> tuple[EnergyRecord, Path]:
    record = EnergyRecord(**settings)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=[record], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Line(), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return record, folder / f"{steps}.ckpt"


def test_record_adds_up_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_meter, "COUNTERS", (FixedCounter,))
    first, checkpoint = train(tmp_path, 2)
    saved = torch.load(checkpoint, weights_only=True)["callbacks"]["EnergyRecord"]
    assert saved == first.record
    assert saved["samples"] == 6 and saved["joules"] > 0
    assert saved["measured_node_seconds"] == saved["node_seconds"]
    second, _ = train(tmp_path, 4, checkpoint)
    assert second.record["samples"] == 12
    assert second.record["joules"] > saved["joules"]
    monkeypatch.setattr(energy_meter, "COUNTERS", ())
    third, _ = train(tmp_path, 5, tmp_path / "4.ckpt")
    assert third.record["joules"] == second.record["joules"]
    assert third.record["measured_node_seconds"] < third.record["node_seconds"]


def test_record_of_an_unmeasured_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_meter, "COUNTERS", ())
    record, _ = train(tmp_path, 2, watts_per_core=4.0)
    assert record.record["joules"] is None and record.record["source"] == "not measured"
    assert record.record["estimated_joules"] == pytest.approx(4.0 * record.record["cpu_seconds"])
    assert record.record["cpu_seconds"] > 0


@pytest.mark.slow
def test_two_ranks_of_a_node_read_one_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_meter, "COUNTERS", (FixedCounter,))
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", devices=2, strategy="ddp_fork", callbacks=[EnergyRecord()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=True, log_every_n_steps=100,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Line())
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)["callbacks"]["EnergyRecord"]
    assert saved["joules"] % 100 == 0 and saved["joules"] <= 200  # one reader; two would have looked twice as often
    assert saved["samples"] == 12
    assert saved["node_seconds"] == pytest.approx(saved["seconds"])
