"""Submit runs to a cluster, follow, stop and resume them, and examine its nodes.

python -m leam_mm.launch submit --cluster lumi_g --nodes 16 --time 24h --account PROJECT configs/clip_vit_b16.yaml
python -m leam_mm.launch submit --cluster lumi_g --nodes 16 configs/clip_vit_b16.yaml --dry-run
python -m leam_mm.launch sweep --cluster lumi_g --nodes 1 --overrides sweep.yaml configs/clip_vit_b16.yaml
python -m leam_mm.launch status RUN
python -m leam_mm.launch logs RUN --follow
python -m leam_mm.launch stop RUN
python -m leam_mm.launch resume RUN
python -m leam_mm.launch clusters lumi_g
srun python -m leam_mm.launch doctor --cluster lumi_g --run RUN

Each command has its own --help. docs/clusters.md describes the profiles in configs/clusters.
"""

import importlib
import sys

from leam_mm.errors import UserError, run

COMMANDS = {
    "submit": "submit",
    "sweep": "sweep",
    "status": "run_status",
    "logs": "run_logs",
    "stop": "run_stop",
    "resume": "run_stop:resume",
    "clusters": "show_profile",
    "doctor": "doctor",
}


def main(args: list[str] | None = None) -> None:
    """Run the command that the first word names."""
    words = sys.argv[1:] if args is None else args
    command = words[0] if words else "--help"
    if command in ("-h", "--help"):
        print(f"usage: python -m leam_mm.launch {{{','.join(COMMANDS)}}} ...\n\n{(__doc__ or '').strip()}")
        return
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}: the first word must be one of {', '.join(COMMANDS)}")
    module, _, name = COMMANDS[command].partition(":")
    getattr(importlib.import_module(f"leam_mm.launch.{module}"), name or "main")(words[1:])


if __name__ == "__main__":
    run(main)
