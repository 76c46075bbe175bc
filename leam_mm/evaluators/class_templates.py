"""Templates around class names in 24 languages, and templates that a person gives.

Class names are used as a dictionary lists them. Our templates therefore leave them in the nominative and without
agreement: after a colon, in quotation marks, or before a phrase such as "in a photo". They stand in
class_templates.json.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError
from leam_mm.json_text import parse_object

FILE = Path(__file__).parent / "class_templates.json"
MAX_BYTES = 1 << 20


@lru_cache(maxsize=1)
def own_templates() -> Mapping[str, Sequence[str]]:
    """Return our templates by language, each with {} in place of the name."""
    return parse_object(FILE.read_bytes())


def given_templates(file: Path, languages: Sequence[str]) -> dict[str, list[str]]:
    """Return the templates of a file by language.

    Args:
        file: Text, one template a line, for the only language of `languages`, or for English; or JSON with a list for
            each language. `{}` or `{c}` stands in place of the name.
        languages: Languages that are measured.

    Raises:
        UserError: The file is damaged, or a template does not have exactly one placeholder.
    """
    content = read_file(file)
    language = languages[0] if len(languages) == 1 else "en"
    if file.suffix == ".json":
        try:
            found: dict[str, Any] = parse_object(content)
        except ValueError as error:
            raise UserError(f"{file} is no JSON ({error}): give a list of templates for each language") from None
    else:
        found = {language: [line.strip() for line in content.splitlines() if line.strip()]}
    checked = {}
    for code, texts in found.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{file}: {code} is not a list of templates: give texts with {{}} in place of the name")
        checked[code] = check_templates([text.replace("{c}", "{}") for text in texts], f"{file}, {code}")
    return checked


def check_templates(templates: list[str], place: str) -> list[str]:
    """Return the templates.

    Raises:
        UserError: One does not have exactly one placeholder, or stands twice.
    """
    for number, text in enumerate(templates):
        if text.count("{}") != 1:
            raise UserError(f"{place}: template {text[:60]!r} must hold {{}} exactly once, in place of the name")
        if text in templates[:number]:
            raise UserError(f"{place}: template {text[:60]!r} stands twice: each one once")
    return templates


def read_file(file: Path) -> str:
    """Return the text of a small file that a person names.

    Raises:
        UserError: It cannot be read, is too large, or is not in UTF-8.
    """
    try:
        if file.stat().st_size > MAX_BYTES * 16:
            raise UserError(f"{file} has more than {MAX_BYTES * 16} bytes: give a smaller file")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}): give a file in UTF-8") from None


def texts_digest(texts: Any) -> str:
    """Return the sha256 of texts, as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
