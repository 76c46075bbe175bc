"""Runs every benchmark: make bench. Each raises when the two sides do different work."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = (
    "contrastive_step",
    "loader",
    "loader_memory",
    "end_to_end",
    "shard_building",
    "shard_resume",
    "hostile_inputs",
    "sample_search",
    "embedding_search",
    "near_duplicates",
    "ema_update",
    "noise_streams",
    "sampling",
    "contrastive_exactness",
    "contrastive_memory",
    "time_to_accuracy",
    "resume",
    "resume_buckets",
    "resume_loaders",
    "faults",
    "language_balance",
    "language_identification",
    "crawl_speed",
    "codec_gradients",
    "process_identities",
    "generator_step",
    "generator_step_from_shards",
    "techniques",
    "reservation_conformance",
    "screen_memory",
    "checkpoint_saves",
    "personal_data_rates",
    "detectors",
    "weak_scaling",
    "mark_robustness",
    "interval_coverage",
    "distance_time",
    "distance_interval_time",
)


@pytest.mark.bench
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark(name: str) -> None:
    written = importlib.import_module(name).main([])
    if not written:
        pytest.skip(f"{name} was not measured: see above for what it needs")
    for path in written:
        result = json.loads(path.read_text())
        assert result["same_work"] and all(entry["difference"] <= entry["limit"] for entry in result["same_work"])
        assert result["hardware"]["cores"] and result["versions"]["torch"] and result["command"]


def test_every_benchmark_is_run() -> None:
    files = {path.stem for path in Path(__file__).parent.glob("*.py")}
    parts = {
        "batch_record",
        "accuracy_clock",
        "accuracy_corpus",
        "fault_injection",
        "fault_programs",
        "fault_releases",
        "gpu_session",
        "hostile_images",
        "hostile_server",
        "litdata_peer",
        "loader_attempt",
        "open_clip_peer",
        "processes",
        "mark_changes",
        "measure",
        "mosaic_peer",
        "picture_copies",
        "published_loop",
        "rights_server",
        "streaming_peers",
        "technique_run",
        "toy_input",
        "test_benchmarks",
    }
    assert files - parts == set(BENCHMARKS)
