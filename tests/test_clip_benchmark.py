"""clip-benchmark measures our encoders, as a library and by its own command, and gives evaluate.py's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.encoders import tiny_clip
from toys.images import encoded_image
from toys.runs import run_without_us

from evaluate import main
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


# NumPy 2.4 refuses an array of one element for a number, which its `accuracy` relies on: the same count without that.
COMMAND = """
import json, sys
import numpy
from clip_benchmark import cli
from clip_benchmark.metrics import zeroshot_classification

def accuracy(output, target, topk=(1,)):
    chosen = output.topk(max(topk), 1, True, True).indices
    return [(chosen[:, :k] == target[:, None]).any(dim=1).double().mean().item() for k in topk]

if numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0":
    zeroshot_classification.accuracy = accuracy
sys.argv = ["clip_benchmark", *json.load(open("words.json"))]
cli.main()
"""


def their_command(here: Path, folder: str, task: str, *words: str) -> dict[str, float]:
    """What `clip_benchmark eval` measures on a folder of tars, without our package and without a network."""
    command = f"eval --dataset wds/{folder} --dataset_root {folder} --model local-dir:release --task {task} --no_amp"
    more = ["--pretrained", "", "--num_workers", "0", "--output", "theirs.json", *words]
    (here / "words.json").write_text(json.dumps([*command.split(), *more]))
    run_without_us(COMMAND, here)
    return json.loads((here / "theirs.json").read_text())["metrics"]


def ours_of(here: Path, images: str, *words: str) -> dict[str, float]:
    main(["encoder", "--model", str(here / "release"), "--images", str(here / images),
          "--output", str(here / f"ours_{images}"), *words])  # fmt: skip
    lines = (here / f"ours_{images}/results.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["name"]: row["value"] for row in map(json.loads, lines)}


def noise(generator: np.random.Generator) -> bytes:
    base = generator.integers(0, 256, (4, 5, 3), np.uint8)
    return encoded_image(Image.fromarray(base).resize((45, 36), Image.Resampling.BICUBIC))


def test_its_command_gives_our_numbers_on_classes(toy_tokenizer: Path, tmp_path: Path) -> None:
    """Class sub-folders, and the folder of tars that we write of them."""
    pytest.importorskip("clip_benchmark")
    write_encoder(tiny_clip(toy_tokenizer), tmp_path / "release", "lab/model")  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    for number in range(90):
        folder = tmp_path / "images" / NAMES[min(number % 10, 6)]  # classes of different size
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(noise(generator))
    main(["benchmark_folder", "--images", str(tmp_path / "images"), "--output", str(tmp_path / "tars")])
    ours, read_back = (ours_of(tmp_path, name, "--measure", "zero_shot") for name in ("images", "tars"))
    theirs = their_command(tmp_path, "tars", "zeroshot_classification")
    assert ours == read_back
    assert 0 < theirs["acc1"] < theirs["acc5"] < 1 and theirs["acc1"] != theirs["mean_per_class_recall"]
    for name, key in (("top1", "acc1"), ("top5", "acc5"), ("mean_per_class", "mean_per_class_recall")):
        assert ours[f"zero_shot/{name}/en"] == pytest.approx(theirs[key], abs=1e-9), name


def test_its_command_gives_our_numbers_on_captions(toy_tokenizer: Path, tmp_path: Path) -> None:
    """Shards with two German captions an image, and the folder of tars that we write of them."""
    pytest.importorskip("clip_benchmark")
    write_encoder(tiny_clip(toy_tokenizer), tmp_path / "release", "lab/model")  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    with ShardWriter(tmp_path / "shards", 30) as writer:
        for number in range(60):
            texts = [f"{number} {word}" for word in ("rot", "blau")]
            record = {"captions": [{"text": text, "language": "de"} for text in texts]}
            writer.write(f"{number:04d}", {"png": noise(generator), "json": json.dumps(record).encode()})
    main(["benchmark_folder", "--images", str(tmp_path / "shards"), "--output", str(tmp_path / "tars"),
          "--captions", "--language", "de"])  # fmt: skip
    theirs = their_command(tmp_path, "tars", "zeroshot_retrieval", "--recall_k", "1", "5", "10")
    for folder in ("shards", "tars"):
        ours = ours_of(tmp_path, folder, "--measure", "retrieval", "--languages", "de")
        for direction, key in (("image_to_text", "text"), ("text_to_image", "image")):
            for top in (1, 5, 10):
                value = theirs[f"{key}_retrieval_recall@{top}"]
                assert ours[f"retrieval/{direction}/r{top}/de"] == pytest.approx(value, abs=1e-6), (direction, top)
    assert 0 < theirs["text_retrieval_recall@10"] < 1 and 0 < theirs["image_retrieval_recall@10"] < 1
