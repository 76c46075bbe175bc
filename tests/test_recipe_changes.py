from typing import Any

import pytest

from leam_mm.config_defaults import UNKNOWN, default_of
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.errors import UserError
from leam_mm.recipe_changes import ABSENT, Change, compare, covers, find_rule, has_key, permit, refusal, shown, table

MODEL = "leam_mm.contrastive_module.ContrastiveModule"


def config(**model: Any) -> dict[str, Any]:
    data = {"class_path": "my_lab.Data", "init_args": {"train": "a", "batch_size": 8, "seed": 1}}
    return {
        "max_samples": 80,
        "trainer": {"max_steps": 10, "devices": 1, "precision": "32-true", "callbacks": None},
        "data": data,
        "model": {"class_path": MODEL, "init_args": {"ema_decay": 0.9, **model}},
    }


def differing(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any, str]]:
    return {change.key: (change.before, change.now, change.rule) for change in compare(before, now)}


def test_equal_recipes_do_not_differ() -> None:
    assert compare(config(), config()) == []


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("data.init_args.loading.workers", "free"),
        ("trainer.devices", "free"),
        ("trainer.default_root_dir", "free"),
        ("trainer.limit_val_batches", "free"),
        ("trainer.limit_train_batches", "refused"),
        ("trainer.precision", "refused"),
        ("trainer.accumulate_grad_batches", "refused"),
        ("trainer.callbacks.SampleGrid", "free"),
        ("trainer.callbacks.Recorder.step", "free"),
        ("trainer.callbacks.Freezing.layers", "refused"),
        ("trainer.callbacks.Freezing_2", "refused"),
        ("model.init_args.encoder.init_args.init_scale", "free"),
        ("max_samples", "length"),
        ("data.init_args.batch_size", "batch"),
        ("data.init_args.train", "data"),
        ("data.init_args.train.0.weight", "data"),
        ("data.init_args.trainable", "refused"),
        ("data.init_args.my_own_option", "refused"),
        ("model.init_args.my_own_option", "refused"),
        ("model.init_args.frozen.clip", "free"),
        ("model", "locked"),
        ("seed_everything", "refused"),
    ],
)
def test_one_rule_per_key(key: str, rule: str) -> None:
    assert find_rule(key)[0] == rule


def test_a_changed_class_is_one_row_and_a_list_is_compared_by_class() -> None:
    one = {"class_path": "a.b.InfoNCE", "init_args": {"tile": 3, "smoothing": 0.1}}
    two = {"class_path": "a.b.SigmoidLoss", "init_args": {"bias": 1}}
    assert differing(config(loss=one), config(loss=two)) == {
        "model.init_args.loss": ("a.b.InfoNCE", "a.b.SigmoidLoss", "refused")
    }
    watch, freeze = ({"class_path": f"x.{name}", "init_args": {"every": 1}} for name in ("Watch", "Freezing"))
    before, now = config(), config()
    before["trainer"]["callbacks"], now["trainer"]["callbacks"] = [watch], [freeze, watch]
    assert differing(before, now) == {"trainer.callbacks.Freezing": (ABSENT, freeze, "refused")}
    now["trainer"]["callbacks"] = None
    assert differing(before, now) == {"trainer.callbacks.Watch": (watch, ABSENT, "free")}


def test_one_folder_and_a_list_of_one_are_the_same() -> None:
    now = config()
    now["data"]["init_args"]["train"] = [{"path": "b", "weight": 1.0, "language": None}]
    assert differing(config(), now) == {"data.init_args.train.0.path": ("a", "b", "data")}


def test_steps_follow_from_samples() -> None:
    now = config()
    now["trainer"]["max_steps"] = 12
    assert differing(config(), now) == {}
    before = {**config(), "max_samples": None}
    assert set(differing(before, {**now, "max_samples": None})) == {"trainer.max_steps"}


def test_an_option_that_an_earlier_version_did_not_have_is_compared_with_its_default() -> None:
    before, now = config(), config(max_scale=100.0, exchange="ring")
    found = compare(before, now, default=lambda key: default_of(now, key, ABSENT))
    assert [change.key for change in found] == ["model.init_args.exchange"]
    now = config(max_scale=50.0)
    assert [one.key for one in compare(before, now, default=lambda key: default_of(now, key, ABSENT))] == [
        "model.init_args.max_scale"
    ]
    assert compare(config(gone=None), config()) == []  # an option that was removed and not set


def test_defaults_come_from_signatures_and_dataclasses() -> None:
    assert ContrastiveModule is not None
    found = config(encoder={"class_path": "leam_mm.encoders.dual_encoder.DualEncoder", "init_args": {}})
    assert default_of(found, "model.init_args.max_scale") == 100.0
    assert default_of(found, "model.init_args.schedule.warmup_steps") == 100
    assert default_of(found, "model.init_args.layer_decay") is None
    for unknown in ("model.init_args.loss", "model.init_args.nothing", "trainer.devices", "data.init_args.seed"):
        assert default_of(found, unknown) is UNKNOWN


def test_equal_files_are_free() -> None:
    found = compare(config(tokenizer="x"), config(tokenizer="y"), same_files=lambda one, two: (one, two) == ("x", "y"))
    assert [(change.rule, change.effect) for change in found] == [("free", "the same files")]


def test_options_cover_what_is_below_them_with_or_without_init_args() -> None:
    key = "model.init_args.encoder.init_args.text.width"
    for option in (key, "model.init_args.encoder.text.width", "model.encoder", "model.init_args.encoder"):
        assert covers(option, key)
    assert not covers("model.init_args.enc", key) and not covers(f"{key}.x", key)
    assert covers("model.init_args.loss.class_path", "model.init_args.loss")
    recipe = config(encoder={"class_path": "x.Y", "init_args": {"text": {"width": 3}}})
    assert has_key(recipe, "model.init_args.encoder.text.width") and not has_key(recipe, "model.encoder.txt")


def test_refused_keys_are_named_until_they_are_permitted() -> None:
    changes = compare(config(), config(ema_decay=0.99))
    assert "model.init_args.ema_decay 0.9 -> 0.99" in str(refusal(changes, "last.ckpt"))
    permitted = permit(changes, ["model.init_args.ema_decay"], lambda key: True)
    assert permitted[0].rule == "allowed" and refusal(permitted, "last.ckpt") is None
    with pytest.raises(UserError, match=r"--allow-change model\.emma: no such key"):
        permit(changes, ["model.emma"], lambda key: False)
    locked = [Change("model", "a.B", "a.C", "locked", "another kind of model")]
    assert "another kind" in str(refusal(permit(locked, ["model"], lambda key: True), "last.ckpt"))


def test_the_table_is_aligned_and_ends_with_what_is_free() -> None:
    changes = [
        Change("threads", 1, 22, "free", "speed"),
        Change("max_samples", 12800, 25600, "length", "schedule of the new length"),
    ]
    assert table(changes).splitlines() == [
        "key         | run    | now    | effect",
        "max_samples | 12,800 | 25,600 | schedule of the new length",
        "threads     | 1      | 22     | free: speed",
    ]
    assert shown({"class_path": "a.b.Loss", "init_args": {}}) == "Loss" and shown("a.b.Loss") == "Loss"
    assert shown("/very/long" * 20).startswith("...") and len(shown("/very/long" * 20)) == 60
    assert len(shown([1] * 200)) == 60 and shown("configs/x.yaml") == "configs/x.yaml" and shown(None) == "None"
