"""An encoder as a folder that sentence-transformers loads: modules around the CLIPModel of transformers.

SentenceTransformer(FOLDER).encode(["a caption", Image.open("picture.png")])

The first module is CLIPModel with its processor, the second one scales embeddings to length 1, as open_clip's
``normalize=True`` does.
"""

from pathlib import Path

from leam_mm.files import write_json

MODULES, CONFIG, TRANSFORMER, NORMALISE = (
    "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Normalize",
)  # fmt: skip
# The names that models on the hub have; the class finds out itself what transformers 4 or 5 returns.
CLIP, UNIT_LENGTH = "sentence_transformers.models.CLIPModel", "sentence_transformers.models.Normalize"
SIMILARITY = "cosine"


def write_sentence_transformers_folder(folder: Path) -> None:
    """Write the description of the modules.

    Args:
        folder: The release folder, with a CLIPModel of transformers and its processor at the root.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": CLIP},
        {"idx": 1, "name": "1", "path": NORMALISE, "type": UNIT_LENGTH},
    ]
    write_json(folder / MODULES, modules, indent=2)
    settings = {"model_type": "SentenceTransformer", "similarity_fn_name": SIMILARITY, "prompts": {}}
    write_json(folder / CONFIG, settings, indent=2)
    # Pillow resizes images as open_clip does; torchvision, the default of transformers 5, rounds otherwise.
    write_json(folder / TRANSFORMER, {"processor_kwargs": {"backend": "pil"}}, indent=2)
    write_json(folder / NORMALISE / "config.json", {"module_input_name": "sentence_embedding"}, indent=2)
