"""Checks of a device: speed of a matrix product, and the attention kernels with their gradients."""

import importlib.util
import os
import time
from typing import Any

from leam_mm.launch.check_process import Target
from leam_mm.launch.check_result import CheckResult, Verdict, expected

GPU_SIDE, CPU_SIDE = 8192, 1024  # of the square matrices
MATMUL_SECONDS = 1.0
SLOW, BROKEN = 0.5, 0.25  # share of the profile's peak; a healthy GPU reaches 0.6 to 0.85 with these matrices
LARGEST_ERROR = 0.05  # relative to the largest value; bf16 kernels differ by about 0.01


def task_device(target: Target) -> Any:
    """Return the device of this task: a GPU by local rank, or the CPU with its share of the threads."""
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda", target.ranks.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // target.ranks.local_world))
    return torch.device("cpu")


def check_matmul(target: Target) -> list[CheckResult]:
    """Measure the speed of a product of large bf16 matrices; on a CPU of small ones in fp32 and bf16."""
    import torch

    device = task_device(target)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        speeds = {str(dtype).removeprefix("torch."): round(matmul_tflops(device, dtype, CPU_SIDE, 0.5), 3)
                  for dtype in (torch.float32, torch.bfloat16)}  # fmt: skip
        note = f"CPU with {threads} threads, not a GPU: " + ", ".join(f"{k} {v:g}" for k, v in speeds.items())
        data = {"device": "cpu", "threads": threads, "side": CPU_SIDE, "tflops": speeds}
        return [CheckResult("matrix product", speeds["float32"], "TFLOP/s", reason=note, data=data)]
    speed = matmul_tflops(device, torch.bfloat16, GPU_SIDE, MATMUL_SECONDS)
    fact = target.profile.gpu.peak_tflops
    verdict: Verdict = "pass"
    note = torch.cuda.get_device_name(device)
    if fact.known and speed < SLOW * fact.needed():
        verdict = "fail" if speed < BROKEN * fact.needed() else "warn"
        note += f": {speed / fact.needed():.0%} of the peak"
    return [
        CheckResult(
            "matrix product",
            round(speed, 1),
            "TFLOP/s",
            expected(fact, "TFLOP/s", f"at least {SLOW:.0%} of"),
            verdict,
            note,
            "look for another process on the GPU, a power cap and high temperature; else exclude the node"
            if verdict != "pass" else "",
            {"device": device.type, "side": GPU_SIDE, "tflops": {"bfloat16": speed}},
        )
    ]  # fmt: skip


def matmul_tflops(device: Any, dtype: Any, side: int, seconds: float) -> float:
    """Return the speed of square matrix products in TFLOP/s, 2 FLOPs per multiply-add."""
    import torch

    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(one)

    def run(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            torch.mm(one, other, out=out)
        _synchronize(device)
        return time.perf_counter() - began

    run(3)
    count = max(3, min(2000, int(seconds / max(run(3) / 3, 1e-6))))
    return 2 * side**3 * count / run(count) / 1e12


def _synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":  # ROCm devices are called cuda, too
        torch.cuda.synchronize(device)


def check_attention(target: Target) -> list[CheckResult]:
    """Name the kernel that denoisers choose here, and compare torch's kernels, backward too, with the plain formula."""
    import torch

    from leam_mm.denoisers.attention import probe_packed, probe_xformers

    device = task_device(target)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    refused = {"packed": probe_packed(device, dtype, {64}), "xformers": probe_xformers(device, dtype, {64})}
    chosen = next((name for name, reason in refused.items() if not reason), "sdpa")
    errors = attention_errors(device, dtype)
    default = errors.pop("default")
    wrong = {name: error for name, error in errors.items() if isinstance(error, float) and not error < LARGEST_ERROR}
    bad = not isinstance(default, float) or not default < LARGEST_ERROR
    packages = {name: importlib.util.find_spec(name) is not None for name in ("xformers", "flash_attn")}
    note = f"on {device.type} in {str(dtype).removeprefix('torch.')} denoisers with masked captions use {chosen}; sdpa "
    note += f"differs from math by {default:.2g}" if isinstance(default, float) else f"fails: {default}"
    note += "".join(f"; {name} differs by {error:.2g}" for name, error in wrong.items())
    note += "".join(f"; {name} not used: {reason}" for name, reason in refused.items() if reason)
    note += "".join(f"; {name} not installed" for name, there in packages.items() if not there)
    return [
        CheckResult(
            "attention",
            chosen,
            "",
            f"largest relative error below {LARGEST_ERROR}, gradients included",
            "fail" if bad else "warn" if wrong else "pass",
            note,
            "disable the kernel that differs: TORCH_CUDNN_SDPA_ENABLED=0 for cudnn; for others use another build of "
            "torch" if bad or wrong else "",
            {"default_error": default, "errors": errors, "refused": refused, "installed": packages},
        )
    ]  # fmt: skip


def attention_errors(device: Any, dtype: Any) -> dict[str, float | str]:
    """Compare torch's attention with the plain formula: 64 channels, 200 tokens, output and gradients.

    Returns:
        Largest relative difference by kernel, or why it does not run here; ``default`` is what torch chooses itself.
    """
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(2, 4, 200, 64, generator=generator).to(device, dtype) for _ in range(4)]

    def results(backends: Any) -> list[Any]:
        parts = [part.clone().requires_grad_() for part in random[:3]]
        if backends is None:
            out = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        else:
            with sdpa_kernel(backends):
                out = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return [out.detach(), *torch.autograd.grad((out * random[3]).sum(), parts)]

    reference = results([SDPBackend.MATH])
    kinds = {"default": None, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
             "cudnn": SDPBackend.CUDNN_ATTENTION}  # fmt: skip
    errors: dict[str, float | str] = {}
    for name, backend in kinds.items():
        try:
            found = results(None if backend is None else [backend])
            pairs = zip(found, reference, strict=True)
            errors[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
        except RuntimeError as error:
            errors[name] = str(error).splitlines()[0]
    return errors
