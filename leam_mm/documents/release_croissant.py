"""The training data of a release in Croissant 1.1, from the same records as ``data_tools/describe_dataset.py``."""

import json
from typing import Any

from leam_mm.documents.croissant import croissant
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts

RESPONSIBLE = {"personalSensitiveInformation": "personal_data_measures", "dataBiases": "bias_measures"}
# Address of shards that the release does not publish; the file names and digests below it identify them.
UNPUBLISHED = "urn:leam_mm:shards"


def release_croissant(facts: ReleaseFacts, publisher: PublisherFields, language: str = "en") -> str:
    """Return the JSON-LD; an empty text if no shards were given when the release was made.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        language: Of the publisher's texts.
    """
    if facts.content is None:
        return ""
    links = list((publisher.data_sets or {}).values())
    described = publisher.text("data_description", language)
    unpublished = [] if links else ["The shards themselves are not published with the release."]
    provider: dict[str, Any] = {
        "dataset": {
            "name": f"Training data of {facts.name}",
            "description": " ".join([*described, *unpublished]),
            "url": publisher.homepage or (links[0] if links else None),
            "creator": publisher.provider_name,
            "date_published": publisher.release_date,
            "version": publisher.version,
        },
        "responsible": {
            name: texts
            for name, field in (
                ("personalSensitiveInformation", "personal_data_measures"),
                ("dataBiases", "bias_measures"),
            )
            if (texts := publisher.text(field, language))
        },
    }
    place = links[0] if len(facts.content.folders) == 1 and links and "://" in links[0] else UNPUBLISHED
    content = croissant(list(facts.content.folders), dict(facts.content.statistics), provider, place)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
