"""The energy section of a recipe from a cluster's profile, so that a run records its emissions."""

from typing import Any

from leam_mm.launch.resolved_recipe import ResolvedRecipe
from leam_mm.planning.cluster_sections import Site
from leam_mm.planning.fact import Fact


def energy_words(site: Site, recipe: ResolvedRecipe) -> tuple[str, ...]:
    """Return the options ``--energy.*`` of train.py.

    Args:
        site: The site's part of the profile; what is not known there is left out.
        recipe: The resolved recipe. If it gives any of the factors, nothing is added, so that two sources never mix.
    """
    facts: dict[str, Fact[Any]] = {
        "grams_per_kwh": site.grid_grams_per_kwh,
        "market_grams_per_kwh": site.market_grams_per_kwh,
        "pue": site.pue,
    }
    known = {name: fact for name, fact in facts.items() if fact.known}
    if not known or any(recipe.at(f"energy.{name}") is not None for name in facts):
        return ()
    source = "; ".join(f"{name}: {fact.source}, {fact.date}, {fact.status}" for name, fact in known.items())
    return (*(f"--energy.{name}={fact.value}" for name, fact in known.items()), f"--energy.source={source}")
