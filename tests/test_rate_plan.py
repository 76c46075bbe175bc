"""Learning rates of changed runs against closed forms."""

import math

import pytest

from leam_mm.errors import UserError
from leam_mm.optim.rate_plan import Hold, RatePlan, read_plan, read_schedule
from leam_mm.optim.schedule import Cooldown, Schedule

COSINE = Schedule(warmup_steps=10, final_rate=0.1)


def test_a_plan_of_one_batch_size_is_the_schedule_to_the_last_bit() -> None:
    for schedule in (COSINE, Schedule(3, "constant"), Schedule(3, "constant", 0.2, Cooldown(7))):
        plan = RatePlan(unit=48, total=48 * 40)
        assert [plan.share(schedule, 48 * step) for step in range(45)] == [schedule.factor(s, 40) for s in range(45)]


def test_the_rate_of_a_sample_does_not_depend_on_the_batch() -> None:
    plan = RatePlan(unit=10, total=1000)
    for seen in (103, 250, 999):
        progress = (seen / 10 - 10) / 90
        assert plan.share(COSINE, seen) == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * progress)))
    assert plan.share(COSINE, 97) == 1.0  # the warm-up does not overshoot between two of its steps


def test_constant_and_cooldown_keep_the_rate_of_the_last_step() -> None:
    old = RatePlan(10, 1000)
    kept = old.share(COSINE, 990)
    constant = old.extended("constant", COSINE, 1000, 990, 2000)
    assert {constant.share(COSINE, seen) for seen in range(1000, 2001, 5)} == {kept}
    cooldown = old.extended("cooldown", COSINE, 1000, 990, 2000)
    assert cooldown.hold == Hold(1000, kept, 200, 0.1)
    assert {cooldown.share(COSINE, seen) for seen in range(1000, 1801, 5)} == {kept}
    floor = min(0.1, kept)
    for seen in (1850, 1900, 2000):
        expected = floor + (kept - floor) * (1 - math.sqrt((seen - 1800) / 200))
        assert cooldown.share(COSINE, seen) == pytest.approx(expected)


def test_an_extension_during_warm_up_completes_it() -> None:
    plan = RatePlan(10, 1000).extended("constant", COSINE, 50, 40, 2000)
    assert plan.share(COSINE, 50) == pytest.approx(0.6) and plan.share(COSINE, 100) == 1.0 == plan.share(COSINE, 1990)


def test_the_recipe_states_the_cool_down() -> None:
    schedule = Schedule(10, "constant", cooldown=Cooldown(20, "linear"))
    plan = RatePlan(10, 1000).extended("cooldown", schedule, 500, 490, 2000)
    assert plan.hold == Hold(500, 1.0, 200, 0.0, "linear") and plan.share(schedule, 1900) == pytest.approx(0.5)
    with pytest.raises(UserError, match="a cool-down of 600 samples does not fit into the 500"):
        RatePlan(10, 1000).extended("cooldown", schedule, 500, 490, 1000, cooldown=600)


def test_a_rate_of_zero_is_not_kept() -> None:
    plan = RatePlan(10, 1000)
    with pytest.raises(UserError, match="is 0, so --extend constant would learn nothing: give --extend schedule"):
        plan.extended("constant", Schedule(0), 1010, 1000, 2000)


@pytest.mark.parametrize(
    ("schedule", "seen", "agrees"),
    [
        (COSINE, 100, True),  # in warm-up the past is the same
        (COSINE, 110, False),
        (Schedule(10, "constant"), 900, True),
        (Schedule(10, "constant", cooldown=Cooldown(20)), 800, True),
        (Schedule(10, "constant", cooldown=Cooldown(20)), 810, False),
    ],
)
def test_no_choice_is_needed_where_the_past_is_that_of_the_longer_run(
    schedule: Schedule, seen: int, agrees: bool
) -> None:
    old, new = RatePlan(10, 1000), RatePlan(10, 2000)
    assert old.agrees(schedule, seen, 2000) == agrees
    past = range(0, seen + 1, 10)
    assert all(old.share(schedule, n) == new.share(schedule, n) for n in past) == agrees


def test_records_come_back_and_strange_ones_are_refused() -> None:
    for plan in (RatePlan(8, None), RatePlan(8, 80), RatePlan(8, 80, Hold(16, 0.5, 8, 0.1, "linear"))):
        assert read_plan(plan.record()) == plan
    hold = Hold(16, 0.5).__dict__
    strange: tuple[object, ...] = (
        *({}, {"unit": 0, "total": 1, "hold": None}, {"unit": 8, "total": "9", "hold": None}, None, []),
        *({"unit": 8, "total": 9, "hold": {**hold, more: value}} for more, value in (("share", 7), ("shape", "x"))),
        {"unit": 8, "total": 9, "hold": {**hold, "more": 1}},
    )
    for record in strange:
        with pytest.raises(UserError, match="cannot be read"):
            read_plan(record)


def test_only_our_schedule_is_read() -> None:
    assert read_schedule({"warmup_steps": 3, "kind": "cosine", "final_rate": 0.0, "cooldown": None}) == Schedule(3)
    section = {"warmup_steps": 3, "kind": "constant", "final_rate": 0.0, "cooldown": {"steps": 4, "shape": "linear"}}
    assert read_schedule(section) == Schedule(3, "constant", 0.0, Cooldown(4, "linear"))
    for other in (None, 3, {}, {"class_path": "my_lab.Schedule"}, {**section, "kind": "cosine"}, {"kind": 1, "x": 2}):
        assert read_schedule(other) is None
