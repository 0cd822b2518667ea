"""native@cuda: the GPU's own INT8 product against stepwise, and what is said where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fqtsim
from fqtsim.backends import get_backend
from fqtsim.data import load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.models import build_model

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.gpu
@no_cuda
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (16, 64, 8), (17, 130, 33), (128, 576, 64), (9, 8192, 16)])
@pytest.mark.parametrize("gemm", ["fprop", "dgrad"])
def test_int8_product_equals_stepwise(shape: tuple[int, int, int], gemm: str) -> None:
    m, k, n = shape
    path = fqtsim.load_hardware("int8_acc32_wrap").datapath_for(gemm)
    rng = np.random.default_rng(k)
    a = rng.integers(path.a_format.minimum, path.a_format.maximum + 1, (m, k))
    b = rng.choice([-128, 127], (k, n))
    on_gpu = fqtsim.gemm(a, b, "int8_acc32_wrap", gemm, backend="native@cuda")
    on_cpu = fqtsim.gemm(a, b, "int8_acc32_wrap", gemm, backend="stepwise")
    assert np.array_equal(on_gpu.codes, on_cpu.codes)
    assert on_gpu.events == on_cpu.events


@pytest.mark.gpu
@no_cuda
def test_cuda_operands_come_back_on_their_device() -> None:
    a = torch.full((32, 64), -128, dtype=torch.int8, device="cuda")
    out = fqtsim.gemm(a, a.T.contiguous(), "int8_acc32_wrap", "dgrad", backend="native@cuda")
    assert out.codes.device.type == "cuda"
    assert bool((out.codes == 64 * 128 * 128).all())


@pytest.mark.gpu
@no_cuda
def test_a_training_run_has_the_cpu_digest() -> None:
    data = load_dataset("digits")
    digests = set()
    for backend in ("stepwise", "native@cuda"):
        net = fqtsim.fully_quantize(build_model("cnn", data.info, 0), "bhq5", "int8_acc32_wrap", backend, seed=0)
        trainer = fqtsim.Trainer(net, dict(name="sgd", lr=0.1, momentum=0.9), dict(name="constant"))
        for step in range(5):
            x, y = training_batch(data, 0, step, 64)
            trainer.step(torch.from_numpy(x), torch.from_numpy(y))
        digests.add(trainer.digest().hex)
    assert len(digests) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_native_cuda_refuses_and_says_why() -> None:
    message = "native@cuda: torch sees no CUDA device; use backend emulator"
    a, b = np.ones((2, 3), np.int8), np.ones((3, 2), np.int8)
    with pytest.raises(fqtsim.BackendRefused) as caught:
        fqtsim.gemm(a, b, "int8_acc32_wrap", "dgrad", backend="native@cuda")
    assert str(caught.value) == message


def test_who_has_a_cuda_form() -> None:
    assert (get_backend("emulator@cuda").name, get_backend("emulator@cuda").device) == ("emulator", "cuda")
    with pytest.raises(fqtsim.BackendRefused) as caught:
        get_backend("reference@cuda")
    assert str(caught.value) == (
        "backend = 'reference@cuda': reference runs on the CPU only; use reference@cpu or native@cuda"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("backend", ["native", "emulator"])
def test_without_a_gpu_training_is_refused(backend: str) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(fqtsim.BackendRefused) as caught:
        fqtsim.fully_quantize(model, "ptq8", "int8_acc32_wrap", f"{backend}@cuda", seed=0)
    assert str(caught.value) == f"{backend}@cuda: torch sees no CUDA device; use backend emulator"
