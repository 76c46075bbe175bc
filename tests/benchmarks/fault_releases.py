"""The programs after training that ``faults`` breaks: evaluation, audits, report, release, signature, publication.

What differs between undisturbed runs, and is left out of the digests:

- results.jsonl: the seconds and the time of each line. Audits append their lines again; the newest of a name counts.
- report.html and the published index.html: the time in the footer and the date of a version. The report's copies of
  generated images, which are signed with a time; the pixels of the images themselves are compared.
- model.sig: an ECDSA signature is a random one. Who signed is compared.

A release has the time of its build, which SOURCE_DATE_EPOCH fixes; then all its bytes are compared. It also records the
commit of the code: nothing may be committed while the benchmark runs.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fault_programs import Program

from leam_mm.files import TEMPORARY, bytes_sha256, file_sha256

TIMES = re.compile(rb"\d{1,2} \w+ \d{4}, \d\d:\d\d UTC|\d\d\.\d\d\.\d{4}, \d\d:\d\d UTC|\d{4}-\d\d-\d\d")
COPIES = re.compile(rb"data:image/png;base64,[A-Za-z0-9+/=]+")
PAGES = ("report.html", "report.de.html")  # in the order of writing
OLDER = {"name": "older/value", "evaluator": "older", "value": 1.0, "low": None, "high": None, "samples": 1}


def digest_page(path: Path) -> str:
    """Digest of a page without its times and its copies of images."""
    return bytes_sha256(COPIES.sub(b"", TIMES.sub(b"", path.read_bytes())))


def digest_pages(output: Path) -> list[str]:
    """Digests of the report in both languages."""
    return [digest_page(output / name) for name in PAGES if (output / name).exists()]


def digest_results(output: Path, newest: bool) -> list[str]:
    """Digests of the lines of each evaluator or audit, and of the report with the images."""
    from PIL import Image

    from leam_mm.evaluators.results import RESULTS, read_lines, read_results

    groups: dict[str, list[dict[str, Any]]] = {}
    for row in read_results(output).values() if newest else read_lines(output / RESULTS):
        kept = {key: value for key, value in row.items() if key not in ("seconds", "time")}
        groups.setdefault(str(row["evaluator"]), []).append(kept)
    images = hashlib.sha256()
    for path in sorted(output.rglob("*.png")):  # each is whole, also when the report is not yet written
        with Image.open(path) as image:
            images.update(image.convert("RGB").tobytes())
    rows = [bytes_sha256(json.dumps(group).encode()) for group in groups.values()]
    return [*rows, *(f"{page} {images.hexdigest()}" for page in digest_pages(output))]


def digest_tree(folder: Path, without: tuple[str, ...] = ()) -> str:
    """Digest of the names and contents of all finished files below a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without)
    found = [path for path in found if TEMPORARY not in path.name]
    return bytes_sha256("".join(f"{path.relative_to(folder)} {file_sha256(path)}\n" for path in found).encode())


def digest_release(output: Path) -> list[str]:
    """Digest of a release, with all its bytes."""
    return [digest_tree(output)] if output.exists() else []


def digest_signed(output: Path, keys: dict[str, Path]) -> list[str]:
    """Digest of a release without its signature, and whose signature it has.

    Args:
        output: The release.
        keys: Public keys by the name of their owner.
    """
    from leam_mm.release.verify_release import verify_release
    from leam_mm.release_record import SIGNATURE

    found = {owner: verify_release(output, key).faults for owner, key in keys.items()}
    signers = [owner for owner, faults in found.items() if all(TEMPORARY in fault.line for fault in faults)]
    return [digest_tree(output, (SIGNATURE,)), *signers]


def digest_published(output: Path, version: str) -> list[str]:
    """Digests of the older version, of the new one once it is complete, of the list, of the page and of the newest."""
    from leam_mm.release.publish_folder import INDEX, LATEST, UNFINISHED, VERSIONS
    from leam_mm.release_record import RELEASE

    new = output / version
    complete = digest_tree(new, (UNFINISHED,)) if (new / RELEASE).exists() else "not published"
    pages = [digest_page(output / name) for name in (VERSIONS, INDEX, LATEST)]
    return [digest_tree(output / "older"), complete, *pages]


def report(words: list[str]) -> None:
    """Call the report's program, which reads the command line of its process."""
    from leam_mm.report import report_page

    sys.argv = ["report_page", *words]
    report_page.main()


def later_programs(folder: Path) -> dict[str, Program]:
    """Write toy runs, a release and a mirror, and return the programs that come after training.

    ``sign`` is among them if model-signing is installed.
    """
    import yaml
    from toys.built_releases import build_release, write_keys
    from toys.releases import BUILD
    from toys.shards import write_toy_tokenizer

    import evaluate
    from leam_mm.controls.control_shards import write_control_shards
    from leam_mm.release import __main__ as release

    os.environ |= {"SOURCE_DATE_EPOCH": "1764547200", "XDG_CONFIG_HOME": str(folder / "config")}  # the key of images
    root = folder / "run"
    built = build_release(root, write_toy_tokenizer(folder / "tokenizer"))
    (older := folder / "older").mkdir()
    (older / "results.jsonl").write_text(json.dumps(OLDER) + "\n")
    prompts = [{"language": code, "text": text} for code, text in (("en", "a red square"), ("de", "Quadrat, rot"))]
    (folder / "prompts.json").write_text(json.dumps({"prompts": prompts}))
    shards, sampling = str(root / "shards"), {"steps": 2}
    evaluators = {
        "retrieval.Retrieval": {"shards": shards, "languages": ["en", "de"]},
        "generation.PromptGrid": {"prompts": str(folder / "prompts.json"), "sampling": sampling},
    }
    parts = [{"class_path": f"leam_mm.evaluators.{name}", "init_args": given} for name, given in evaluators.items()]
    models = {"clip": str(root / "clip"), "generator": str(root / "generator"), "codec": str(root / "codec")}
    (folder / "evaluate.yaml").write_text(yaml.safe_dump({"evaluators": parts, **models, "device": "cpu"}))
    data = str(write_control_shards(folder / "control", samples=8))
    audits = [
        {"class_path": "leam_mm.audits.opt_out.OptOut", "init_args": {"today": "2026-12-01"}},
        {"class_path": "leam_mm.audits.provenance.Provenance", "init_args": {"further": [], "recompute": 4}},
        {"class_path": "leam_mm.audits.personal_data.PersonalData"},
        {"class_path": "leam_mm.audits.openness.Openness"},
    ]
    (folder / "audit.yaml").write_text(yaml.safe_dump({"audits": audits, "shards": data, "device": "cpu"}))
    (root / "evaluation").mkdir()
    shutil.copy(root / "results.jsonl", root / "evaluation")
    keys = {owner: write_keys(folder / owner, seed) for seed, owner in enumerate(("new", "old"), start=1)}
    publics = {owner: public for owner, (_, public) in keys.items()}
    signed = Path(shutil.copytree(built, folder / "signed"))
    if signing := find_spec("model_signing") is not None:
        release.main(["sign", str(signed), "--private-key", str(keys["old"][0])])
    mirror = folder / "mirror"
    release.main(["publish", str(signed), "--to", str(mirror), "--version", "older"])

    def build(output: Path) -> list[str]:
        words = [*BUILD, "--name", "lab/new", "--output", output, "--results", root / "results.jsonl"]
        words += [word for kind, path in models.items() for word in (f"--{kind}", path)]
        return list(map(str, [*words, "--shards", shards]))

    def measure(name: str, output: Path) -> list[str]:
        return ["--config", str(folder / f"{name}.yaml"), "--output", str(output)]

    def publish(output: Path) -> list[str]:
        return ["publish", str(built), "--to", str(output), "--version", "new"]

    programs = {
        "evaluate": Program(
            evaluate.main,
            lambda output: [*measure("evaluate", output), "--resume", "true"],
            lambda output: digest_results(output, newest=False),
            older=older, added=True, replaces=10,
        ),
        "audit": Program(
            evaluate.main,
            lambda output: ["audit", *measure("audit", output)],
            lambda output: digest_results(output, newest=True),
            older=older, added=True, replaces=6,
        ),
        "report": Program(
            report,
            lambda output: ["--run", str(root), "--output", str(output / "report.html")],
            digest_pages,
            replaces=2,
        ),
        "release": Program(release.main, build, digest_release, older=built),
        "sign": Program(
            release.main,
            lambda output: ["sign", str(output), "--private-key", str(keys["new"][0])],
            lambda output: digest_signed(output, publics),
            older=signed, added=True, replaces=1,
        ),
        "publish": Program(
            release.main, publish, lambda output: digest_published(output, "new"), older=mirror, added=True, replaces=30
        ),
    }  # fmt: skip
    return programs if signing else {name: program for name, program in programs.items() if name != "sign"}
