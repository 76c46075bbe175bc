"""Content of files that a stranger made, checked without loading a model: bounded reads, no code.

Safetensors: https://github.com/huggingface/safetensors, section "Format". transformers can run code that ``auto_map``
names, diffusers code of libraries that ``model_index.json`` names, sentence-transformers classes of ``modules.json``.
"""

import json
import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leam_mm.json_text import parse_json

MAX_JSON = 1 << 26  # bytes; vocabularies are the largest
MAX_HEADER = 25_000_000  # bytes; the library itself allows 100 MB
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
}
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_code")
LIBRARIES = {"diffusers", "transformers"}  # of parts of a pipeline
CLASS = re.compile(r"[A-Za-z_]\w{0,99}")
MODULE = re.compile(r"sentence_transformers\.(models|base\.modules|sentence_transformer\.modules)\.\w+(\.\w+)?")
MACHINE_PATH = re.compile(r"(/[^/\s]+){2,}/?|[A-Za-z]:\\.*|~/.*|file://.*", re.DOTALL)
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json")


def content_faults(file: Path, name: str) -> Iterator[str]:
    """Yield what is wrong with the content of a file.

    Args:
        file: A regular file.
        name: Its path inside the release.
    """
    if name.endswith(".safetensors"):
        try:
            tensor_sizes(file)
        except (OSError, ValueError) as error:
            yield f"no sound safetensors file: {error}"
    elif name.endswith(".json"):
        if file.stat().st_size > MAX_JSON:
            yield f"larger than {MAX_JSON} bytes, which no document of a release is"
            return
        try:
            content = parse_json(file.read_bytes())
        except (OSError, ValueError) as error:
            yield f"no JSON: {error}"
            return
        short = name.rpartition("/")[2]
        yield from _code_faults(content, short)
        if short not in VOCABULARIES and not name.startswith("documents/"):
            yield from (f"{key} is {text!r:.200}, a path of a machine" for key, text in _machine_paths(content))


def tensor_sizes(file: Path) -> dict[str, int]:
    """Return the number of elements of each tensor of a safetensors file, after checks of its header.

    Raises:
        ValueError: The header is larger than ``MAX_HEADER``, or contradicts itself or the file.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ValueError(f"its header claims {length} bytes")
        header = parse_json(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    sizes, spans = {}, []
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(facts, dict):
            raise ValueError(f"tensor {name!r:.100} is no object")
        shape, offsets = facts.get("shape"), facts.get("data_offsets")
        if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
            raise ValueError(f"tensor {name!r:.100} has no shape or place")
        if not all(type(n) is int and 0 <= n < 1 << 50 for n in [*shape, *offsets]):
            raise ValueError(f"tensor {name!r:.100} has an impossible shape or place")
        sizes[name] = math.prod(shape)
        bits = BITS.get(str(facts.get("dtype")))
        if bits is None or sizes[name] * bits != 8 * (offsets[1] - offsets[0]):
            raise ValueError(f"tensor {name!r:.100} has another size than its shape and type")
        spans.append((offsets[0], offsets[1]))
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise ValueError("its tensors overlap or leave gaps")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"its tensors end at byte {8 + length + end} of {size}")
    return sizes


def _code_faults(content: Any, name: str) -> Iterator[str]:
    for key, value in _pairs(content):
        if key in CODE_KEYS and value not in (False, None):
            yield f"{key} names code of the folder; a release holds none"
        if key == "_class_name" and not (isinstance(value, str) and CLASS.fullmatch(value)):
            yield f"_class_name is {value!r:.100}, no class of a library"
    if name == "model_index.json" and isinstance(content, dict):
        for part, value in content.items():
            if isinstance(value, list) and (len(value) != 2 or not _known_class(*value)):
                yield f"{part!r:.100} is {json.dumps(value)[:200]}, no class of {' or '.join(sorted(LIBRARIES))}"
    if name == "modules.json":
        for entry in content if isinstance(content, list) else [content]:
            kind = entry.get("type") if isinstance(entry, dict) else None
            if not isinstance(kind, str) or not MODULE.fullmatch(kind):
                yield f"type is {kind!r:.200}, no module of sentence-transformers"


def _known_class(library: Any, name: Any) -> bool:
    if library is None and name is None:
        return True
    known = isinstance(library, str) and library in LIBRARIES
    return known and isinstance(name, str) and CLASS.fullmatch(name) is not None


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    waiting = [content]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield from found.items()
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _machine_paths(content: Any) -> Iterator[tuple[str, str]]:
    for key, value in _pairs(content):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and MACHINE_PATH.fullmatch(text):
                yield key, text
