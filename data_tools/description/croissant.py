"""The data set described in Croissant 1.0 with the RAI 1.0 vocabulary: JSON-LD that other programs load data by.

Specification: docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html and croissant-rai-spec.html (MLCommons, 2024).
Each shard is a file with its sha256; pictures and records are the members of the shards, joined by their names. What
nobody said is left out, or stands as ``not stated`` where the specification wants a text.
"""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from data_tools.description.dataset_statistics import NOT_STATED
from leam_mm.data.shard_index import ShardFolder

CROISSANT, RAI = "http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
TEXTS = {  # fields of a record that are one text each: path in the json, and what it is
    "url": ("$.url", "Address of the picture as it was published"),
    "licence": ("$.licence", "Of the picture, as SPDX or its address, as its source says"),
    "legal_basis": ("$.legal_basis", "On which the picture is used"),
    "sha256": ("$.sha256", "Of the picture's file as it was fetched"),
}
REQUIRED = ("name", "description", "licence", "url", "creator", "date_published")


def missing(provider: dict[str, Any]) -> list[str]:
    """What Croissant asks for and the provider has not said, in the provider's names."""
    said = provider.get("dataset") or {}
    return [name for name in REQUIRED if not said.get(name)]


def croissant(
    folders: list[Path], statistics: dict[str, Any], provider: dict[str, Any], place: str | Path
) -> dict[str, Any]:
    """Describe shard folders.

    Args:
        folders: The shard folders.
        statistics: What was counted.
        provider: ``dataset`` and ``responsible`` are used; see data_tools/description/training_summary.py.
        place: Address below which the folders lie under their names; or the folder of croissant.json, to which their
            places are then relative.

    Returns:
        The JSON-LD.
    """
    said = provider.get("dataset") or {}
    files: list[dict[str, Any]] = []
    for path in folders:
        folder = ShardFolder(path)
        home = Path(folder.place).resolve()  # of a keep-list, that of the shards it names
        for entry in folder.shards:
            name = f"{home.name}/{entry.shard}"
            near = Path(os.path.relpath(home, place)).as_posix() if isinstance(place, Path) else ""
            files.append(
                {
                    "@type": "cr:FileObject",
                    "@id": name,
                    "name": name,
                    "contentUrl": f"{near}/{entry.shard}" if near else f"{str(place).rstrip('/')}/{quote(name)}",
                    "contentSize": f"{entry.bytes} B",
                    "encodingFormat": "application/x-tar",
                    "sha256": entry.sha256,
                }
            )
    inside = [{"@id": entry["@id"]} for entry in files]
    formats = [name for name in statistics["formats"] if name != "none"]
    kinds = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
    sets: list[dict[str, Any]] = [
        {
            "@type": "cr:FileSet",
            "@id": "picture-files",
            "name": "picture-files",
            "containedIn": inside,
            "encodingFormat": [kinds[name] for name in formats],
            "includes": [f"*.{name}" for name in formats],
        },
        {
            "@type": "cr:FileSet",
            "@id": "record-files",
            "name": "record-files",
            "containedIn": inside,
            "encodingFormat": "application/json",
            "includes": "*.json",
        },
    ]
    counted = (
        f"{statistics['samples']} pictures with {statistics['captions']} captions in {len(statistics['languages'])} "
        f"languages. Named by the Merkle roots "
        + ", ".join(f"{entry['merkle_root']} ({entry['name']})" for entry in statistics["data_sets"])
        + "."
    )
    if any("+keep." in entry["merkle_root"] for entry in statistics["data_sets"]):
        counted += " Only the samples that keep.parquet names belong to it; the shards hold others, too."
    description = f"{said['description']} {counted}" if said.get("description") else counted
    found: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [CROISSANT, RAI],
        "name": said.get("name") or folders[0].name,
        "description": description,
        "license": said.get("licence") or [name for name in statistics["licence"] if name != NOT_STATED] or NOT_STATED,
        "url": said.get("url"),
        "creator": said.get("creator") and {"@type": "sc:Organization", "name": said["creator"]},
        "datePublished": said.get("date_published") and str(said["date_published"]),
        "version": said.get("version") and str(said["version"]),
        "citeAs": said.get("citation"),
        "keywords": said.get("keywords"),
        "inLanguage": [code for code in statistics["languages"] if re.fullmatch(r"[a-z]{2,3}", code) and code != "und"],
        "isLiveDataset": False,
        "distribution": [*files, *sets],
        "recordSet": [pictures(formats), records(), samples()],
    }
    return {name: value for name, value in {**found, **responsible(statistics, provider)}.items() if value is not None}


def field(name: str, text: str, source: dict[str, Any], kind: str = "sc:Text", **further: Any) -> dict[str, Any]:
    """One field of a record set."""
    return {
        "@type": "cr:Field",
        "@id": name,
        "name": name,
        "description": text,
        "dataType": kind,
        "source": source,
        **further,
    }


def pictures(formats: list[str]) -> dict[str, Any]:
    """The record set of pictures; they have the keys of their samples."""
    files = {"fileSet": {"@id": "picture-files"}}
    name = {
        **files,
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": rf"^(.*)\.(?:{'|'.join(formats)})$"},
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "pictures",
        "name": "pictures",
        "description": "The picture of each sample",
        "key": {"@id": "pictures/key"},
        "field": [
            field("pictures/key", "Name of the sample", name),
            field("pictures/image", "The picture", {**files, "extract": {"fileProperty": "content"}}, "sc:ImageObject"),
        ],
    }


def records() -> dict[str, Any]:
    """The record set of samples as they are stored: their json, whole."""
    files = {"fileSet": {"@id": "record-files"}}
    name = {**files, "extract": {"fileProperty": "filename"}, "transform": {"regex": r"^(.*)\.json$"}}
    held = "captions (text, language, source, machine_translated), " + ", ".join(TEXTS) + ", page_url, domain, consent"
    return {
        "@type": "cr:RecordSet",
        "@id": "records",
        "name": "records",
        "description": "The json of each sample; its picture has the same key in the record set pictures",
        "key": {"@id": "records/key"},
        "field": [
            field("records/key", "Name of the sample", name),
            field("records/json", f"Holds {held}", {**files, "extract": {"fileProperty": "content"}}),
        ],
    }


def samples() -> dict[str, Any]:
    """The record set of what the json holds; mlcroissant 1.1.1 accepts it, but opens no json inside of archives."""
    lists = {
        "caption": ("$.captions[*].text", "Captions of the picture"),
        "language": ("$.captions[*].language", "Language of each caption, in their order"),
    }

    def extract(path: str) -> dict[str, Any]:
        return {"fileSet": {"@id": "record-files"}, "extract": {"jsonPath": path}}

    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "Captions, origin and rights of each sample",
        "field": [
            *(field(f"samples/{of}", text, extract(path), repeated=True) for of, (path, text) in lists.items()),
            *(field(f"samples/{of}", text, extract(path)) for of, (path, text) in TEXTS.items()),
        ],
    }


def responsible(statistics: dict[str, Any], provider: dict[str, Any]) -> dict[str, Any]:
    """The RAI properties: what was measured, then what the provider says under ``responsible`` in the same names."""
    stages = [
        f"{stage['stage']}: {stage['given']} links in, {stage['kept']} kept; dropped: "
        + (", ".join(f"{rule} {count}" for rule, count in stage["dropped"].items()) or "none")
        for stage in statistics["stages"]
    ]
    bases = ", ".join(f"{name} {count}" for name, count in statistics["legal_basis"].items())
    sources = ", ".join(f"{name} {count}" for name, count in statistics["caption_sources"].items())
    changed = ", ".join(f"{name} {count}" for name, count in statistics["transforms"].items())
    translated = sum(statistics["machine_translated"].values())
    months = list(statistics["months"])
    found: dict[str, Any] = {
        "rai:dataCollection": f"Samples by legal basis: {bases}.",
        "rai:dataCollectionType": ["Web Scraping"] if statistics["domain_count"] else ["Others"],
        "rai:dataCollectionTimeframe": [f"{months[0]}-01", f"{months[-1]}-01"] if months else None,
        "rai:dataPreprocessingProtocol": stages or [NOT_STATED],
        "rai:dataManipulationProtocol": f"Changes to pictures: {changed or 'none'}.",
        "rai:dataAnnotationProtocol": f"Captions by source: {sources or NOT_STATED}.",
        "rai:machineAnnotationTools": [f"{translated} captions are machine translated"],
    }
    texts = {
        "dataBiases": [NOT_STATED],
        "dataLimitations": [NOT_STATED],
        "dataUseCases": [NOT_STATED],
        "dataSocialImpact": NOT_STATED,
        "personalSensitiveInformation": [NOT_STATED],
        "dataReleaseMaintenancePlan": NOT_STATED,
    }
    said = provider.get("responsible") or {}
    return found | {f"rai:{name}": said.get(name, text) for name, text in (texts | said).items()}
