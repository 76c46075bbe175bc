"""The json of a sample, from shards that strangers may have built: what every reader of it may rely on."""

from collections.abc import Mapping
from typing import Any

from leam_mm.errors import UserError
from leam_mm.json_text import parse_object

TEXTS = ("uid", "url", "page_url", "domain", "licence", "legal_basis", "sha256", "crawler")


def read_sample_json(members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the json of a sample, an object in valid Unicode whose ``TEXTS`` are texts or None.

    Raises:
        UserError: The sample has no json, or it is damaged.
    """
    if "json" not in members:
        raise UserError("the sample has no json: run data_tools/check_shards.py on the folder")
    try:
        record = parse_object(members["json"])
        for name in TEXTS:
            if not isinstance(record.get(name), str | None):
                raise ValueError(f"its {name} is no text")
    except ValueError as error:
        raise UserError(
            f"its json cannot be used ({error}): leave it out by vetting the folder (data_tools/vet_shards.py "
            "--materialise), or copy an intact one"
        ) from None
    return record


def sample_captions(record: Mapping[str, Any], field: str = "captions") -> list[dict[str, Any]]:
    """Return the captions of a sample's json: at least one, each with the texts ``text`` and ``language``.

    Args:
        record: The json.
        field: ``captions``, or ``caption_states`` of latent shards.

    Raises:
        UserError: The list is missing, empty, or holds something else.
    """
    captions = record.get(field)
    if not isinstance(captions, list) or not captions:
        raise UserError(f"its json has no usable {field}: run data_tools/check_shards.py on the folder")
    for caption in captions:
        if not isinstance(caption, dict) or not all(
            isinstance(caption.get(name), str) for name in ("text", "language")
        ):
            raise UserError(
                f"its json has no usable {field} (an entry has no text or no language): run data_tools/check_shards.py "
                "on the folder"
            )
    return captions
