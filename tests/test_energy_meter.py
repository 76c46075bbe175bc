import time
from datetime import UTC, datetime
from pathlib import Path

import lightning.pytorch as pl
import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys.machines import FakeNvml

from leam_mm.callbacks import energy_record
from leam_mm.callbacks.carbon import CarbonFactors, add
from leam_mm.callbacks.energy_counter import (
    CounterUnavailable,
    CrayCounter,
    EnergyCounter,
    GraceHopperCounter,
    RaplCounter,
)
from leam_mm.callbacks.energy_meter import EnergyMeter
from leam_mm.callbacks.energy_record import EnergyRecord, node_addresses
from leam_mm.callbacks.gpu_energy import AmdGpuCounter, NvmlCounter
from leam_mm.errors import UserError


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


def write(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def test_cray_counter_gives_the_difference(tmp_path: Path) -> None:
    write(tmp_path / "energy", "1000 J 1700000000 us")
    counter = CrayCounter(tmp_path)
    write(tmp_path / "energy", "4600 J 1700000009 us")
    assert counter.joules() == 3600.0


@pytest.mark.parametrize("text", ["", "not a number"])
def test_unreadable_number_means_no_counter(tmp_path: Path, text: str) -> None:
    write(tmp_path / "energy", text)
    with pytest.raises(CounterUnavailable):
        CrayCounter(tmp_path)


@pytest.mark.parametrize("kind", [CrayCounter, GraceHopperCounter, AmdGpuCounter, RaplCounter])
def test_missing_counters_say_so(tmp_path: Path, kind: type) -> None:
    with pytest.raises(CounterUnavailable, match=r"\w"):
        kind(tmp_path / "nowhere")


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


def test_no_gpu_is_no_counter() -> None:
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
    monkeypatch.setattr(energy_record, "COUNTERS", (FixedCounter,))
    first, checkpoint = train(tmp_path, 2)
    saved = torch.load(checkpoint, weights_only=True)["callbacks"]["EnergyRecord"]
    assert saved == first.record
    assert saved["samples"] == 6 and saved["joules"] > 0
    assert saved["measured_node_seconds"] == saved["node_seconds"]
    assert datetime.fromisoformat(saved["began_at"]) <= datetime.fromisoformat(saved["ended_at"]) <= datetime.now(UTC)
    assert saved["hardware"].endswith(f"{psutil.cpu_count()} cores")
    monkeypatch.setattr(energy_record, "_now", lambda: "2031-01-01T00:00:00+00:00")
    second, _ = train(tmp_path, 4, checkpoint)
    assert second.record["samples"] == 12
    assert (second.record["began_at"], second.record["ended_at"]) == (saved["began_at"], "2031-01-01T00:00:00+00:00")
    assert second.record["joules"] > saved["joules"]
    monkeypatch.setattr(energy_record, "COUNTERS", ())
    third, _ = train(tmp_path, 5, tmp_path / "4.ckpt")
    assert third.record["joules"] == second.record["joules"]
    assert third.record["measured_node_seconds"] < third.record["node_seconds"]


def test_record_of_an_unmeasured_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_record, "COUNTERS", ())
    record, _ = train(tmp_path, 2, watts_per_core=4.0)
    assert record.record["joules"] is None and record.record["source"] == "not measured"
    assert record.record["estimated_joules"] == pytest.approx(4.0 * record.record["cpu_seconds"])
    assert record.record["cpu_seconds"] > 0


def test_gpus_of_a_node_are_those_of_its_ranks() -> None:
    rows = [[0, 0, 0xC1, 0], [0, 0, 0xC6, 0], [1, 0, 0xC1, 0], [1, 0x10, 0xD1, 0], [1, 0, 0xC1, 0]]
    assert node_addresses(rows, 0) == ["0000:c1:00", "0000:c6:00"]
    assert node_addresses(rows, 1) == ["0000:c1:00", "0010:d1:00"]
    assert node_addresses([[0, -1, -1, -1], [0, 0, 0xC6, 0]], 0) == []  # one is not known: all are counted


def test_energy_and_emissions_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_record, "COUNTERS", (FixedCounter,))
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", callbacks=[EnergyRecord(grams_per_kwh=500.0)], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Line())
    logged = trainer.callback_metrics
    assert logged["energy/kwh"] > 0
    assert float(logged["energy/location_co2_kg"]) == pytest.approx(float(logged["energy/kwh"]) * 0.5)
    assert "energy/market_co2_kg" not in logged  # not given


def test_emissions_are_energy_times_factor_and_never_mixed() -> None:
    found = CarbonFactors(79.2, 0.0, 1.04, "a table of 2023").emitted(10 * 3.6e6)
    assert found["location_grams"] == pytest.approx(10 * 1.04 * 79.2)
    assert found["market_grams"] == 0.0  # given as 0 by contract, which is not the same as not given
    assert CarbonFactors(79.2).emitted(3.6e6)["market_grams"] is None
    assert CarbonFactors(79.2).emitted(3.6e6)["location_grams"] == pytest.approx(79.2)  # without PUE
    assert CarbonFactors(79.2, 0.0).emitted(None)["location_grams"] is None
    nothing = CarbonFactors().emitted(3.6e6)
    assert nothing["location_grams"] is None and nothing["location_joules"] is None
    both = add(found, CarbonFactors(381.0).emitted(3.6e6))  # the run moves to another site
    assert both["location_grams"] == pytest.approx(10 * 1.04 * 79.2 + 381.0)
    assert both["location_joules"] == pytest.approx(11 * 3.6e6) and both["market_joules"] == pytest.approx(10 * 3.6e6)
    assert both["grams_per_kwh"] == 381.0


@pytest.mark.parametrize("wrong", [{"grams_per_kwh": -1}, {"pue": 0.9}, {"market_grams_per_kwh": "low"}])
def test_impossible_factors_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match=f"energy.{next(iter(wrong))}"):
        CarbonFactors(**wrong)


def test_record_holds_emissions_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_record, "COUNTERS", (FixedCounter,))
    _, checkpoint = train(tmp_path, 2, grams_per_kwh=100.0, market_grams_per_kwh=10.0, pue=1.5, source="a table")
    saved = torch.load(checkpoint, weights_only=True)["callbacks"]["EnergyRecord"]
    assert saved["location_grams"] == pytest.approx(saved["joules"] / 3.6e6 * 1.5 * 100)
    assert saved["market_grams"] == pytest.approx(saved["location_grams"] / 10)
    assert saved["carbon_source"] == "a table" and saved["location_joules"] == saved["joules"]
    second, _ = train(tmp_path, 4, checkpoint)  # without factors: the later energy has no emissions
    assert second.record["location_grams"] == saved["location_grams"]
    assert second.record["location_joules"] < second.record["joules"]


def test_record_of_an_earlier_version_is_read_and_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_record, "COUNTERS", (FixedCounter,))
    _, checkpoint = train(tmp_path, 2)
    content = torch.load(checkpoint, weights_only=True)
    record = content["callbacks"]["EnergyRecord"]
    for key in CarbonFactors().emitted(None):
        del record[key]
    torch.save(content, checkpoint)
    later, _ = train(tmp_path, 4, checkpoint, grams_per_kwh=100.0)
    assert later.record["joules"] > record["joules"]
    assert later.record["location_joules"] == pytest.approx(later.record["joules"] - record["joules"])


@pytest.mark.slow
def test_two_ranks_of_a_node_read_one_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_record, "COUNTERS", (FixedCounter,))
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
