"""Files that transformers 5 writes, changed so that transformers 4.57 loads them, too.

Version 5 renamed the weights of CLIPTextModel (huggingface/transformers pull request 46803) and the class of fast
tokenizers. It still reads the older names; version 4 reads no others.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from leam_mm.files import write_json
from leam_mm.json_text import parse_object

PREFIX = "text_model."  # before the names of a CLIPTextModel's weights in version 4
OLD_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
CONFIGS = ("config.json", "tokenizer_config.json", "scheduler_config.json")
PRIVATE = ("_name_or_path",)  # paths of this machine


def make_loadable(folder: Path) -> None:
    """Change a pipeline's files.

    Args:
        folder: Folder of a pipeline of diffusers.
    """
    index = parse_object((folder / "model_index.json").read_bytes())
    for name, entry in index.items():
        if isinstance(entry, list) and entry[1] in OLD_CLASSES:
            index[name] = [entry[0], OLD_CLASSES[entry[1]]]
    write_json(folder / "model_index.json", index, indent=2)
    for part in (folder / name for name in index if not name.startswith("_")):
        for file in (file for name in CONFIGS if (file := part / name).is_file()):
            content = parse_object(file.read_bytes())
            kept = {key: _older(value) for key, value in content.items() if key not in PRIVATE}
            if kept != content:
                write_json(file, kept, indent=2)
    if index["text_encoder"][1] == "CLIPTextModel":
        for file in (folder / "text_encoder").glob("*.safetensors"):
            weights = load_file(file)
            named = {name if name.startswith(PREFIX) else PREFIX + name: value for name, value in weights.items()}
            save_file(named, file, metadata={"format": "pt"})


def _older(value: Any) -> Any:
    return OLD_CLASSES.get(value, value) if isinstance(value, str) else value
