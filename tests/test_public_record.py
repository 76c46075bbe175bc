"""The planner reproduces published runs, says which rows are identities, and the program fails if one is off."""

import dataclasses
from pathlib import Path

import pytest

from leam_mm.planning import check_command, public_record
from leam_mm.planning.__main__ import main
from leam_mm.planning.check_command import CheckOptions, check
from leam_mm.planning.cluster_profile import load_profile
from leam_mm.planning.public_claims import claims, electricity
from leam_mm.planning.public_record import CLIP_RUNS, CLIPS, Row, all_rows, operation_rows
from leam_mm.planning.published_rates import SD2_GFLOPS, published_rates


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return all_rows()


def test_all_rows_are_within_their_tolerance(rows: list[Row]) -> None:
    assert not [row for row in rows if not row.passed]
    assert len(rows) > 45 and sum(row.kind == "prediction" for row in rows) > 30


def test_tolerances_are_those_that_were_promised(rows: list[Row]) -> None:
    assert {row.tolerance for row in rows if "FLOP" in row.unit} == {0.02}
    assert all(row.tolerance <= (0.3 if "as the run of" in row.note else 0.2) for row in rows)


def test_every_row_names_its_source_and_what_it_rests_on(rows: list[Row]) -> None:
    assert all(row.source and row.note for row in rows)
    circular = [row for row in rows if row.note.startswith("circular")]
    assert len(circular) == len(CLIP_RUNS) + 1 and all(row.kind == "identity" for row in circular)


def test_towers_are_the_listed_ones_to_three_digits() -> None:
    for row in operation_rows():
        if row.source == public_record.PROFILE and "SigLIP" not in row.what:
            assert row.difference == pytest.approx(0, abs=0.001), row.what
    # What the study of the machines lists for image and text together.
    for name, gflops in (("ViT-B-32", 14.78), ("ViT-L-14", 175.33), ("ViT-H-14", 381.68), ("ViT-bigG-14", 1065.36)):
        assert CLIPS[name].forward / 1e9 == pytest.approx(gflops, rel=0.001)


def test_runs_of_openclip_had_these_shares_of_the_peak() -> None:
    shares = [run.utilization for run in CLIP_RUNS]
    assert shares == pytest.approx([0.110, 0.131, 0.161, 0.157], abs=0.001)  # the last with recomputed activations
    model_flops = 3 / 4 * CLIP_RUNS[-1].utilization
    assert model_flops == pytest.approx(0.118, abs=0.001)


def test_program_prints_every_row_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check"])
    text = capsys.readouterr().out
    assert "identity" in text and "FAILED" not in text and "87,222 PFLOP/s-hours" in text
    main(["check", "--predictions"])
    assert "circular" not in capsys.readouterr().out


def test_page_shows_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--markdown"])
    page = (Path(__file__).parent.parent / "docs" / "planning.md").read_text(encoding="utf-8")
    missing = [line for line in capsys.readouterr().out.splitlines() if line not in page]
    assert not missing, "write the output of python -m leam_mm.planning check --markdown into docs/planning.md"


def test_a_row_out_of_tolerance_fails_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: list[Row]
) -> None:
    wrong = dataclasses.replace(rows[0], ours=1.03 * rows[0].published)
    assert not wrong.passed and dataclasses.replace(wrong, ours=1.01 * wrong.published).passed
    monkeypatch.setattr(check_command, "all_rows", lambda: [wrong, *rows[1:]])
    assert check(CheckOptions()) == 1
    assert "+3.0% FAILED" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["check"])
    assert caught.value.code == 1


def test_ranges_of_the_profiles_hold_the_published_rates_of_their_devices() -> None:
    profiles = {
        "H100": ["claix", "capella", "marenostrum5"],
        "GH200": ["jupiter"],
        "A100": ["juwels_booster", "leonardo"],
    }
    for device, names in profiles.items():
        found = [one.mfu for one in published_rates() if one.device == device and one.kind == "contrastive"]
        for name in names:
            band = load_profile(name).mfu.contrastive.needed()
            inside = [mfu for mfu in found if 0.95 * band.low <= mfu <= 1.05 * band.high]
            assert len(inside) >= 2 and max(found) <= 1.05 * band.high, (name, found)


def test_rates_use_the_operations_that_are_counted(rows: list[Row]) -> None:
    (note,) = {row.note for row in rows if "U-Net at 512 px, 8" in row.what}
    assert f"{SD2_GFLOPS[256]:.0f} and {SD2_GFLOPS[512]:.0f} GFLOP counted" in note


def test_claims_rest_on_printed_arithmetic() -> None:
    found = {claim.text: claim for claim in claims()}
    assert len(found) == 4 and all(claim.lines for claim in found.values())
    verdicts = [claim.verdict for claim in claims()]
    assert verdicts == ["wrong", "right", "plausible", "right in part"]
    assert any("factor of 87" in line for line in claims()[0].lines)
    assert electricity(2000, 0.4, 1.1, 0.09) == pytest.approx((7.7088, 0.6938), rel=0.001)
    assert electricity(4000, 0.68, 1.1, 0.19)[1] == pytest.approx(2 * 1.7 * electricity(2000, 0.4, 1.1, 0.19)[1])
