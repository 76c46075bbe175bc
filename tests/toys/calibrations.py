"""A calibration with round numbers, as if measured."""

from leam_mm.planning.calibration import Calibration, Cost

CALIBRATION = Calibration(
    recipe=("a.yaml",),
    model_class="leam_mm.contrastive_module.ContrastiveModule",
    device="cpu",
    precision="32-true",
    threads=1,
    cores=2,
    measured_at="2026-11-29T12:00:00+00:00",
    load_average=0.1,
    batch_size=32,
    batches=100,
    batch=Cost(0.5, 0.4),
    first=Cost(10.0, 9.0),
    validation=Cost(2.0, 1.5),
    callbacks={"SampleGrid": Cost(3.0, 2.5)},
    save=Cost(0.25, 0.125),
    checkpoint_bytes=1_000_000,
    model_flops_per_sample=1e9,
    gemm_tflops=0.1,
    load_samples_per_core_second=500.0,
    allreduce_bytes_per_second=None,
    ranks=1,
    backend="none",
)
