"""Front matter of the model card, which the Hugging Face Hub reads: licence, languages, results, data sets, emissions.

Fields: huggingface.co/docs/hub/model-cards and github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.result_summary import Row, headline_metrics, language_tests, test_title
from leam_mm.report.report_number import marked_indicative

# The Hub knows licences by these names; any other licence is given as license_name.
HUB_LICENCES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause", "eupl-1.2", "openrail"}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_METRICS = {"top1": "accuracy", "top5": "accuracy", "r1": "recall", "r5": "recall", "r10": "recall"}
HUB_METRICS |= {"recall": "recall", "precision": "precision", "fid": "fid"}
OTHER_METRICS = 20  # metrics without a language in the metadata
GENERATION_TASK = ("text-to-image", "Text-to-image generation")
ENCODER_TASK = ("zero-shot-image-classification", "Zero-shot image classification")
RECALL = re.compile(r"r\d+")  # TextToImage has the name of a direction of retrieval, but no recall at k
RETRIEVAL_TASK = ("image-text-retrieval", "Image-text retrieval")


def front_matter(facts: ReleaseFacts, publisher: PublisherFields) -> str:
    """Return the YAML that the Hub reads."""
    licence = facts.licence.lower()
    known = licence in HUB_LICENCES
    # The Hub knows a base by owner/name only.
    bases = sorted({name for stage in facts.stages if HUB_NAME.fullmatch(name := stage.base.get("name", ""))})
    results = eval_results(facts)
    formats = [name for name in ("open_clip", "transformers", "sentence_transformers", "onnx") if name in facts.formats]
    tags = [name.replace("_", "-") if name == "sentence_transformers" else name for name in formats if facts.embeds]
    if facts.generates:
        tags += ["diffusers", "text-to-image", "diffusers:PRXPipeline"]
    data = ModelCardData(
        license=licence if known else "other",
        license_name=None if known else _line(facts.licence),
        license_link=None if known else publisher.licence_link,
        language=facts.measured_languages or None,
        tags=["leam_mm", "multilingual", *tags],
        base_model=bases or None,
        library_name="open_clip" if facts.embeds else "diffusers",
        pipeline_tag="zero-shot-image-classification" if facts.embeds else "text-to-image",
        datasets=hub_data_sets(publisher) or None,
        metrics=sorted({result.metric_type for result in results} & set(HUB_METRICS.values())) or None,
        eval_results=results or None,
        model_name=_line(facts.name) if results else None,
        thumbnail=publisher.thumbnail,
        co2_eq_emissions=co2_entry(facts, publisher),
        version=publisher.version,
    )
    return data.to_yaml()


def hub_data_sets(publisher: PublisherFields) -> list[str]:
    """Return the data sets that the Hub knows, as owner/name."""
    return sorted({name for name in (publisher.data_sets or {}).values() if HUB_NAME.fullmatch(name)})


def co2_entry(facts: ReleaseFacts, publisher: PublisherFields) -> dict[str, Any] | None:
    """Return the entry of emissions in grams, location-based; None where they are not known for every part."""
    if facts.grams is None:
        return None
    records = [stage.energy or {} for stage in facts.stages if stage.trained]
    origins = sorted(
        {f"{record.get('source', 'not stated')}; {record.get('carbon_source') or 'not stated'}" for record in records}
    )
    kind = publisher.training_type or ("fine-tuning" if any(stage.base for stage in facts.stages) else "pre-training")
    entry = {
        "emissions": round(facts.grams, 3),
        "source": _line("; ".join(origins)),
        "training_type": kind,
        "geographical_location": publisher.geographical_location,
        "hardware_used": publisher.hardware_used or (facts.hardware and _line(facts.hardware)),
    }
    return {name: value for name, value in entry.items() if value is not None}


def eval_results(facts: ReleaseFacts) -> list[EvalResult]:
    """Return the results of the model index: mean and worst language of each test, and metrics without a language."""
    found = []
    for test in language_tests(facts.metrics):
        if test.mean is not None and test.mean.get("value") is not None:
            found.append(_result(test.name, "mean over languages", test.mean, "all"))
        found.append(_result(test.name, "worst language", test.languages[test.worst], test.worst))
    for metric in [row for row in headline_metrics(facts.metrics) if row.get("value") is not None][:OTHER_METRICS]:
        found.append(_result(str(metric["name"]), "", metric, None))
    return found


def _line(text: str) -> str:
    """Return a text on one line, so that no line of it ends the front matter."""
    return " ".join(text.split())


def _result(name: str, what: str, row: Row, config: str | None) -> EvalResult:
    parts = [_line(part) for part in name.split("/")]
    kind = next((HUB_METRICS[part] for part in reversed(parts) if part in HUB_METRICS), None)
    kind = kind or next((part for part in reversed(parts) if part not in ("generated", "real")), parts[-1])
    retrieval = any(RECALL.fullmatch(part) for part in parts)
    classified = any(part.startswith("top") for part in parts)
    task, title = RETRIEVAL_TASK if retrieval else ENCODER_TASK if classified else GENERATION_TASK
    return EvalResult(
        task_type=task,
        task_name=title,
        dataset_type=parts[0],
        dataset_name=parts[0].replace("_", " "),
        dataset_config=config,
        metric_type=kind,
        metric_name=marked_indicative(", ".join(filter(None, [test_title(_line(name), "en"), what])), row),
        metric_value=row["value"],
    )
