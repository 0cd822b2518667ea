"""Fused batch norm, ReLU and mixing on the CPU equal their sequences of primitives, bit for bit."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fqtsim.backends import fused_cpu_proof
from fqtsim.backends.fused_cpu import FusedNorm
from fqtsim.backends.fused_cpu_proof import SEQUENCES
from fqtsim.backends.primitives import Primitives
from fqtsim.errors import BackendRefused, TrainingStopped
from fqtsim.kernels import norm as kernels
from fqtsim.kernels import threads
from fqtsim.quantizers import quantizer
from fqtsim.train import elementwise, norm

Float32 = npt.NDArray[np.float32]
FUSED = Primitives()
ANY = st.floats(width=32)
FINITE = st.one_of(st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 1.5, -2.0, 3e4]), st.floats(-9, 9, width=32))


PLAIN = SEQUENCES


def images(elements: st.SearchStrategy[float] = FINITE) -> st.SearchStrategy[Float32]:
    shapes = st.one_of(
        st.tuples(*[st.integers(1, 4)] * 4), st.tuples(st.integers(2, 5), st.integers(1, 3)),
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40)),
    )  # fmt: skip
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=elements))


def bits(found: Any) -> Any:
    return tuple(np.ascontiguousarray(one).view(np.uint32).tolist() for one in found)


def attempt(call: Any) -> Any:
    """Return the bits of what comes out, or the message that stops the step."""
    try:
        return bits(call())
    except TrainingStopped as error:
        return str(error)


def whole(x: Float32, dy: Float32, affine: Any, from_batch: bool, p: Primitives, with_relu: bool = False) -> list[Any]:
    mean, var, unbiased = norm.batch_statistics(x, p)
    y, saved = norm.batch_norm(x, mean, var, affine, 1e-5, from_batch, p, with_relu)
    return [mean, var, unbiased, y, *norm.batch_norm_gradients(dy, saved, p)]


def test_only_the_plain_primitives_are_fused() -> None:
    assert FUSED.fused_norm is not None
    assert PLAIN.fused_norm is None


@pytest.mark.parametrize("name", ["statistics", "normalize", "gradients"])
def test_a_batch_norm_that_differs_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = getattr(kernels, name)

    def wrong(*args: Any) -> Any:
        found = honest(*args)
        first = found[0] if isinstance(found, tuple) else found
        first.reshape(-1)[-1] = np.nextafter(first.reshape(-1)[-1], np.float32(np.inf))
        return found

    monkeypatch.setattr(kernels, name, wrong)
    with pytest.raises(BackendRefused, match=r"the fused form of batch norm.* differs from its sequence"):
        norm._prove.__wrapped__(FusedNorm())


@pytest.mark.parametrize("name", ["relu", "relu_gradient", "mix", "unmix"])
def test_a_form_that_differs_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = getattr(Primitives, name)

    def wrong(self: Primitives, *args: Any) -> Any:
        found = honest(self, *args)
        if type(self) is Primitives:
            (found[0] if isinstance(found, tuple) else found)[2, 5] += np.float32(1)
        return found

    monkeypatch.setattr(Primitives, name, wrong)
    with pytest.raises(BackendRefused, match=r"cpu: the fused form of .* differs from its sequence"):
        fused_cpu_proof.prove_elements.__wrapped__()


@given(images(), st.data(), st.booleans(), st.booleans(), st.booleans())
def test_batch_norm(x: Float32, data: st.DataObject, with_affine: bool, from_batch: bool, with_relu: bool) -> None:
    dy = data.draw(arrays(np.float32, x.shape, elements=FINITE))
    affine = tuple(data.draw(arrays(np.float32, x.shape[1], elements=FINITE)) for _ in range(2))
    args = x, dy, affine if with_affine else None, from_batch
    assert attempt(partial(whole, *args, FUSED, with_relu)) == attempt(partial(whole, *args, PLAIN, with_relu))


@given(images(ANY), st.data())
def test_batch_norm_of_any_number_stops_with_the_same_words(x: Float32, data: st.DataObject) -> None:
    assert attempt(lambda: norm.batch_statistics(x, FUSED)) == attempt(lambda: norm.batch_statistics(x, PLAIN))
    calm, dy = np.ones_like(x), data.draw(arrays(np.float32, x.shape, elements=ANY))
    calm.reshape(-1)[::2] = -1
    args = calm, dy, None, True
    for with_relu in (False, True):
        assert attempt(partial(whole, *args, FUSED, with_relu)) == attempt(partial(whole, *args, PLAIN, with_relu))


def test_batch_norm_in_threads_and_other_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 3)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((6, 7, 33, 5)).astype(np.float32) for _ in range(2))
    affine = tuple(rng.standard_normal(7).astype(np.float32) for _ in range(2))
    assert bits(whole(x, dy, affine, True, FUSED, True)) == bits(whole(x, dy, affine, True, PLAIN, True))
    expected = bits(whole(x, dy, affine, True, PLAIN))
    assert bits(whole(x, dy, affine, True, FUSED)) == expected
    last = [np.ascontiguousarray(one.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for one in (x, dy)]
    assert bits(whole(*last, affine, True, FUSED)) == expected


@given(images(ANY), st.data())
def test_relu(x: Float32, data: st.DataObject) -> None:
    dy = data.draw(arrays(np.float32, x.shape, elements=ANY))
    y = elementwise.relu(x, FUSED)
    expected = elementwise.relu(x, PLAIN)
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    assert bits([np.nan_to_num(y)]) == bits([np.nan_to_num(expected)])
    assert bits([elementwise.relu_gradient(y, dy, FUSED)]) == bits([elementwise.relu_gradient(y, dy, PLAIN)])


@given(st.data(), st.integers(1, 12), st.integers(1, 70))
def test_mixing(data: st.DataObject, rows: int, columns: int) -> None:
    x = data.draw(arrays(np.float32, (rows, columns), elements=st.one_of(FINITE, ANY)))
    s = data.draw(arrays(np.float32, rows, elements=st.floats(2.0**-10, 2.0**10, width=32)))
    order = data.draw(st.permutations(range(rows)))
    cuts = sorted(data.draw(st.sets(st.integers(1, rows))) | {rows})
    groups = [list(order[i:j]) for i, j in zip([0, *cuts], cuts, strict=False) if i < j]
    for index in (i for group in groups if len(group) == 1 for i in group):
        s[index] = 1

    def agree(call: Any) -> bool:
        """Both give the same bits, or both stop; the sequence's words name another primitive."""
        ours, theirs = (attempt(partial(call, p)) for p in (FUSED, PLAIN))
        return ours == theirs or (isinstance(ours, str) and isinstance(theirs, str))

    assert agree(lambda p: p.mix(x, s, groups))
    assert agree(lambda p: [p.unmix(x, s, groups)])


@pytest.mark.parametrize("columns", [15, 16, 17, 1040, 1100])
def test_groups_that_are_copied_first_and_those_that_are_not(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 3)
    x = fused_cpu_proof.numbers((200, columns), 5)
    s = np.exp2(np.arange(200) % 7 - 3).astype(np.float32) * np.float32(1.3)
    order = [int(row) for row in np.random.default_rng(3).permutation(200)]
    groups = [order[i:j] for i, j in pairwise([0, 1, 3, 10, 18, 27, 60, 200])]
    for call in (
        lambda p: p.mix(x, s, groups),
        lambda p: [p.unmix(x, s, groups)],
        lambda p: [p.reflect(x, groups[2:])],
        lambda p: p.mix(x, s, groups[2:]),
        lambda p: [p.unmix(x, s, groups[:4])],
    ):
        assert bits(call(FUSED)) == bits(call(PLAIN))


def test_large_groups_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 3)
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((300, 517)) * np.exp(rng.standard_normal((300, 1)) * 3)).astype(np.float32)
    q = quantizer("bhq", 5, "stochastic", 16)
    ours, theirs = q.quantize(x, primitives=FUSED), q.quantize(x, primitives=PLAIN)
    assert np.array_equal(ours.codes, theirs.codes)
    assert bits([ours.step, ours.dequantize()]) == bits([theirs.step, theirs.dequantize()])
