"""The primitives by torch operations equal those of NumPy bit for bit, note what stops a step, and are proven."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on CPU tensors

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fqtsim.backends.allowed import only_allowed_calls, reason_against
from fqtsim.backends.fused_proof import pairs, prove_fused
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.backends.torch_primitives import TorchPrimitives
from fqtsim.errors import BackendRefused, InputError, TrainingStopped
from fqtsim.kernels.gpu import norm
from fqtsim.kernels.gpu.launch import has_triton, through_interpreter

ANY = st.floats(width=32)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SMALL = st.floats(-(2.0**20), 2.0**20, width=32)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5), elements=ANY)
needs_triton = pytest.mark.skipif(not has_triton(), reason="triton is not installed")


@pytest.fixture
def q() -> TorchPrimitives:
    return TorchPrimitives("cpu")


def same(ours: Any, theirs: Any) -> None:
    """Compare bits; any NaN equals any other, since no rule says which one comes out."""
    ours, theirs = ours.numpy(), np.asarray(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    plain = ~np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), ~plain)
    assert ours[plain].tobytes() == theirs[plain].tobytes()


@given(ARRAYS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_operations_of_two_and_of_one(x: np.ndarray, random: Any) -> None:
    q = TorchPrimitives("cpu")
    y = np.array([random.choice([*x.ravel().tolist(), 0.0, -0.0, 3.0]) for _ in range(x.size)], np.float32)
    y = y.reshape(x.shape)
    for name in ("add", "subtract", "multiply", "divide", "maximum"):
        same(getattr(q, name)(q.array(x), q.array(y)), getattr(P, name)(x, y))
        same(getattr(q, name)(q.array(x), 0.1), getattr(P, name)(x, 0.1))
        same(getattr(q, name)(np.float32(3), q.array(y)), getattr(P, name)(np.float32(3), y))
    for name in ("sqrt", "exp", "log", "rcbrt"):
        same(getattr(q, name)(q.array(x)), getattr(P, name)(x))


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=4, max_side=5), elements=FINITE))
@settings(deadline=None)
def test_sums_and_moves(x: np.ndarray) -> None:
    q, t = TorchPrimitives("cpu"), torch.from_numpy(x)
    for axes in (None, (0,), (-1, 0), tuple(range(x.ndim))):
        for keepdims in (False, True):
            same(q.exact_sum64(t, axes, keepdims), P.exact_sum64(x, axes, keepdims))
            same(q.exact_sum64(t.transpose(0, 1), axes, keepdims), P.exact_sum64(x.swapaxes(0, 1), axes, keepdims))
    margins = [(0, 1), *[(2, 0)] * (x.ndim - 1)]
    same(q.pad(t, margins, -3.0), P.pad(x, margins, -3.0))
    same(q.select(t > 0, t), P.select(x > 0, x))
    same(q.where(t > 1, 6, t), P.where(x > 1, 6, x))
    same(q.row_maximum(t.reshape(len(t), -1)), P.row_maximum(x.reshape(len(x), -1)))
    same(q.stack_last([t, t]), P.stack_last([x, x]))


@given(hnp.arrays(np.float32, 12, elements=SMALL))
@settings(deadline=None)
def test_cos(x: np.ndarray) -> None:
    q = TorchPrimitives("cpu")
    same(q.cos(q.array(x)), P.cos(x))


def test_random_words_masks_and_targets(q: TorchPrimitives) -> None:
    words, ours = P.random_words(2**40 + 5, 7, 9, 1003), q.random_words(2**40 + 5, 7, 9, 1003)
    assert np.array_equal(ours.numpy().view(np.uint32), words)
    for threshold in (0, 1 << 31, (1 << 31) + 1, (1 << 32) - 1, 1 << 32):
        assert np.array_equal(q.at_least(ours, threshold).numpy(), P.at_least(words, threshold))
    labels = np.array([2, 0, 1])
    same(q.rows_with((3, 4), np.float32(0.1), labels, np.float32(0.7)), P.rows_with((3, 4), np.float32(0.1), labels,
                                                                                  np.float32(0.7)))  # fmt: skip
    with pytest.raises(InputError, match="stream = -1"):
        q.random_words(0, -1, 0, 4)


def test_a_double_is_not_taken_for_a_float32(q: TorchPrimitives) -> None:
    with pytest.raises(InputError, match=r"^dtype = torch.float64: operands must be float32"):
        q.add(torch.ones(2, dtype=torch.float64), 1.0)


def test_the_vectors_pass_and_a_wrong_primitive_does_not(q: TorchPrimitives) -> None:
    q.prove()

    class ByReciprocal(TorchPrimitives):
        def divide(self, x: Any, y: Any) -> Any:
            return self.operand(x) * (self.number(1.0) / self.operand(y))

    with pytest.raises(BackendRefused, match=r"^torch@cpu: primitive divide\("):
        ByReciprocal("cpu").prove()


@needs_triton
def test_fused_forms_are_proven_and_a_wrong_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for name, _, _ in pairs(torch.device("cpu"))}
    assert {
        "batch norm gradients",
        "batch norm with ReLU gradients",
        "BHQ groups",
        "BHQ mixing",
        "sgd",
        "exact sum",
    } <= names
    with through_interpreter(), np.errstate(all="ignore"):  # NumPy stands in for the device, and warns
        prove_fused(torch.device("cpu"))
        right = norm.normalize
        monkeypatch.setattr(norm, "normalize", lambda *operands: right(*operands) * 1.0000001)
        with pytest.raises(BackendRefused, match=r"^cpu: the fused form of batch norm differs"):
            prove_fused(torch.device("cpu"))
        monkeypatch.setattr(norm, "normalize", lambda *operands: right(*operands) * (1 + 1e-6 * operands[4]))
        with pytest.raises(BackendRefused, match=r"^cpu: the fused form of batch norm with ReLU differs"):
            prove_fused(torch.device("cpu"))


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_fault_waits_for_its_reader_and_the_first_one_counts(q: TorchPrimitives) -> None:
    bad = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])

    def step() -> None:
        with q.faults.reading_once():
            q.faults.enter("layer 'a', x", 3)
            q.exact_sum(bad[1])
            q.faults.enter("layer 'b', y")
            q.extremes(bad)
            q.faults.settle()
            q.faults.enter("layer 'c', z")
            q.exact_sum(bad)

    with pytest.raises(TrainingStopped) as stopped:
        step()
    assert str(stopped.value) == "step 3: layer 'b', y: NaN or infinity; the step cannot go on"
    q.faults.settle()  # nothing is left


def test_outside_a_block_settle_reads(q: TorchPrimitives) -> None:
    q.faults.enter("layer 'a', sum", 0)
    q.exact_sum(torch.full((9,), 3e38))
    with pytest.raises(TrainingStopped, match=r"^step 0: layer 'a', sum: a sum is beyond float32"):
        q.faults.settle()


# --- the list of allowed calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.add(x, x, alpha=2),
        lambda x: torch.addcmul(x, x, x),
        lambda x: torch.lerp(x, x, 0.5),
        lambda x: x.sum(),
        lambda x: x.mean(),
        lambda x: x @ x,
        lambda x: torch.rsqrt(x),
        lambda x: torch.sqrt(x),
        lambda x: torch.rand(3),
        lambda x: x / 3.0,
        lambda x: torch.nn.functional.batch_norm(x, None, None, training=True),
        lambda x: torch.exp(x),
        lambda x: torch.cumsum(x, 0),
    ],
)
def test_calls_that_round_in_their_own_way_are_refused(call: Any) -> None:
    x = torch.ones(3, 3)
    call(x)
    with pytest.raises(InputError, match=r"use a primitive"), only_allowed_calls():
        call(x)


def test_integers_and_single_operations_are_allowed() -> None:
    x, k = torch.ones(3, 3), torch.ones(3, 3, dtype=torch.int64)
    with only_allowed_calls():
        total, quotient, product = k.sum(), (x + x * x - x) / x, (x.to(torch.float64) @ x.to(torch.float64))
    assert int(total) == 9
    assert torch.equal(quotient, x)
    assert torch.equal(product.to(torch.int64), 3 * k)
    assert reason_against("something_new", (x,), {}) is not None
