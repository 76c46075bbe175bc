"""Files of an encoder's tokenizer in a release, such that every library reads captions as open_clip does.

open_clip cleans captions before its tokenizer sees them; other libraries call the tokenizer alone. So the released
tokenizer.json replaces typographic quotes and ligatures and joins white space itself, by the tables of ftfy, which
open_clip uses. On cleaned captions this changes nothing. Repaired encodings and HTML entities remain open_clip's alone.
"""

import shutil
from pathlib import Path
from typing import Any

from ftfy import chardata

from leam_mm.data.tokenizer import TOKENIZER_FILES, Tokenizer
from leam_mm.errors import UserError
from leam_mm.files import write_json
from leam_mm.json_text import parse_object

VOCABULARY, SETTINGS = TOKENIZER_FILES[:2]
FAST = "PreTrainedTokenizerFast"
OLDER = {"TokenizersBackend": FAST}  # names of transformers 5 that version 4 does not know
# Names of code, paths of this machine, and how the folder was opened here.
PRIVATE = ("auto_map", "name_or_path", "_name_or_path", "is_local", "local_files_only")
INPUTS = ["input_ids", "attention_mask"]  # of CLIPModel; version 4 would add token types, which it refuses


def copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files of a tokenizer, and nothing else of its folder.

    Args:
        tokenizer: An opened tokenizer with files.
        folder: The release folder.
    """
    source = tokenizer.path
    if missing := [name for name in (VOCABULARY, SETTINGS) if not (source / name).is_file()]:
        raise UserError(f"{source} lacks {', '.join(missing)}: give the tokenizer of data_tools/train_tokenizer.py")
    for name in TOKENIZER_FILES[2:]:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    vocabulary, settings = (_read(source / name) for name in (VOCABULARY, SETTINGS))
    write_json(folder / VOCABULARY, vocabulary | {"normalizer": cleaning_normalizer(vocabulary.get("normalizer"))})
    settings = {key: value for key, value in settings.items() if key not in PRIVATE}
    kind = settings.get("tokenizer_class") or FAST
    changes = {"tokenizer_class": OLDER.get(kind, kind), "model_max_length": tokenizer.context_length}
    write_json(folder / SETTINGS, {"model_input_names": INPUTS} | settings | changes, indent=2)


def cleaning_normalizer(own: dict[str, Any] | None) -> dict[str, Any]:
    """Return the normalizer of a tokenizer.json that cleans a caption and then does what the tokenizer's own does.

    Args:
        own: The tokenizer's normalizer, or None.
    """
    quotes = ((chardata.SINGLE_QUOTE_RE, "'"), (chardata.DOUBLE_QUOTE_RE, '"'))
    steps: list[dict[str, Any]] = [
        *(_replace({"String": chr(code)}, text) for code, text in chardata.LIGATURES.items()),
        *(_replace({"Regex": pattern.pattern}, text) for pattern, text in quotes),
        {"type": "NFC"},
        _replace({"Regex": r"\s+"}, " "),
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]
    if own is not None and own.get("type") == "Sequence":
        inner = list(own.get("normalizers", []))
        steps = inner if inner[: len(steps)] == steps else steps + inner  # already in a tokenizer of a release
    elif own is not None:
        steps.append(own)
    return {"type": "Sequence", "normalizers": steps}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _read(file: Path) -> dict[str, Any]:
    try:
        return parse_object(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error!r:.200}): give the tokenizer of the encoder") from None
