"""SamplerSettings: ranges, words, arguments of a generator, and a recipe's old keys."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from leam_mm.audits.audit import Audit
from leam_mm.audits.energy import Energy
from leam_mm.audits.near_copies import NearCopies
from leam_mm.callbacks.sample_grid import SampleGrid
from leam_mm.config_error import explain, moved_option
from leam_mm.diffusion.guidance import Guidance
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.compositional import Compositional
from leam_mm.evaluators.evaluator import Evaluator
from leam_mm.evaluators.generation import Generation
from leam_mm.intervals.compared_results import other_settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "sampling: steps is 0"),
        ({"guidance": -1.0}, "sampling: guidance is -1.0"),
        ({"guidance": float("nan")}, "sampling: guidance is nan"),
        ({"guidance": Guidance(float("inf"))}, "sampling: guidance is inf"),
        ({"method": "magic"}, "sampling: method is 'magic'; give one of euler, heun, dpm, sde"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("'", ".")):
        SamplerSettings(**given)


def test_words_and_arguments_leave_the_method_to_the_generator() -> None:
    assert str(SamplerSettings(20, 3.0)) == "20 steps, guidance 3.0"
    assert SamplerSettings(20, 3.0).arguments() == {"steps": 20, "guidance": 3.0}
    guided = SamplerSettings(5, Guidance(2.0, low=0.1), "heun")
    assert guided.arguments() == {"steps": 5, "guidance": Guidance(2.0, low=0.1), "method": "heun"}
    assert str(guided).startswith("5 steps, guidance Guidance(scale=2.0, low=0.1") and str(guided).endswith(", heun")
    with pytest.raises(dataclasses.FrozenInstanceError):
        guided.steps = 6  # type: ignore[misc]


def parsed(kind: type, content: dict[str, Any], tmp_path: Path) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=kind)
    (tmp_path / "part.json").write_text(json.dumps({"part": content}))
    return parser.instantiate(parser.parse_path(str(tmp_path / "part.json"))).part


@pytest.mark.parametrize(
    ("kind", "path", "init_args", "defaults"),
    [
        (Evaluator, "leam_mm.evaluators.compositional.Compositional", {"scenes": "x"}, (20, 3.0)),
        (Audit, "leam_mm.audits.energy.Energy", {}, (28, 4.0)),
    ],
)
def test_a_recipe_states_some_fields_and_the_class_has_the_others(
    kind: type, path: str, init_args: dict[str, Any], defaults: tuple[int, float], tmp_path: Path
) -> None:
    def sampling(**given: Any) -> SamplerSettings:
        part = parsed(kind, {"class_path": path, "init_args": {**init_args, "sampling": given}}, tmp_path)
        found: SamplerSettings = part.sampling
        return found

    assert sampling(steps=7) == SamplerSettings(7, defaults[1])
    assert sampling(guidance={"scale": 2.0, "low": 0.2}, method="sde") == SamplerSettings(
        defaults[0], Guidance(2.0, low=0.2), "sde"
    )
    assert sampling() == SamplerSettings(*defaults)


def test_no_evaluator_audit_or_callback_takes_the_fields_apart() -> None:
    for kind in (Generation, Compositional, NearCopies, Energy, SampleGrid):
        names = inspect.signature(kind).parameters
        assert "sampling" in names and not {"steps", "guidance", "method"} & set(names)


@pytest.mark.parametrize(("key", "value"), [("steps", 20), ("guidance", 3.0)])
def test_a_key_of_an_older_recipe_names_the_new_one(key: str, value: float, tmp_path: Path) -> None:
    path = "leam_mm.evaluators.compositional.Compositional"
    with pytest.raises(Exception, match="is not accepted") as caught:
        parsed(Evaluator, {"class_path": path, "init_args": {"scenes": "x", key: value}}, tmp_path)
    assert moved_option(str(caught.value)) == f"write sampling: {{{key}: ...}} in its place"
    assert explain(str(caught.value), ["--config", "x.yaml"]).endswith(f"write sampling: {{{key}: ...}} in its place")
    assert moved_option("class_path 'leam_mm.optim.schedule.Schedule': Option 'steps' is not accepted") == ""
    assert moved_option(f"class_path '{path}': Option 'other' is not accepted") == ""


def test_results_of_both_forms_of_settings_are_compared() -> None:
    old: dict[str, Any] = {"settings": {"steps": 20, "guidance": 3.0, "seed": 0}}
    new: dict[str, Any] = {
        "settings": {
            "sampling": {"class": "leam_mm.diffusion.sampler_settings.SamplerSettings", "steps": 20, "guidance": 3.0,
                         "method": None},
            "seed": 0,
        }
    }  # fmt: skip
    assert other_settings(old, new) == [] and other_settings(new, old) == []
    new["settings"]["sampling"]["method"] = "heun"
    assert other_settings(old, new) == ["method"]
    old["settings"]["steps"] = 10
    assert other_settings(old, new) == ["steps", "method"]
