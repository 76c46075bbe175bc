"""The data set described in Croissant 1.1 with the RAI 1.0 vocabulary: JSON-LD from which other programs load data.

Specification: docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html and croissant-rai-spec.html (MLCommons).
Each shard is a file with its sha256; images and records are the members of the shards, joined by their names. Unknown
properties are omitted, or ``not stated`` where the specification requires a text.
"""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.document_text import NOT_STATED

CROISSANT, RAI = "http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"


def _terms(*names: str) -> dict[str, str]:
    return {name: f"cr:{name}" for name in names}


CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **_terms("arrayShape", "citeAs", "column", "containedIn", "isArray"),
    **{name: {"@container": "@language"} for name in ("description", "name")},
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    **_terms("equivalentProperty"),
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **_terms("extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes", "isLiveDataset"),
    **_terms("jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
    **_terms("replace", "samplingRate"),
    "sc": "https://schema.org/",
    **_terms("separator", "source", "subField", "transform"),
}
TEXTS = {  # fields of a record that are one text each: path in the json, and description
    "url": ("$.url", "Address of the picture as it was published"),
    "licence": ("$.licence", "Of the picture, as SPDX or its address, as its source says"),
    "legal_basis": ("$.legal_basis", "On which the picture is used"),
    "sha256": ("$.sha256", "Of the picture's file as it was fetched"),
}
TAR, LINES = "application/x-tar", "application/jsonlines"
MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
REQUIRED = ("name", "description", "licence", "url", "creator", "date_published")


def missing(provider: dict[str, Any]) -> list[str]:
    """Return what Croissant requires and the provider has not stated, by the names of the provider's file."""
    stated = provider.get("dataset") or {}
    return [name for name in REQUIRED if not stated.get(name)]


def croissant(
    folders: list[Path], statistics: dict[str, Any], provider: dict[str, Any], place: str | Path
) -> dict[str, Any]:
    """Return the JSON-LD of shard folders.

    Args:
        folders: The shard folders.
        statistics: The content of statistics.json.
        provider: ``dataset`` and ``responsible`` are used; see leam_mm/documents/training_summary.py.
        place: Address below which the folders are published under their names; or the folder of croissant.json, to
            which their paths are then relative.
    """
    stated = provider.get("dataset") or {}
    files = [entry for path in folders for entry in file_objects(path, place)]
    inside = [{"@id": entry["@id"]} for entry in files if entry["encodingFormat"] == TAR]
    of_others = {entry["@id"].removesuffix(".records.jsonl") for entry in files if entry["encodingFormat"] == LINES}
    own = [entry for entry in inside if entry["@id"].removesuffix(".tar") not in of_others]
    formats = [name for name in statistics["formats"] if name in MEDIA_TYPES]
    image_types = [MEDIA_TYPES[name] for name in formats]
    sets = [
        file_set("picture-files", inside, image_types, [f"*.{name}" for name in formats]),
        *([file_set("record-files", own, "application/json", "*.json")] if own else []),
    ]
    roots = ", ".join(f"{entry['merkle_root']} ({entry['name']})" for entry in statistics["data_sets"])
    counted = (
        f"{statistics['samples']} pictures with {statistics['captions']} captions in {len(statistics['languages'])} "
        f"languages. Named by the Merkle roots {roots}."
    )
    if any("+keep." in entry["merkle_root"] for entry in statistics["data_sets"]):
        counted += " Only the samples that keep.parquet names belong to it; the shards hold others, too."
    found: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [CROISSANT, RAI],
        "name": stated.get("name") or folders[0].name,
        "description": f"{stated['description']} {counted}" if stated.get("description") else counted,
        "license": stated.get("licence")
        or [name for name in statistics["licence"] if name != NOT_STATED]
        or NOT_STATED,
        "url": stated.get("url"),
        "creator": stated.get("creator") and {"@type": "sc:Organization", "name": stated["creator"]},
        "datePublished": stated.get("date_published") and str(stated["date_published"]),
        "version": stated.get("version") and str(stated["version"]),
        "citeAs": stated.get("citation"),
        "keywords": stated.get("keywords"),
        "inLanguage": [code for code in statistics["languages"] if re.fullmatch(r"[a-z]{2,3}", code) and code != "und"],
        "isLiveDataset": False,
        "distribution": [*files, *sets],
        "recordSet": [image_records(formats), *([stored_records(), field_records()] if own else [])],
    }
    return {name: value for name, value in {**found, **responsible(statistics, provider)}.items() if value is not None}


def file_objects(path: Path, place: str | Path) -> list[dict[str, Any]]:
    """Return one entry for each shard of a folder, and for each file of records beside a tar that others made."""
    folder = ShardFolder(path)
    home = Path(folder.location).resolve()  # for a keep-list, the folder of the shards that it names
    near = Path(os.path.relpath(home, place)).as_posix() if isinstance(place, Path) else ""
    files = []
    for number, entry in enumerate(folder.shards):
        address = folder.address(entry)
        if isinstance(place, Path) and folder.places is not None and entry.records and "://" not in address:
            address = Path(os.path.relpath(Path(address).resolve(), place)).as_posix()
        elif folder.places is None or not entry.records or "://" not in address:
            address = _address(near, place, home.name, entry.shard)
        size = {"contentSize": f"{entry.bytes} B", "encodingFormat": TAR, "sha256": entry.sha256}
        files.append(_file_object(f"{home.name}/{entry.shard}", address) | size)
        if entry.records:
            path = folder.records(number)
            size = {"contentSize": f"{path.stat().st_size} B", "encodingFormat": LINES, "sha256": entry.records}
            address = _address(near, place, home.name, path.name)
            text = "A line for each sample of the tar: key, place and suffix of its picture, and its record"
            files.append(_file_object(f"{home.name}/{path.name}", address) | {"description": text} | size)
    return files


def _address(near: str, place: str | Path, folder: str, name: str) -> str:
    """Return where a file of a shard folder is, relative to the document or below a published address."""
    return f"{near}/{name}" if near else f"{str(place).rstrip('/')}/{quote(f'{folder}/{name}')}"


def _file_object(name: str, address: str) -> dict[str, Any]:
    return {"@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": address}


def file_set(name: str, inside: list[dict[str, str]], media_types: Any, includes: Any) -> dict[str, Any]:
    """Return a set of members of the shards."""
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "containedIn": inside,
        "encodingFormat": media_types,
        "includes": includes,
    }


def field(name: str, text: str, files: str, extract: dict[str, str], kind: str = "sc:Text", **more: Any) -> Any:
    """Return one field of a record set.

    Args:
        name: Record set and field.
        text: Description.
        files: The set of files that it is taken from.
        extract: What is taken; ``transform`` in it is applied afterwards.
        kind: Data type.
        more: Further properties.
    """
    source: dict[str, Any] = {"fileSet": {"@id": files}, "extract": extract}
    if "transform" in more:
        source["transform"] = more.pop("transform")
    return {
        "@type": "cr:Field", "@id": name, "name": name, "description": text, "dataType": kind, "source": source, **more
    }  # fmt: skip


def record_set(name: str, text: str, fields: list[Any], keyed: bool = True) -> dict[str, Any]:
    """Return a record set, whose key is its field ``key``."""
    key = {"key": {"@id": f"{name}/key"}} if keyed else {}
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": text, **key, "field": fields}


def image_records(formats: list[str]) -> dict[str, Any]:
    """Return the record set of images; they have the keys of their samples."""
    name, content = {"fileProperty": "filename"}, {"fileProperty": "content"}
    pattern = {"regex": rf"^(.*)\.(?:{'|'.join(formats)})$"}
    fields = [
        field("pictures/key", "Name of the sample", "picture-files", name, transform=pattern),
        field("pictures/image", "The picture", "picture-files", content, "sc:ImageObject"),
    ]
    return record_set("pictures", "The picture of each sample", fields)


def stored_records() -> dict[str, Any]:
    """Return the record set of samples as they are stored: their whole json."""
    name, content = {"fileProperty": "filename"}, {"fileProperty": "content"}
    held = "captions (text, language, source, machine_translated), " + ", ".join(TEXTS) + ", page_url, domain, consent"
    fields = [
        field("records/key", "Name of the sample", "record-files", name, transform={"regex": r"^(.*)\.json$"}),
        field("records/json", f"Holds {held}", "record-files", content),
    ]
    text = "The json of each sample; its picture has the same key in the record set pictures"
    return record_set("records", text, fields)


def field_records() -> dict[str, Any]:
    """Return the record set of the json's fields; mlcroissant 1.1.1 accepts it, but opens no json inside archives."""
    lists = {
        "caption": ("$.captions[*].text", "Captions of the picture"),
        "language": ("$.captions[*].language", "Language of each caption, in their order"),
    }
    fields = [
        *(field(f"samples/{of}", text, "record-files", {"jsonPath": path}, repeated=True)
          for of, (path, text) in lists.items()),
        *(field(f"samples/{of}", text, "record-files", {"jsonPath": path}) for of, (path, text) in TEXTS.items()),
    ]  # fmt: skip
    return record_set("samples", "Captions, origin and rights of each sample", fields, keyed=False)


def responsible(statistics: dict[str, Any], provider: dict[str, Any]) -> dict[str, Any]:
    """Return the RAI properties: what was measured, then what the provider states under ``responsible``."""

    def counts(name: str) -> str:
        return ", ".join(f"{value} {count}" for value, count in statistics[name].items())

    stages = [
        f"{stage['stage']}: {stage['given']} links in, {stage['kept']} kept; dropped: "
        + (", ".join(f"{rule} {count}" for rule, count in stage["dropped"].items()) or "none")
        for stage in statistics["stages"]
    ]
    translated = sum(statistics["machine_translated"].values())
    months = list(statistics["months"])
    found: dict[str, Any] = {
        "rai:dataCollection": f"Samples by legal basis: {counts('legal_basis')}.",
        "rai:dataCollectionType": ["Web Scraping"] if statistics["domain_count"] else ["Others"],
        "rai:dataCollectionTimeframe": [f"{months[0]}-01", f"{months[-1]}-01"] if months else None,
        "rai:dataPreprocessingProtocol": stages or [NOT_STATED],
        "rai:dataManipulationProtocol": f"Changes to pictures: {counts('transforms') or 'none'}.",
        "rai:dataAnnotationProtocol": f"Captions by source: {counts('caption_sources') or NOT_STATED}.",
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
    stated = provider.get("responsible") or {}
    return found | {f"rai:{name}": stated.get(name, text) for name, text in (texts | stated).items()}
