"""No call that needs CUDA outside a guarded function: CPUs and AMD GPUs run the same code.

torch calls ROCm devices "cuda", too, so that ``torch.cuda`` and ``device.type == "cuda"`` are right for AMD; what fails
is code that assumes such a device, or a library without kernels for CPUs. A use is guarded if the same function asks in
the same line or above: ``torch.cuda.is_available()`` or ``device_count()``, a comparison with "cuda" or "cpu",
``is_cuda``, or ``startswith("cuda")``. That the question stands before the use is checked, not what follows from its
answer. A function that is called from behind such a question is listed with the reason and has a docstring.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [*sorted((ROOT / "leam_mm").rglob("*.py")), *sorted((ROOT / "data_tools").rglob("*.py"))]
SOURCES += [ROOT / "train.py", ROOT / "evaluate.py"]
HARMLESS = {"torch.cuda.is_available", "torch.cuda.device_count"}  # False and 0 without a device
NVIDIA_ONLY = {"xformers", "flash_attn", "flash_attn_interface", "transformer_engine", "apex", "pynvml", "cupy"}
# (file, function): why it needs no question of its own.
GUARDED_BY_CALLER = {
    ("leam_mm/denoisers/attention.py", "_use"): "xformers is chosen after probe_xformers, which asks for the device",
    ("leam_mm/encoders/sequence_packing.py", "attend"): "a packing has a bias after probe_block_diagonal, which asks",
    (
        "leam_mm/evaluators/image_features.py",
        "exact_arithmetic",
    ): "switches of every build, turned off only",
}


def dotted(node: ast.AST) -> str:
    """Name of an attribute chain such as ``torch.cuda.synchronize``, or ""."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def is_cuda(node: ast.AST) -> bool:
    """Whether a node is the text "cuda", "cuda:1" or f"cuda:{n}"."""
    if isinstance(node, ast.JoinedStr):
        return bool(node.values) and is_cuda(node.values[0])
    return isinstance(node, ast.Constant) and str(node.value).partition(":")[0] == "cuda"


def is_text(node: ast.AST, *texts: object) -> bool:
    """Whether a node is one of these texts."""
    return isinstance(node, ast.Constant) and node.value in texts


def asks(node: ast.AST) -> bool:
    """Whether a node asks if there is a CUDA or ROCm device."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            return any(map(is_cuda, node.args))
        return dotted(node.func) in HARMLESS
    if isinstance(node, ast.Attribute):
        return node.attr == "is_cuda"
    sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
    return any(is_cuda(side) or is_text(side, "cpu") for side in sides)


def needs(node: ast.AST) -> str:
    """What a node needs CUDA for, or ""."""
    name = dotted(node)
    if name.startswith("torch.cuda.") and name not in HARMLESS:
        return name
    if name.startswith(("torch.backends.cuda.", "torch.backends.cudnn.")):
        return name
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        return next((f"import {name}" for name in names if name.partition(".")[0] in NVIDIA_ONLY), "")
    given: list[ast.expr] = []
    if isinstance(node, ast.Call):
        method = node.func.attr if isinstance(node.func, ast.Attribute) else dotted(node.func)
        if method in ("cuda", "pin_memory"):
            return f".{method}()"
        if any(word.arg == "pin_memory" and is_text(word.value, True) for word in node.keywords):
            return "pin_memory=True"
        given = [] if method == "startswith" else [*node.args, *(word.value for word in node.keywords)]
        where = f"{method}(...)"
    elif isinstance(node, ast.arguments):
        given, where = [*node.defaults, *filter(None, node.kw_defaults)], "default"
    elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        given, where = [node.value], "value"
    if any(map(is_cuda, given)):
        return f'{where} "cuda"'
    return f'{where} "nccl"' if any(is_text(value, "nccl") for value in given) else ""


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, list[ast.AST]]]:
    """Each function, and the module itself as "", with the nodes that belong to it and to no inner function."""
    own: list[ast.AST] = []
    queue = list(ast.iter_child_nodes(tree))
    while queue:
        node = queue.pop()
        own.append(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from functions(node, node.name)
        else:
            queue += ast.iter_child_nodes(node)
    yield name, own


def unguarded(text: str) -> list[tuple[str, int, str]]:
    """Uses of CUDA without a question: function, line, what."""
    found = []
    for name, nodes in functions(ast.parse(text)):
        asked = min((node.lineno for node in nodes if asks(node)), default=10**9)  # type: ignore[attr-defined]
        for node in nodes:
            if what := needs(node):
                inner = next(ast.walk(node), node) if hasattr(node, "lineno") else node.defaults[0]  # type: ignore[attr-defined]
                if inner.lineno < asked:  # type: ignore[attr-defined]
                    found.append((name, inner.lineno, what))  # type: ignore[attr-defined]
    return sorted(set(found), key=lambda use: use[1])


def test_code_runs_without_cuda() -> None:
    wrong, listed = [], set()
    for file in SOURCES:
        where = file.relative_to(ROOT).as_posix()
        for function, line, what in unguarded(file.read_text(encoding="utf-8")):
            listed.add((where, function))
            if (where, function) not in GUARDED_BY_CALLER:
                wrong.append(f"{where}:{line} {function or 'module'}: {what}")
    assert not wrong, "\n".join(wrong)
    assert listed == set(GUARDED_BY_CALLER), "the list names functions that need no entry"
    for where, function in GUARDED_BY_CALLER:
        nodes = ast.walk(ast.parse((ROOT / where).read_text(encoding="utf-8")))
        named = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function]
        assert named and all(map(ast.get_docstring, named)), f"{where}: {function}"


BAD = {
    "def f():\n    torch.cuda.synchronize()": "torch.cuda.synchronize",
    "torch.backends.cudnn.benchmark = True": "torch.backends.cudnn.benchmark",
    "def f(model):\n    return model.cuda()": ".cuda()",
    "def f(x):\n    return x.to('cuda:0')": 'to(...) "cuda"',
    "def f(x):\n    return torch.zeros(3, device='cuda')": 'zeros(...) "cuda"',
    "def f(rank):\n    return torch.device(f'cuda:{rank}')": 'device(...) "cuda"',
    "def f(device='cuda'):\n    return device": 'default "cuda"',
    "class A:\n    device: str = 'cuda'": 'value "cuda"',
    "def f():\n    init_process_group('nccl')": 'init_process_group(...) "nccl"',
    "def f(data):\n    return DataLoader(data, pin_memory=True)": "pin_memory=True",
    "def f(x):\n    return x.pin_memory()": ".pin_memory()",
    "import xformers.ops": "import xformers.ops",
    "def f():\n    from flash_attn import flash_attn_func": "import flash_attn",
    # asked too late, or in another function
    "def f():\n    torch.cuda.synchronize()\n    return torch.cuda.is_available()": "torch.cuda.synchronize",
    "def g():\n    return torch.cuda.is_available()\ndef f():\n    torch.cuda.synchronize()": "torch.cuda.synchronize",
}
GOOD = (
    "def f():\n    if torch.cuda.is_available():\n        torch.cuda.synchronize()",
    "def f(device):\n    if device.type != 'cuda':\n        return 'cpu'\n    from xformers.ops import attention",
    "def f(device):\n    return torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'",
    "def f(data):\n    return DataLoader(data, pin_memory=torch.cuda.is_available())",
    "def f(name):\n    if name.startswith('cuda') and not torch.cuda.is_available():\n        raise ValueError",
    "device: Literal['cpu', 'cuda'] = 'cpu'",
    "def f():\n    return torch.cuda.device_count()",
    "def f():\n    return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]",
    "def f(device):\n    if device.type == 'cpu':\n        return ''\n    return torch.cuda.get_device_name(device)",
    "def f(tensor):\n    if tensor.is_cuda:\n        torch.cuda.synchronize()",
    "versions = {'nccl': None}",
)


@pytest.mark.parametrize("text", BAD)
def test_each_unguarded_use_is_found(text: str) -> None:
    assert [what for _, _, what in unguarded(text)] == [BAD[text]]


@pytest.mark.parametrize("text", GOOD)
def test_questions_guard(text: str) -> None:
    assert unguarded(text) == []
