"""Contradictions between release.yaml and the facts: dates, languages, licence, data, training."""

import re
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from leam_mm.documents.changed_statements import Contradiction
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts

FIELDS, MONTH = "release.yaml", re.compile(r"\d{4}-\d{2}")


def publisher_contradictions(facts: ReleaseFacts, publisher: PublisherFields) -> list[Contradiction]:
    """Return what the publisher states otherwise than the facts, or otherwise in two fields."""
    rules = (_release, _dates, _languages, _data, _training)
    return [
        Contradiction(FIELDS, field, text)
        for rule in rules for field, text in rule(facts, publisher)
    ]  # fmt: skip


def _release(facts: ReleaseFacts, publisher: PublisherFields) -> Iterator[tuple[str, str]]:
    if publisher.licence is not None and publisher.licence != facts.licence:
        yield "licence", f"is {publisher.licence}, but the release was built with {facts.licence}"
    for earlier in publisher.previous_versions or ():
        if publisher.version is not None and earlier.partition(":")[0].strip() == publisher.version:
            yield "previous_versions", f"names {publisher.version}, which is the version of this release"
    if publisher.citation_title and publisher.citation_authors is None:
        yield "citation_title", "is given without citation_authors"


def _dates(facts: ReleaseFacts, publisher: PublisherFields) -> Iterator[tuple[str, str]]:
    measured = newest_measurement(facts)
    for name in ("release_date", "eu_placement_date"):
        day = getattr(publisher, name)
        if day is not None and measured is not None and day < measured:
            yield name, f"is {day}, before the release was measured on {measured}"
    released, placed = publisher.release_date, publisher.eu_placement_date
    if released is not None and placed is not None and placed < released:
        yield "eu_placement_date", f"is {placed}, before the release_date {released}"
    acquired, counted = publisher.latest_data_acquisition, _latest_month(facts)
    for name, day in (("release_date", released), ("eu_placement_date", placed)):
        if acquired is not None and day is not None and acquired > f"{day:%Y-%m}":
            yield "latest_data_acquisition", f"is {acquired}, after the {name} {day}"
    if acquired is not None and counted is not None and acquired < counted:
        yield "latest_data_acquisition", f"is {acquired}, but samples were fetched in {counted}"


def _languages(facts: ReleaseFacts, publisher: PublisherFields) -> Iterator[tuple[str, str]]:
    unmeasured = [code for code in publisher.languages or () if code not in facts.measured_languages]
    if unmeasured:
        yield "languages", f"names {', '.join(unmeasured)}, without a measured result: evaluate in them, or drop them"


def _data(facts: ReleaseFacts, publisher: PublisherFields) -> Iterator[tuple[str, str]]:
    known = {name for stage in facts.stages for name in stage.data.values()} | {entry.name for entry in facts.data}
    for name in publisher.data_sets or {}:
        if name not in known:
            yield (
                "data_sets",
                f"names {name!r:.80}, but the release was trained on {', '.join(sorted(known)) or 'none'}",
            )
    if publisher.user_data_used is False:
        for name in ("user_data_from_model", "user_data_from_services", "user_data_services"):
            if getattr(publisher, name, None):
                yield "user_data_used", f"is false, but {name} says otherwise"
    if facts.content is None:
        return
    sections = facts.content.tally.sections
    crawled = sum(
        count for (_, basis, origin), count in sections.items()
        if origin == "web" and basis not in ("licensed", "consent", "synthetic")
    )  # fmt: skip
    synthetic = sum(count for (_, basis, _), count in sections.items() if basis == "synthetic")
    if publisher.crawler_names and not crawled:
        yield "crawler_names", "names crawlers, but no sample was crawled"
    translated = sum(facts.content.statistics.get("machine_translated", {}).values())
    if publisher.synthetic_models and not synthetic and not translated:
        yield "synthetic_models", "names models, but no sample or caption is synthetic"
    for name in ("image", "text"):
        stated = getattr(publisher, f"types_of_{name}_content", None)
        if stated and not facts.content.statistics.get("samples" if name == "image" else "captions"):
            yield f"types_of_{name}_content", f"describes content, but no {name} was counted"


def _training(facts: ReleaseFacts, publisher: PublisherFields) -> Iterator[tuple[str, str]]:
    bases = [stage for stage in facts.stages if stage.base and stage.trained]
    if publisher.training_type == "pre-training" and bases:
        yield "training_type", f"is pre-training, but the {bases[0].kind} started from other weights"
    if publisher.training_type == "fine-tuning" and not any(stage.base for stage in facts.stages):
        yield "training_type", "is fine-tuning, but no part started from other weights"
    if publisher.earlier_flops == 0 and any(stage.base for stage in facts.stages):
        yield "earlier_flops", "is 0, but a part started from other weights, whose compute counts"


def newest_measurement(facts: ReleaseFacts) -> date | None:
    """Return the day of the newest result; training ended before it."""
    days = [day for row in facts.metrics if (day := _day(row.get("time"))) is not None]
    return max(days, default=None)


def _day(text: Any) -> date | None:
    try:
        return datetime.fromisoformat(text).date()
    except (TypeError, ValueError):
        return None


def _latest_month(facts: ReleaseFacts) -> str | None:
    months = facts.content.statistics.get("months") if facts.content is not None else None
    return max((month for month in months if MONTH.fullmatch(month)), default=None) if months else None
