"""Facts and publisher's fields of releases for tests of documents."""

from datetime import date
from pathlib import Path

from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.publisher import PublisherFields, Text
from leam_mm.documents.release_facts import DataFacts, ReleaseFacts, StageFacts
from leam_mm.documents.training_content import TrainingContent, count_training_content
from toys.pages import ENERGY_RECORD, metric_row
from toys.published import write_published

HOSTILE = '<script>alert(1)</script>|`x` ![a](http://b.example) "><img src=x>\n# heading ~~x~~\u202e'
# The command ``release build`` with reasons for the audits that toys do not have.
BUILD = ("build", "--publisher", str(Path(__file__).parent / "release.yaml"))
FILES = {
    "open_clip_model.safetensors": "1" * 64,
    "model.safetensors": "2" * 64,
    "transformer/diffusion_pytorch_model.safetensors": "3" * 64,
    "vae/diffusion_pytorch_model.safetensors": "4" * 64,
    "configs/clip.yaml": "5" * 64,
    "results.jsonl": "6" * 64,
    "LICENSE": "7" * 64,
}


def counted_content(folder: Path) -> TrainingContent:
    """Counts of 23 images of five domains."""
    found = count_training_content([write_published(folder)])
    assert found is not None
    return found


def release_facts(content: TrainingContent | None = None, name: str = "lakes", **more: object) -> ReleaseFacts:
    """A release of an encoder, a generator and a codec that was taken over."""
    root, data = "cd" * 32, []
    if content is not None:
        folder = ShardFolder(content.folders[0])
        root = folder.merkle_root
        counts = ({"CC0-1.0": folder.samples}, {"public_domain": folder.samples}, {"en": folder.samples})
        data = [DataFacts("shards", root, folder.samples, *counts)]
    versions = {"torch": "2.10.0", "diffusers": "0.42.0"}
    metrics = [
        metric_row("scenes/top1/de", checkpoints={"clip": {"sha256": "a" * 64}}),
        metric_row("scenes/top1/mt", None, low=None, high=None, checkpoints={"clip": {"sha256": "a" * 64}}),
        metric_row("audit/languages", 0.9, slices={"language=mt": {"value": 0.7, "low": 0.6, "high": 0.8}}),
    ]
    stages = [
        StageFacts("clip", 1234567, 640, "ab" * 32, {root: "shards"}, ENERGY_RECORD, versions, flops=1.5e15),
        StageFacts("generator", 7654321, 640, "ac" * 32, {root: "shards"}, None, versions),
        StageFacts("codec", 54321, None, "ad" * 32, {}, None, {}, {"weights": "org/vae", "sha256": "b" * 64}),
    ]
    values = {
        "name": name, "licence": "Apache-2.0", "image_size": 32, "context_length": 12, "stages": stages, "data": data,
        "metrics": metrics, "generated_size": 64, "files": FILES, "content": content,
    }  # fmt: skip
    return ReleaseFacts(**(values | more))  # type: ignore[arg-type]


def publisher_fields(text: str = "A lake office") -> PublisherFields:
    """A publisher who answers most questions; ``text`` stands in the fields of free text."""
    both = Text({"en": [text], "de": [text]})
    return PublisherFields(
        provider_name=text, contact_email="lakes@example.org", address=text, homepage="https://lakes.example",
        version="1.2", release_date=date(2026, 12, 1), eu_placement_date=date(2026, 12, 2), complaint_address=text,
        intended_uses=both, out_of_scope_uses=both, rights_measures=both, known_limits=both, user_data_used=False,
        code_of_practice_signatory=False, data_sets={"shards": "https://lakes.example/data"}, policy_contact=text,
    )  # fmt: skip
