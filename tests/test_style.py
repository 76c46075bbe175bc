"""Rules of style that a program can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("leam_mm", "data_tools", "tests")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))])
OURS = [path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts]


def tracked() -> list[Path]:
    """Files under version control; outside a checkout, every text file of the packages."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        return [*SOURCES, *(ROOT / "configs").rglob("*.yaml")]
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_files_are_short() -> None:
    assert len(SOURCES) > 50
    assert not [f"{name(path)}: {n}" for path in SOURCES if (n := len(path.read_text().splitlines())) > 400]


def test_folders_are_two_deep() -> None:
    assert not [name(path) for path in SOURCES if len(path.relative_to(ROOT).parts) > 3]


def test_names_say_something() -> None:
    empty = {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc", "core"}
    named = {path: {*path.relative_to(ROOT).parent.parts, path.stem} for path in SOURCES}
    assert not [name(path) for path, parts in named.items() if parts & empty or re.search(r"_v\d+$", path.stem)]
    assert not [name(path) for path in OURS if path.name == "__init__.py" and "import torch" in path.read_text()]


def overloaded(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a definition is only one of the signatures of a function."""
    return any(isinstance(part, ast.Name) and part.id == "overload" for part in node.decorator_list)


def test_public_things_have_docstrings() -> None:
    missing = []
    for path in OURS:
        tree: ast.Module = ast.parse(path.read_text(encoding="utf-8"))
        if path.name != "__init__.py" and not ast.get_docstring(tree):
            missing.append(name(path))
        public = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        nodes = [*tree.body, *(node for body in public for node in body.body)]
        missing += [
            f"{name(path)}: {node.name}"
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not (node.name.startswith("_") or ast.get_docstring(node) or overloaded(node))
        ]
    assert not missing


def test_every_module_of_ours_has_its_tests() -> None:
    """A test file of its name, or one that imports it."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    tests, imported = {path.stem.removeprefix("test_") for path in files}, set().union(*map(imports, files))
    folders = ("losses", "diffusion", "data", "encoders", "codecs", "captions", "denoisers", "optim", "techniques")
    modules = [path for path in OURS if path.parent.name in folders and path.name != "__init__.py"]
    dotted = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules}
    assert len(modules) > 50
    assert not [name(path) for path in modules if path.stem not in tests and dotted[path] not in imported]


def test_no_test_file_imports_from_another() -> None:
    """What several test files need stands in tests/toys."""
    files = sorted((ROOT / "tests").glob("*.py"))
    stems = {path.stem for path in files}
    found = [f"{name(path)}: {module}" for path in files for module in imports(path) if stems & set(module.split("."))]
    assert not found


def test_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_no_marks_of_unfinished_work() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|pragma: no cover|^\s*except:\s*(#|$)", re.MULTILINE)
    others = [path for path in SOURCES if path != Path(__file__).resolve()]
    assert not [f"{name(path)}: {found[0]}" for path in others if (found := marks.search(path.read_text()))]


@pytest.mark.parametrize("folder", ["losses", "diffusion"])
def test_maths_imports_no_trainer_and_no_ranks(folder: str) -> None:
    paths = sorted((ROOT / "leam_mm" / folder).glob("*.py"))
    assert paths
    forbidden = ("lightning", "torch.distributed", "leam_mm.distributed", "jsonargparse")
    assert not [f"{name(path)}: {found}" for path in paths for found in imports(path) if found.startswith(forbidden)]


def test_shard_format_needs_no_torch() -> None:
    assert not [found for found in imports(ROOT / "leam_mm/data/shard_index.py") if found.startswith("torch")]


def test_importing_the_package_is_light() -> None:
    code = "import leam_mm, sys; print(*sorted({'torch', 'numpy', 'lightning', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_weights_are_never_unpickled() -> None:
    loads = re.compile(r"torch\.load\((?![^)]*weights_only=True)|pickle\.load|allow_pickle=True|yaml\.(unsafe_)?load\(")
    assert not [f"{name(path)}: {found[0]}" for path in OURS if (found := loads.search(path.read_text()))]


def test_no_path_of_one_machine_is_committed() -> None:
    # Written in pieces, so that this file does not contain what it forbids.
    paths = ["/" + "work/", "/" + "root/", "/" + "home/", "/" + "Users/"]
    indexes = ["index" + "-url", "pypi." + "org/simple", "files.pythonhosted" + ".org", "@ " + "file:"]
    bad = re.compile("|".join(rf"(?<![\w.]){re.escape(word)}" for word in paths + indexes))
    found = []
    for path in tracked():
        if path.suffix in {".py", ".yaml", ".yml", ".md", ".txt", ".toml", ".sh", ".json"} or path.name == "Makefile":
            text = path.read_text(encoding="utf-8")
            found += [f"{name(path)}: {match[0]}" for match in [bad.search(text)] if match]
    assert not found


def test_nothing_large_or_binary_is_committed() -> None:
    large = {name(path): path.stat().st_size for path in tracked() if path.stat().st_size > 400_000}
    assert not [path for path in large if not path.endswith((".md", ".png", ".svg", ".webp"))], large
    assert not [name(path) for path in tracked() if path.suffix in {".ckpt", ".tar", ".pt", ".safetensors", ".npz"}]


def test_vague_words_do_not_come_back() -> None:
    vague = re.compile(r"\btold\b", re.IGNORECASE)
    assert not [name(path) for path in OURS if vague.search(path.read_text(encoding="utf-8"))]


# Their temporary names hold the machine (shared file systems), or they rename what was checked after it was written.
OWN_RENAMES = {
    "data_tools/download/download_worker.py",
    "data_tools/download/image_download.py",
    "data_tools/withdrawal/shard_withdrawal.py",
    "leam_mm/data/remote_shards.py",
    "leam_mm/run_lock.py",  # the number of the process is what it records
    "leam_mm/callbacks/watchdog.py",  # the same
}


def test_files_are_written_beside_and_renamed_in_one_place() -> None:
    by_hand = re.compile(r"os\.getpid\(\)|os\.replace\(")
    # run_lock.py writes the number of its process into the lock file, as its content.
    allowed = {
        "leam_mm/files.py",
        "leam_mm/run_lock.py",
        *(name(path) for path in (ROOT / "data_tools/work").glob("*.py")),
        *OWN_RENAMES,
    }
    assert {name(path) for path in OURS if by_hand.search(path.read_text(encoding="utf-8"))} <= allowed
