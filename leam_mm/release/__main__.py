r"""Make, check, sign, publish, compare and serve a release folder of trained models.

    python -m leam_mm.release init --output release.yaml
    python -m leam_mm.release build --publisher release.yaml --clip runs/quickstart/clip \
        --generator runs/quickstart/generator \
        --name quickstart --output runs/quickstart/release --results runs/quickstart/evaluation/results.jsonl \
        --shards runs/quickstart/shards/train
    python -m leam_mm.release verify runs/quickstart/release
    python -m leam_mm.release sign runs/quickstart/release --private-key private_key.pem
    python -m leam_mm.release publish runs/quickstart/release --to mirror --version 1.0
    python -m leam_mm.release compare mirror/0.9 mirror/1.0 --output comparison.html
    python -m leam_mm.release serve runs/quickstart/release

Each command is a dataclass of options and a function in a file of its own.
"""

import logging

from leam_mm.errors import end_at_interrupt, run

if __name__ == "__main__":
    end_at_interrupt()  # the imports below take seconds

from leam_mm.command_line import Command, run_command
from leam_mm.release.build_command import BuildOptions, build
from leam_mm.release.compare_command import CompareOptions, compare
from leam_mm.release.init_command import InitOptions, init
from leam_mm.release.publish_command import PublishOptions, publish
from leam_mm.release.serve_verified import serve_verified
from leam_mm.release.sign_command import SignOptions, sign
from leam_mm.release.verify_command import VerifyOptions, verify
from leam_mm.serving.serve_command import ServeOptions

COMMANDS = {
    "init": Command(InitOptions, init),
    "build": Command(BuildOptions, build),
    "verify": Command(VerifyOptions, verify, ("folder",)),
    "sign": Command(SignOptions, sign, ("folder",)),
    "publish": Command(PublishOptions, publish, ("folder",)),
    "compare": Command(CompareOptions, compare, ("a", "b")),
    "serve": Command(ServeOptions, serve_verified, ("folder",)),
}


def main(args: list[str] | None = None) -> None:
    """Run a command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    run_command(COMMANDS, __doc__, args)


if __name__ == "__main__":
    run(main)
