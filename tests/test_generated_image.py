from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from leam_mm.marking.generated_image import SOURCE_TYPE, generator_name, save_generated

ROOT = Path(__file__).parent.parent


def test_marks_are_in_the_file_and_leave_the_pixels(tmp_path: Path) -> None:
    image = Image.effect_noise((9, 7), 60).convert("RGB")
    save_generated(image, tmp_path / "new" / "x.png", "Größe " * 100, {"Drawing": "1"})
    with Image.open(tmp_path / "new" / "x.png") as found:
        assert found.tobytes() == image.tobytes()
        assert found.info["DigitalSourceType"] == SOURCE_TYPE and found.info["Drawing"] == "1"
        assert found.info["Model"].startswith("Größe") and len(found.info["Model"]) == 300


def test_names_of_generators() -> None:
    run = {"path": "runs/quickstart/generator/checkpoints/last.ckpt", "sha256": "ab" * 32}
    assert generator_name(SimpleNamespace(checkpoint_evidence=run)) == "generator abababababab"
    release = SimpleNamespace(checkpoint_evidence={"path": "releases/mine", "sha256": "cd" * 32})
    assert generator_name(release) == "mine cdcdcdcdcdcd"
    assert generator_name(SimpleNamespace()) == "SimpleNamespace in training"


def test_plain_png_are_written_where_no_image_is_generated() -> None:
    """Every file that writes a PNG beside the marked ones is listed here with its reason."""
    writers = {path.relative_to(ROOT).as_posix() for path in (ROOT / "leam_mm").rglob("*.py")
               if ".save(" in path.read_text() and "PNG" in path.read_text()}  # fmt: skip
    reconstructions = "leam_mm/evaluators/image_grid.py"
    noise = "leam_mm/launch/node_checks.py"  # whose decoding the doctor times
    assert writers == {"leam_mm/marking/generated_image.py", reconstructions, noise}
