"""Imports point down the layers; function-local and TYPE_CHECKING imports count, too."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# An entry may import any entry above it in the list, and itself. Names on one line are independent of each other.
LEAM_MM = [
    ["system_fault"],
    [
        "errors",
        "languages",
        "arithmetic",
        "code_commit",
        "json_text",
        "lifelines",
        "rank_errors",
        "rank_meeting",
        "early_signals",
    ],
    ["lifeline_server"],
    ["files", "config_error", "config_defaults", "recipe_changes", "recorded_classes"],
    ["run_lock", "command_line", "folder_server", "release_record"],
    ["checkpoint_file", "released_files"],
    ["checkpoint_shards"],
    ["checkpoint_generations"],
    ["data", "losses", "diffusion", "checkpoint"],
    ["distributed", "marking"],
    ["encoders"],
    ["codecs"],
    ["captions"],
    ["denoisers"],
    ["optim"],
    ["techniques"],
    ["contrastive_module", "codec_module", "diffusion_module"],
    ["model_address"],
    ["intervals"],
    ["distances", "prompts"],
    ["evaluators"],
    ["callbacks"],
    ["report"],
    ["planning"],
    ["inference"],
    ["serving"],
    ["launch"],
    ["documents"],
    ["release"],
    ["audits"],
    ["controls"],
    ["evaluate_commands"],
    ["resume_check"],
    ["pipeline_file", "pipeline_cost"],
    ["pipeline_stages"],
    ["cli", "pipeline"],
    ["finetune_plan"],
    ["draw", "embed", "search", "classify"],
]
DATA_TOOLS = [
    ["work"],
    ["network"],
    ["samples"],
    ["corpora", "rights"],
    ["links"],
    ["pages", "download", "indexing"],
    ["importing"],
    ["latents"],
    ["vetting"],
    ["withdrawal"],
    ["description"],
]  # programs, the files beside these folders, may import all of them, and not each other
# What data_tools may import of leam_mm. Only latents, and programs and rules that run models, import models.
WITHOUT_MODELS = {
    *(
        "errors",
        "system_fault",
        "languages",
        "json_text",
        "files",
        "run_lock",
        "command_line",
        "config_error",
        "recorded_classes",
        "data",
        "report",
        "documents",
    )
}
WITH_MODELS = {
    *("data_tools.latents", "data_tools.embed_shards", "data_tools.encode_latents", "data_tools.vetting.clip_score"),
    *("data_tools.vetting.encoder_rule", "data_tools.vetting.semantic_duplicates"),
    *("data_tools.withdrawal.affected_models", "data_tools.withdraw_samples"),
}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file of every module of a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Dotted names of our own modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def depths(layers: list[list[str]]) -> dict[str, int]:
    """Place of each entry in its list."""
    return {name: place for place, names in enumerate(layers) for name in names}


def edges(package: str) -> list[tuple[str, str]]:
    """All imports of our own modules in a package."""
    known = modules("leam_mm") | modules("data_tools")
    ours = ("leam_mm.", "data_tools.")
    return [
        (name, target) for name, file in modules(package).items() for target in imports(file, known)
        if target.startswith(ours)
    ]  # fmt: skip


def test_every_file_has_a_layer() -> None:
    for package, layers in (("leam_mm", LEAM_MM), ("data_tools", DATA_TOOLS)):
        folders = {path.parent.name for path in (ROOT / package).glob("*/*.py")}
        files = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        expected = folders | (files if package == "leam_mm" else set())
        assert expected == set(depths(layers)), package


def test_imported_modules_exist() -> None:
    known = modules("leam_mm") | modules("data_tools")
    names = known.keys() | {name.removesuffix(".__init__") for name in known} | {n.rpartition(".")[0] for n in known}
    missing = [f"{name} -> {target}" for name, target in edges("leam_mm") + edges("data_tools") if target not in names]
    assert not missing, "\n".join(missing)


def test_leam_mm_imports_point_down() -> None:
    place = depths(LEAM_MM)
    wrong = []
    for name, target in edges("leam_mm"):
        own, other = name.split(".")[1], target.split(".")[1] if target.startswith("leam_mm.") else ""
        if own != other and not (other and place[other] < place.get(own, 99)):
            wrong.append(f"{name} -> {target}")
    assert not wrong, "\n".join(wrong)


def test_data_tools_imports_point_down() -> None:
    place = depths(DATA_TOOLS)
    wrong = []
    for name, target in edges("data_tools"):
        own, other = name.split(".")[1], target.split(".")[1]
        if target.startswith("leam_mm."):
            allowed = name in WITH_MODELS or name.rpartition(".")[0] in WITH_MODELS or other in WITHOUT_MODELS
        else:
            allowed = own == other or (other in place and place[other] < place.get(own, 99))
        if not allowed:
            wrong.append(f"{name} -> {target}")
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_files() -> None:
    graph: dict[str, set[str]] = {}
    for package in ("leam_mm", "data_tools"):
        for name, target in edges(package):
            graph.setdefault(name, set()).add(target)
    finished: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in finished:
            for target in sorted(graph.get(name, ())):
                walk(target, (*path, name))
            finished.add(name)

    for name in sorted(graph):
        walk(name, ())
