"""Instance normalisation in one pass on a GPU, as far as it can be tried without one, and on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
triton = pytest.importorskip("triton", reason="no Triton: kernels for GPUs are not tested")


def test_interpreted() -> None:
    """In a process of its own: whether kernels are interpreted is settled when Triton is imported."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "one_pass_interpreted.py"],
        cwd=HERE,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["normalise", "differentiate"])
def test_kernels_compile(kernel: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To machine code, of which nothing goes to a thread's own memory, for the largest images."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from diver.networks import kernels, one_pass

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(kernels, kernel)
    images = {"x_from", "y_to", "dy_from", "dx_to"}
    constants = {"RELU": True, "HALVE": True, "PLACES": 256, "BLOCK": 16}
    types = {
        name: "constexpr" if name in constants
        else "fp32" if name == "eps"
        else "i32" if name in ("pixels", "channels", "row")
        else "*bf16" if name in images
        else "*fp32"
        for name in function.arg_names
    }  # fmt: skip
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    wide = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(types)
        if types[name] not in ("fp32", "constexpr")
    }
    source = ASTSource(fn=function, signature=types, constexprs=places, attrs=wide)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": one_pass.WARPS[1]})
    assert len(made.asm["cubin"]) > 1000
    # Wide reads and writes of images, and no local memory.
    text = made.asm["ptx"]
    assert "ld.global.v4" in text and "st.global.v4" in text
    assert "ld.local" not in text and "st.local" not in text


def test_where_they_do_not_run_that_is_said() -> None:
    from diver.networks.one_pass import works

    with pytest.warns(UserWarning, match="instance normalisation in one pass is not used on cpu: "):
        assert not works.__wrapped__(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: kernels are interpreted and compiled, but not run")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("shape", "halve"), [((7, 128, 32, 32), True), ((7, 64, 32, 32), False), ((7, 40, 4, 4), False)]
)
def test_on_a_gpu(shape: tuple[int, ...], halve: bool, fused: bool) -> None:
    from diver.networks.one_pass import OnePass

    torch.manual_seed(0)
    norm = nn.GroupNorm(shape[1], shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.cuda()
    module = OnePass(norm, True, halve)
    run = torch.compile(module) if fused else module
    x = torch.randn(shape, device="cuda", requires_grad=True)
    leaves = [x, norm.weight, norm.bias]
    found = run(x)
    wanted = F.relu(norm(x))
    wanted = F.avg_pool2d(wanted, 2) if halve else wanted
    dy = torch.randn_like(wanted)
    pairs = zip(
        (found, *torch.autograd.grad(found, leaves, dy)),
        (wanted, *torch.autograd.grad(wanted, leaves, dy)),
        strict=True,
    )
    for a, b in pairs:
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
