"""Train an encoder, a codec or a generator from one complete YAML.

python train.py fit --config configs/scenes_clip.yaml                      # one machine, starts or resumes
python train.py fit --config configs/scenes_clip.yaml --print_config       # all resolved settings, without training
python train.py fit --config configs/scenes_clip.yaml --model.init_args.optimizer.init_args.lr 3e-4
python train.py fit --config RECIPE.yaml --config configs/overlay_two_ranks.yaml
python -m leam_mm.launch submit --cluster CLUSTER --nodes 4 RECIPE.yaml     # on a cluster, see docs/clusters.md
python train.py validate --config RECIPE.yaml --ckpt_path RUN/checkpoints/last.ckpt
"""

import sys

from leam_mm.early_signals import note_early_signals
from leam_mm.errors import run


def main() -> None:
    """Train or validate. The import is here, because it takes seconds in which a signal may arrive."""
    from leam_mm.cli import main as command_line

    command_line()


if __name__ == "__main__":
    if "fit" in sys.argv:
        note_early_signals()  # before run, which leaves signals alone that have a handler
    run(main)
