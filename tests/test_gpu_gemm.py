"""fqtsim/kernels/gpu/gemm.py: Triton's interpreter, torch operations and the Numba kernels give the same bits."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fqtsim.kernels import epilogue as numba_epilogue
from fqtsim.kernels.gpu import gemm, proof, tune
from fqtsim.kernels.gpu.epilogue import EXACT, WRAP32, Register, Side, Sums, Watch, composed_finish, finish, new_record
from fqtsim.kernels.gpu.gemm import (
    RUN,
    composed_int8_gemm,
    composed_int8_gemm_scaled,
    exact_terms,
    int8_gemm,
    int8_gemm_exact,
    int8_gemm_scaled,
)
from fqtsim.kernels.gpu.launch import through_interpreter

#: Triton reads it when it is imported, which another test may do before those below.
os.environ["TRITON_INTERPRET"] = "1"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install 'fqtsim[triton]'"
)

TYPES = (torch.int8, torch.uint8)
PAIRS = [(a, b) for a in TYPES for b in TYPES]
SHAPES = [(1, 1, 1), (3, 7, 5), (40, 130, 33), (64, 70, 16)]
REGISTERS = [
    WRAP32, EXACT, Register(20), Register(20, True), Register(32, True), Register(14, counted=True),
    Register(17, True, counted=True),
]  # fmt: skip


def codes(generator: torch.Generator, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    low, high = (-128, 128) if dtype == torch.int8 else (0, 256)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("types", PAIRS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_wrap_alike(types: tuple[Any, Any], shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    generator = torch.Generator().manual_seed(k)
    a, b = codes(generator, types[0], (m, k)), codes(generator, types[1], (n, k)).t()
    start = torch.randint(-(1 << 31), 1 << 31, (m, n), generator=generator).to(torch.int32)
    want = (a.long() @ b.long() + start).to(torch.int32)
    with through_interpreter():
        assert torch.equal(int8_gemm(a, b, start=start), want)
        assert torch.equal(int8_gemm(a.t().contiguous().t(), b.contiguous(), start=start), want)
    assert torch.equal(composed_int8_gemm(a, b, start=start), want)


@pytest.mark.parametrize("register", REGISTERS)
@pytest.mark.parametrize("types", PAIRS)
def test_scaled_products_equal_the_numba_epilogue(types: tuple[Any, Any], register: Register) -> None:
    m, k, n = 12, 130, 9
    generator = torch.Generator().manual_seed(register.bits or 0)
    a, b = codes(generator, types[0], (m, k)), codes(generator, types[1], (k, n))
    row = Side(codes(generator, types[0], (m // 3,)).int(), torch.rand(m // 3, generator=generator))
    column = Side(codes(generator, types[1], (n,)).int(), torch.rand(n, generator=generator))
    acc = register.reduce(a.long() @ b.long())
    want = np.empty((4, n, m // 4), np.float32)
    (za, row_step), (zb, column_step) = row.spread(m), column.spread(n)
    rows, columns = torch.stack((za, a.sum(1))).numpy(), torch.stack((zb, b.sum(0))).numpy()
    steps = row_step.double().numpy(), column_step.double().numpy()
    numba_epilogue.finish(acc.numpy(), 0, k, rows, columns, steps, want)
    records = [new_record("cpu"), new_record("cpu")]
    outer, inner = (torch.randint(-(1 << 31), 1 << 31, (2, count), generator=generator).int() for count in (4, 3))
    sums = [Sums(outer, inner, torch.zeros((1, 2, n), dtype=torch.int32)) for _ in range(3)]
    composed = composed_int8_gemm_scaled(
        a, b, row, column, 4, register=register, watch=Watch(records[0], int(acc.min()), 1 << 40, sums[0])
    )
    with through_interpreter():
        watch = Watch(records[1], int(acc.min()), 1 << 40, sums[1])
        fused = int8_gemm_scaled(a, b, row, column, 4, register=register, watch=watch)
        rowless = int8_gemm_scaled(a, b, row, column, register=register, channels_last=False)
        last = Watch(new_record("cpu"), 0, 0, sums[2])
        summed = int8_gemm_scaled(a, b, row, column, register=register, watch=last, channels_last=False)
    assert torch.equal(rowless, summed)
    words = (outer.long()[:, :, None] * inner.long()[:, None]).reshape(2, -1) % (1 << 32)
    # As the matrices are small, int64 holds the sums of 32-bit words times sums of 8-bit codes.
    wanted = (words @ acc) % (1 << 32)
    assert all(torch.equal(one.out[0].long() % (1 << 32), wanted) for one in sums)
    assert np.array_equal(composed.numpy(), want)
    assert np.array_equal(fused.numpy(), want)
    assert torch.equal(rowless, composed_int8_gemm_scaled(a, b, row, column, register=register))
    assert rowless.is_contiguous()
    assert torch.equal(*records)
    exact = a.long() @ b.long()
    assert records[0][:2].tolist() == [int(exact.min()), int(exact.max())]
    held = acc if register.counted else exact
    assert int(records[0][2]) == int((held == int(acc.min())).sum())
    assert int(records[0][3]) == (int((acc != exact).sum()) if register.counted else 0)


@pytest.mark.parametrize("dropped", [0, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_finish_of_accumulators(dropped: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(dropped)
    limit = 31 if dtype == torch.int32 else 50
    acc = torch.randint(-(1 << limit), 1 << limit, (10, 7), generator=generator).to(dtype)
    row, column = Side(None, torch.rand(10, generator=generator)), Side(torch.tensor(9), torch.tensor(0.3))
    sums = torch.randint(0, 1 << 40, (17,), generator=generator)
    with through_interpreter():
        fused = finish(acc.t().contiguous().t(), 1000, row, sums[:10], column, sums[10:], 5, dropped)
    assert torch.equal(fused, composed_finish(acc, 1000, row, sums[:10], column, sums[10:], 5, dropped))


def test_steps_at_the_ends_of_float32() -> None:
    a, b = torch.tensor([[1, -128]], dtype=torch.int8), torch.tensor([[1], [127]], dtype=torch.int8)
    for left in (2.0**-149, 2.0**-126, 1.7 * 2.0**-30, 3.0 * 2.0**90):
        row, column = Side(None, torch.tensor(left)), Side(None, torch.tensor(1.3 * 2.0**-20))
        with through_interpreter():
            got = int8_gemm_scaled(a, b, row, column)
        assert got.item() == np.float32(-16255.0 * (np.float64(row.step) * np.float64(column.step)))


def test_empty_products() -> None:
    step = Side(None, torch.tensor(1.0))
    for m, k, n in ((0, 3, 2), (2, 0, 3), (2, 3, 0)):
        a, b = torch.ones((m, k), dtype=torch.int8), torch.ones((k, n), dtype=torch.int8)
        with through_interpreter():
            assert torch.equal(int8_gemm(a, b), torch.zeros((m, n), dtype=torch.int32))
            assert int8_gemm_scaled(a, b, step, step).shape == (1, n, m)


def test_no_accumulator_can_overflow() -> None:
    """What makes Triton's saturating mma.sync harmless, for every pair of types and every split of a long K."""
    assert 128 * 128 * RUN < 1 << 31
    assert [exact_terms(*pair) for pair in PAIRS] == [131071, 65793, 65793, 33025]
    for k in (1, RUN, RUN + 1, 2 * RUN - 1, 5 * RUN, 627_200):
        parts = -(-k // RUN)
        for depth in (32, 64, 128):
            for count in (parts, parts + 1, 3 * parts):
                tiles = -(-k // depth)
                assert -(-tiles // count) * depth <= RUN


@pytest.mark.parametrize("types", PAIRS)
def test_sums_of_long_k(types: tuple[Any, Any]) -> None:
    a, b = (torch.full((1, 131_073), 255 if t == torch.uint8 else -128, dtype=t) for t in types)
    exact = a.long() @ b.t().long()
    assert torch.equal(int8_gemm(a, b.t()), exact.to(torch.int32))
    assert torch.equal(int8_gemm_exact(a, b.t()).long(), exact)


@pytest.mark.parametrize("register", [WRAP32, EXACT, Register(18)])
def test_parts_of_a_long_k(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits lowered to what the interpreter reaches."""
    monkeypatch.setattr(gemm, "RUN", 128)
    monkeypatch.setattr(gemm, "exact_terms", lambda a, b: 200)
    generator = torch.Generator().manual_seed(0)
    a, b = codes(generator, torch.uint8, (5, 500)), codes(generator, torch.int8, (500, 3))
    row, column = Side(torch.tensor(7), torch.tensor(0.3)), Side(torch.tensor(-5), torch.tensor(0.7))
    with through_interpreter():
        assert torch.equal(int8_gemm(a, b), composed_int8_gemm(a, b))
        assert int8_gemm_exact(a, b).dtype == torch.int64
        assert torch.equal(int8_gemm_exact(a, b), a.long() @ b.long())
        scaled = int8_gemm_scaled(a, b, row, column, 5, register=register)
    assert torch.equal(scaled, composed_int8_gemm_scaled(a, b, row, column, 5, register=register))


def test_the_proof_passes_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ((1, 64, 1), (3, 7, 5), (17, 70, 33))
    assert proof.fault("cpu") is None
    with through_interpreter():
        assert proof.fault("cpu", small) is None
    monkeypatch.setattr(proof, "int8_gemm_exact", lambda a, b: int8_gemm(a, b) - 1)
    assert proof.fault("cpu", small) == "the exact INT8 product is wrong for int8 x int8 (1, 64, 1)"


def test_a_probe_of_the_accumulator() -> None:
    with through_interpreter():
        assert proof.overflow_of("cpu", 16) == "wrap"


def test_one_form_is_chosen_without_a_device() -> None:
    tiles = [tune.Tile(16, 16, 32, 4, 1), tune.Tile(32, 32, 32, 4, 1)]
    out = tune.run(("nothing",), tiles, lambda tile: torch.tensor(tile.rows))
    assert out.item() == 16
    assert not tune.TIMINGS


COMPILE = """
import re, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fqtsim.kernels.gpu.triton_gemm import scaled_kernel as kernel
sizes = dict(BM=64, BN=64, BK=64, GROUP=8)
constants = dict(CA=128, CB=128, BITS=32, UNSIGNED=False, WIDE=True, RECORD=2, TMA=False, **sizes)
types = {name: "i32" for name in kernel.arg_names}
types |= dict(a="*i8", b="*i8", out="*fp32", row_step="*fp32", column_step="*fp32", low="i64", high="i64")
types |= {name: "*i32" for name in ("outer_words", "inner_words", "sums")}
types |= {name: "*i64" for name in ("row_zero", "row_sum", "column_zero", "column_sum", "record")}
signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
source = ASTSource(fn=kernel, signature=signature, constexprs=places)
ptx = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=dict(enable_fp_fusion=False)).asm
floats = r"(?:fma|mul|add|sub|cvt)[.a-z_0-9]*f(?:32|64)[.a-z0-9]*"
print(*sorted(set(re.findall(floats + r"|w?g?mma[.]\\S+s8", ptx["ptx"]))))
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_code_rounds_where_it_should(capability: int, tmp_path: Path) -> None:
    """Compiled for a device that need not be there: integer tensor cores, no contraction, no flush to zero."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    script = tmp_path / "compile.py"
    script.write_text(COMPILE, encoding="utf-8")  # triton reads the source of what it compiles
    run = subprocess.run(
        [sys.executable, script, str(capability)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    words = run.stdout.split()
    assert any("mma" in word and "s8" in word for word in words), words
    assert "mul.f64" in words or "mul.rn.f64" in words, words
    assert "cvt.rn.f32.f64" in words, words
    assert not [word for word in words if word.startswith("fma") or "ftz" in word], words


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_proof_on_a_device() -> None:
    code = "from fqtsim.kernels.gpu import proof; print(proof.fault('cuda'))"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "None", run.stdout + run.stderr
