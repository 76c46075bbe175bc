"""Print what a profile knows about a machine, with source, date and status; without a name, list the profiles."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape

from leam_mm.command_line import parse_settings
from leam_mm.planning.cluster_profile import load_profile, profile_names


@dataclass(frozen=True)
class ClustersSettings:
    """Settings of clusters.

    Args:
        names: Names of profiles, or paths of your own.
    """

    names: list[str] = field(metadata={"nargs": "*"})


def main(args: list[str]) -> None:
    """Run the program."""
    program = "python -m leam_mm.launch clusters"
    names = parse_settings(ClustersSettings, __doc__, args, ("names",), program).names
    console = Console(soft_wrap=True, highlight=False)
    if not names:
        for each in profile_names():
            console.print(f"{each:18}{escape(load_profile(each).title)}")
        return
    for profile in map(load_profile, names):
        console.print(f"[bold]{escape(profile.title)}[/bold]")
        for key, fact in profile.facts():
            about = f"  [dim]{escape(fact.source)}, {fact.date}[/dim]" if fact.known else ""
            console.print(f"{key:30}{escape(str(fact))}{about}")
