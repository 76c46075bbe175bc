"""Plans of runs: identities of time, energy and cost, unknown values, thresholds of the AI Act, and the program."""

import dataclasses
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from leam_mm.errors import UserError
from leam_mm.planning.__main__ import main
from leam_mm.planning.ai_act_compute import compute_report
from leam_mm.planning.cluster_profile import ClusterProfile, load_profile
from leam_mm.planning.cluster_sections import Band
from leam_mm.planning.cost_plan import NOT_KNOWN, Estimate, Plan, plan_run, plan_work
from leam_mm.planning.fact import Fact
from leam_mm.planning.recipe_file import read_recipe
from leam_mm.planning.recipe_work import Part, Phase, RecipeWork

CONFIGS = Path(__file__).parent.parent / "configs"


def fact(value: Any) -> Fact[Any]:
    return Fact(value, "a test", "2026", "read")


def changed(profile: ClusterProfile, **values: Any) -> ClusterProfile:
    """The profile with other values, by ``section__field``."""
    for name, value in values.items():
        section, field = name.split("__")
        part = dataclasses.replace(getattr(profile, section), **{field: fact(value)})
        profile = dataclasses.replace(profile, **{section: part})
    return profile


@pytest.fixture(scope="module")
def profile() -> ClusterProfile:
    return changed(
        ClusterProfile("toy", "a toy"),
        gpu__per_node=4,
        gpu__peak_tflops=300.0,
        gpu__watts=400.0,
        node__watts=2000.0,
        site__pue=1.2,
        site__grid_grams_per_kwh=400.0,
        site__market_grams_per_kwh=0.0,
        site__euro_per_kwh=0.2,
        site__euro_per_gpu_hour=2.0,
        slurm__max_hours=24.0,
        mfu__contrastive=Band(0.2, 0.3, 0.4),
        mfu__generator=Band(0.1, 0.2, 0.3),
    )


def work(kind: str = "contrastive", recomputed: float = 0.0, samples: int = 10**9) -> RecipeWork:
    part = Part("tower", 20e9, 3.0, recomputed)
    return RecipeWork(kind, 4096, (Phase(samples, (part,), "224 px"),), 10**8, 10**8)


def mid(plan: Plan, name: str) -> float:
    value = getattr(plan.mid, name)
    assert value is not None
    return float(value)


def test_time_is_operations_over_sustained_rate(profile: ClusterProfile) -> None:
    plan = plan_work(work(), profile, 2, mfu=0.5, goodput=0.8)
    assert mid(plan, "hours") == pytest.approx(60e9 * 1e9 / (8 * 300e12 * 0.5) / 0.8 / 3600)
    assert mid(plan, "gpu_hours") == pytest.approx(8 * mid(plan, "hours"))


def test_twice_the_nodes_halve_the_time_and_keep_gpu_hours_and_energy(profile: ClusterProfile) -> None:
    one, two = (plan_work(work(), profile, nodes) for nodes in (3, 6))
    for first, second in zip(one.estimates, two.estimates, strict=True):
        assert first.hours is not None and second.hours is not None
        assert first.hours == pytest.approx(2 * second.hours)
        for name in ("gpu_hours", "kwh", "site_kwh", "kg_location", "euro_electricity", "euro_cloud"):
            assert getattr(first, name) == pytest.approx(getattr(second, name)), name


def test_energy_is_power_times_time_and_the_rest_follows(profile: ClusterProfile) -> None:
    plan = plan_work(work(), profile, 3)
    assert mid(plan, "kwh") == pytest.approx(3 * 2.0 * mid(plan, "hours"))
    assert mid(plan, "site_kwh") == pytest.approx(1.2 * mid(plan, "kwh"))
    assert mid(plan, "kg_location") == pytest.approx(0.4 * mid(plan, "site_kwh"))
    assert mid(plan, "euro_electricity") == pytest.approx(0.2 * mid(plan, "site_kwh"))
    assert mid(plan, "euro_cloud") == pytest.approx(2.0 * mid(plan, "gpu_hours"))


def test_market_based_emissions_stay_apart_and_zero_is_a_value(profile: ClusterProfile) -> None:
    plan = plan_work(work(), profile, 1)
    assert mid(plan, "kg_market") == 0.0 and mid(plan, "kg_location") > 0
    rows = dict(plan.rows())
    assert rows["CO2e, market-based, kg"] == ["0", "0", "0"]


def test_low_takes_longer_than_high(profile: ClusterProfile) -> None:
    low, middle, high = (one.hours or 0 for one in plan_work(work(), profile, 1).estimates)
    assert low > middle > high


def test_unknown_values_stay_unknown(profile: ClusterProfile) -> None:
    plan = plan_work(work(), changed(profile, site__pue=None, site__euro_per_gpu_hour=None), 1)
    assert plan.mid.kwh is not None and plan.mid.site_kwh is None and plan.mid.kg_location is None
    assert plan.mid.euro_cloud is None and "--euro-per-gpu-hour" in plan.table()
    assert dict(plan.rows())["energy with cooling (PUE), kWh"] == [NOT_KNOWN] * 3
    assert "not known in the profile toy: site.pue" in plan.table()
    for name in ("gpu__peak_tflops", "gpu__per_node", "mfu__contrastive"):
        unknown = plan_work(work(), changed(profile, **{name: None}), 1)
        assert all(one.hours is None for one in unknown.estimates), name
    power = plan_work(work(), changed(profile, node__watts=None), 1)
    assert mid(power, "kwh") == pytest.approx((0.75 * 400 * 4 + 500) / 1000 * mid(power, "hours"))
    assert "power of a node is estimated" in power.table()
    nothing = plan_work(work(), changed(profile, node__watts=None, gpu__watts=None), 1)
    assert nothing.mid.kwh is None


def test_recomputed_activations_take_time_in_proportion(profile: ClusterProfile) -> None:
    plain, again = plan_work(work(), profile, 1), plan_work(work(recomputed=1.0), profile, 1)
    assert mid(again, "hours") == pytest.approx(4 / 3 * mid(plain, "hours"))
    measured = [plan_work(work(recomputed=share), profile, 1, mfu=0.3) for share in (0.0, 1.0)]
    assert mid(measured[0], "hours") == pytest.approx(mid(measured[1], "hours"))  # a measured MFU holds as it is


def test_generators_take_their_own_mfu(profile: ClusterProfile) -> None:
    encoder, generator = (plan_work(work(kind), profile, 1) for kind in ("contrastive", "generator"))
    assert mid(generator, "hours") == pytest.approx(1.5 * mid(encoder, "hours"))


def test_end_quota_and_jobs(profile: ClusterProfile) -> None:
    start = datetime(2026, 12, 1)
    plan = plan_work(work(), profile, 1, mfu=0.5, goodput=1.0, start=start, quota_gpu_hours=100.0)
    hours = 60e18 / (4 * 300e12 * 0.5) / 3600
    end = plan.end(plan.mid)
    assert end is not None and (end - start).total_seconds() == pytest.approx(3600 * hours)
    assert plan.quota_share(plan.mid) == pytest.approx(4 * hours / 100)
    assert plan.jobs(plan.mid) == 2  # 27.8 hours in jobs of 24
    labels = [label for label, _ in plan.rows()]
    assert "ends" in labels and "share of the quota" in labels
    assert "ends" not in [label for label, _ in plan_work(work(), profile, 1).rows()]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.init_args.batch_size", "big", "data.init_args.batch_size is 'big': give a whole number"),
        ("max_samples", -5, "max_samples is -5: give a whole number of at least 1"),
        ("max_samples", 1e6, "max_samples is 1000000.0: give a whole number"),
        ("trainer.callbacks", ["Timer"], "trainer.callbacks is ['Timer']: give a list of {class_path"),
        ("trainer", [1], "trainer is [1]: give key: value pairs"),
        ("trainer.precision", "bf17-mixed", "trainer.precision is 'bf17-mixed': give one of bf16-mixed,"),
    ],
)
def test_a_recipe_with_a_wrong_type_is_one_line(tmp_path: Path, key: str, value: Any, message: str) -> None:
    recipe = yaml.safe_load((CONFIGS / "clip_vit_b32.yaml").read_text())
    *sections, last = key.split(".")
    part = recipe
    for name in sections:
        part = part[name]
    part[last] = value
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=f"r.yaml: {re.escape(message)}"):
        read_recipe([tmp_path / "r.yaml"])


def test_every_recipe_can_be_read() -> None:
    for kind in ("clip", "codec", "generator", "emoji", "scenes", "finetune", "datacomp"):
        files = list(CONFIGS.glob(f"{kind}_*.yaml"))
        assert files and all(read_recipe([file])["model"] for file in files), kind


def test_notes_name_what_does_not_fit(profile: ClusterProfile) -> None:
    plan = plan_work(work(), changed(profile, slurm__max_nodes=2, slurm__partition="short"), 3)
    assert "3 nodes are more than the 2 of a job in short" in plan.table()
    assert (
        "has 2 such nodes, fewer than 3: give fewer --nodes"
        in plan_work(work(), changed(profile, node__count=2), 3).table()
    )
    assert "4,096 does not divide by 12 devices" in plan.table()
    assert "busy one may draw" in plan_work(work(), changed(profile, node__watts=900.0), 1).table()


def test_thresholds_of_the_ai_act() -> None:
    below, above, far = ("\n".join(compute_report(flops, "generator")) for flops in (9e22, 1.1e23, 2e25))
    assert "90.00% of 1e+23" in below and "follows" not in below
    assert "Art. 53(1)(c), (d)" in above and "Art. 55" not in above
    assert "Art. 55" in far and "Art. 52(1)" in far
    assert "follows" in "\n".join(compute_report(9e22, "generator", earlier=2e22))
    assert "an encoder generates neither" in "\n".join(compute_report(2e23, "contrastive"))


def test_real_recipe_on_a_real_profile() -> None:
    plan = plan_run(read_recipe([CONFIGS / "clip_vit_b32.yaml"]), load_profile("juwels_booster"), 32)
    # 14.25 GFLOP x 3 x 12.8 G samples on 128 A100 of 312 TFLOP/s; open_clip, whose last block of images computes all
    # tokens, has 14.78.
    assert mid(plan, "hours") * plan.mid.mfu * plan.mid.goodput == pytest.approx(  # type: ignore[operator]
        3 * 14.249e9 * 12.8e9 / (128 * 312e12) / 3600, rel=0.01
    )
    assert plan.devices == 128 and "JUWELS" in plan.table()
    assert replace(Estimate("low"), hours=1.0).hours == 1.0


def test_program_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "plan",
        str(CONFIGS / "generator_one_gpu.yaml"),
        "--cluster",
        "lumi_g",
        "--nodes",
        "1",
        "--start",
        "2026-12-01",
    ]
    main(words)
    text = capsys.readouterr().out
    assert "GPU hours" in text and "4.421e+18 model FLOP" in text and "ends" in text
    for wrong, message in (
        (["plan", "nowhere.yaml", "--cluster", "lumi_g"], r"nowhere\.yaml"),
        ([*words[:3], "mars"], "mars"),
        ([*words[:-1], "soon"], "--start soon"),
        ([*words[:5], "0"], "--nodes is 0"),
    ):
        with pytest.raises(UserError, match=message):
            main(wrong)


def test_the_table_of_simulate_is_not_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    main(["simulate", str(CONFIGS / "codec_kl.yaml"), "--nodes", "1", "4"])
    shown = capsys.readouterr().out
    assert "efficiency" in shown and "samples/s" in shown and "\N{HORIZONTAL ELLIPSIS}" not in shown
