"""Cluster profiles: every file loads, a fault in one gives one line, and values are those of their sources."""

from pathlib import Path

import pytest
import yaml

from leam_mm.errors import UserError, one_line
from leam_mm.planning.cluster_profile import FOLDER, load_profile, profile_names
from leam_mm.planning.fact import NOT_KNOWN

NAMES = (
    *("capella", "claix", "cpu", "generic_amd", "generic_nvidia", "jupiter", "juwels_booster", "leonardo", "lumi_g"),
    *("marenostrum5", "workstation"),
)
GOOD = """
title: a machine
sources:
  guide: {text: "a guide", date: 2026-08}
gpu:
  per_node: {value: 4, source: guide, status: read}
"""


def test_every_machine_has_a_profile() -> None:
    assert set(NAMES) <= set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_profile_loads_and_each_value_has_source_date_and_status(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.gpu.per_node.known and profile.slurm.tasks_per_node.known and profile.software.command.known
    for key, fact in profile.facts():
        assert bool(fact.date) == fact.known, key
        assert fact.source == "not found" or fact.known, key
    listed = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["sources"]
    used = {fact.source for _, fact in profile.facts()}
    assert {entry["text"] for entry in listed.values()} <= used, "a source that no value names"


def test_values() -> None:
    lumi = load_profile("lumi_g")
    assert (lumi.gpu.vendor.value, lumi.gpu.per_node.value, lumi.gpu.peak_tflops.value) == ("amd", 8, 191.5)
    assert lumi.node.watts.value == 1240 and lumi.node.watts.date == "2025-08" and lumi.node.watts.status == "read"
    assert lumi.site.pue.status == "assumed" and str(lumi.site.pue) == "1.04 (assumed)"
    assert lumi.slurm.cpus_per_task.value == 7 and lumi.slurm.partition.value == "standard-g"
    assert [queue.name for queue in lumi.slurm.queues.needed()] == ["small-g", "dev-g"]
    exports = lumi.software.exports.needed()
    assert exports["FI_MR_CACHE_MONITOR"] == "userfaultfd" and "NCCL_NET_GDR_LEVEL" not in exports
    assert str(lumi.node.mtbf_hours) == NOT_KNOWN and lumi.node.mtbf_hours.source == "not found"
    with pytest.raises(ValueError, match="not known"):
        lumi.node.mtbf_hours.needed()
    jupiter = load_profile("jupiter")
    assert jupiter.storage.login_only_paths.value == ("/p",) and jupiter.network.ipv6.value is False
    assert jupiter.slurm.partition.status == "reported by users"
    assert load_profile("juwels_booster").network.master_suffix.value == "i" != jupiter.network.master_suffix.value
    mare = load_profile("marenostrum5")
    assert (mare.slurm.qos.value, mare.slurm.cpus_per_task.value, mare.slurm.max_nodes.value) == ("acc_ehpc", 20, 100)
    assert load_profile("leonardo").mfu.generator.needed().mid == 0.375
    assert load_profile("cpu").gpu.per_node.value == 0


def test_masks_of_lumi_hold_seven_cores_each_and_share_none() -> None:
    bind = load_profile("lumi_g").software.cpu_bind.needed()
    masks = [int(mask, 16) for mask in bind.removeprefix("mask_cpu:").split(",")]
    assert [mask.bit_count() for mask in masks] == [7] * 8
    assert sum(masks).bit_count() == 56 and all(not mask & 0x0101010101010101 for mask in masks)


def test_null_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(GOOD + "  watts: {value: null, source: not found, status: assumed}\n")
    assert str(load_profile(path).gpu.watts) == NOT_KNOWN


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (GOOD.replace("value: 4", "value: four"), "gpu.per_node.value is 'four': give a whole number"),
        (GOOD.replace("value: 4", "value: 4.5"), "gpu.per_node.value is 4.5: give a whole number"),
        (GOOD.replace("value: 4", "value: true"), "gpu.per_node.value is True: give a whole number"),
        (GOOD.replace("value: 4", "value: -4"), "gpu.per_node.value is -4: give a number of at least 0"),
        (GOOD.replace("per_node", "per_nod"), "gpu holds the unknown key 'per_nod': it may hold"),
        (GOOD.replace("gpu:", "gpus:"), "the file holds the unknown key 'gpus': it may hold"),
        (GOOD.replace(" source: guide,", ""), "gpu.per_node has no source: add it"),
        (GOOD.replace(", status: read", ""), "gpu.per_node has no status: add it"),
        (GOOD.replace("source: guide", "source: hearsay"), "gpu.per_node.source is 'hearsay': list it under sources"),
        (GOOD.replace("status: read", "status: sure"), "gpu.per_node.status is 'sure': give one of read, reported by"),
        (GOOD.replace("{value: 4, source: guide, status: read}", "4"), "gpu.per_node is 4: give {source: ..."),
        (GOOD.replace("2026-08", "August"), "sources.guide is"),
        (GOOD.replace("title: a machine\n", ""), "the file has no title: add it"),
        (GOOD + "  per_node: {value: 2, source: guide, status: read}\n", "key 'per_node' stands twice"),
        (GOOD + "  vendor: {value: intel, source: guide, status: read}\n", "give one of nvidia, amd, none"),
        (GOOD + "  watts: {value: .nan, source: guide, status: read}\n", "give a number of more than 0"),
        (GOOD + "storage:\n  login_only_paths: {value: /p, source: guide, status: read}\n", "give a list"),
        (
            GOOD + "slurm:\n  queues: {value: {q: {kind: qos, hours: 1}}, source: guide, status: read}\n",
            "slurm.queues.value.q holds the unknown key 'hours'",
        ),
        (
            GOOD + "mfu:\n  generator: {value: {low: 0.4, mid: 0.3, high: 0.5}, source: guide, status: read}\n",
            "give low, mid and high in rising order",
        ),
        (
            GOOD + "mfu:\n  generator: {value: {low: 0.4, mid: 30, high: 50}, source: guide, status: read}\n",
            "mfu.generator.value.mid is 30.0: give a number of at least 0 and at most 1",
        ),
        ("- a", "the file is ['a']: give {sources: ..., title: ...}"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_fault_is_one_line_that_names_file_key_value_and_fix(tmp_path: Path, wrong: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(wrong)
    with pytest.raises(UserError) as found:
        load_profile(path)
    line = one_line(found.value)
    assert str(path) in line and message in line, line


def test_an_unknown_name_lists_the_profiles() -> None:
    with pytest.raises(UserError, match=r"profiles are capella, .*workstation, or give the path of your own YAML"):
        load_profile("deep_thought")
