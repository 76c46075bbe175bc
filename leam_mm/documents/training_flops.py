"""Training compute of a finished run, estimated from the settings in its checkpoint and the samples it saw."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from leam_mm.errors import UserError, one_line
from leam_mm.planning.recipe_file import check_types
from leam_mm.planning.recipe_work import recipe_work

log = logging.getLogger(__name__)


def training_flops(
    recipe: Mapping[str, Any], samples: int | None, changes: Sequence[Mapping[str, Any]] = ()
) -> tuple[float | None, list[str]]:
    """Estimate the training compute of a run, recomputed activations included.

    Args:
        recipe: The resolved settings of the run.
        samples: Samples seen.
        changes: What was changed when the run was resumed.

    Returns:
        FLOP and what the estimate assumes; None and the reason where it cannot be counted.
    """
    if samples is None:
        return None, ["the checkpoint does not say how many samples it saw"]
    if not all(isinstance(recipe.get(section), dict) for section in ("model", "data")):
        return None, ["the checkpoint holds no complete settings"]
    try:
        check_types(recipe, "settings of the checkpoint")
        work = recipe_work(recipe, samples)
    except UserError as error:
        log.warning("training compute is not counted: %s", one_line(error))
        return None, [one_line(error)]
    except (ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} while the operations were counted"
        log.warning("training compute is not counted: %s: %s", reason, error)
        return None, [reason]
    notes = [*work.assumptions]
    if changes:
        notes.append("the settings were changed during training; the last ones are counted")
    return float(work.hardware_flops), notes
