"""clip-benchmark loads the encoder of a release and gives evaluate.py's zero-shot numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.encoders import tiny_clip
from toys.images import encoded_image
from toys.runs import run_without_us

from leam_mm.data.shard_index import ShardWriter
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.zero_shot import ZeroShot
from leam_mm.release.encoder_folder import write_encoder

NAMES = ["red", "vert", "blau", "żółty", "l’eau", "grey", "μαύρο"]
TEMPLATES = ["{}", "a {} thing"]
MEASURE = """
import json, torch
from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier
from clip_benchmark.models import load_clip
from PIL import Image
names, templates, labels = json.load(open("classes.json"))
model, transform, tokenizer = load_clip("open_clip", "local-dir:release", pretrained=None, cache_dir=None, device="cpu")

class Images(torch.utils.data.Dataset):
    classes = names
    def __len__(self):
        return len(labels)
    def __getitem__(self, number):
        return transform(Image.open(f"{number}.png")), labels[number]

templates = [template.replace("{}", "{c}") for template in templates]
loader = torch.utils.data.DataLoader(Images(), batch_size=16)
classifier = zero_shot_classifier(model.eval(), tokenizer, names, templates, "cpu", amp=False)
logits, target = run_classification(model, classifier, loader, "cpu", amp=False)
# Its own `accuracy` takes an array for a number, which NumPy 2.4 refuses.
right = [(logits.topk(k).indices == target[:, None]).any(dim=1).double().mean().item() for k in (1, 5)]
print("ANSWER", *right)
"""


def test_its_zero_shot_numbers_are_ours(toy_tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("clip_benchmark")
    module = tiny_clip(toy_tokenizer)
    write_encoder(module, tmp_path / "release", "lab/model")  # type: ignore[arg-type]
    generator, labels = np.random.default_rng(0), [number % len(NAMES) for number in range(70)]
    with ShardWriter(tmp_path / "test", 100) as writer:
        for number, label in enumerate(labels):
            base = generator.integers(0, 256, (4, 5, 3), np.uint8)
            image = Image.fromarray(base).resize((45, 36), Image.Resampling.BICUBIC)
            image.save(tmp_path / f"{number}.png")
            record = {"captions": [], "metadata": {"class_id": f"c{label}"}}
            writer.write(f"{number:04d}", {"png": encoded_image(image), "json": json.dumps(record).encode()})
    (tmp_path / "classes.json").write_text(json.dumps([NAMES, TEMPLATES, labels]))
    classes = tmp_path / "ours.json"
    language = {"templates": TEMPLATES, "names": {f"c{number}": [name] for number, name in enumerate(NAMES)}}
    ids = list(language["names"])
    classes.write_text(json.dumps({"classes": ids, "languages": {"en": language}}))
    measured = ZeroShot(tmp_path / "test", classes, batch_size=16, name="toy").run(
        EvaluationContext(tmp_path / "release", None, tmp_path)
    )
    ours = {metric.name: metric.value for metric in measured}
    printed = run_without_us(MEASURE, tmp_path)
    top1, top5 = (float(word) for word in printed[printed.index("ANSWER") :].split()[1:3])
    assert 0 < top1 < top5 < 1  # random weights: neither all right nor all wrong
    assert top1 == pytest.approx(ours["toy/top1/en"], abs=1e-9)
    assert top5 == pytest.approx(ours["toy/top5/en"], abs=1e-9)
