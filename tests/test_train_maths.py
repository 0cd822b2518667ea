"""Pooling, batch norm, activations, loss and gradient sums against torch in float64, and their exact rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.errors import InputError
from fqtsim.train import elementwise, norm, pooling
from fqtsim.train.geometry import Window
from fqtsim.train.loss import softmax_cross_entropy

POOLS = [
    # (kernel, stride, padding, dilation, ceil_mode, size)
    (2, 2, 0, 1, False, (6, 8)),
    (3, 2, 1, 1, False, (7, 8)),
    (3, 1, 1, 1, False, (5, 5)),
    (3, 2, 0, 1, True, (6, 6)),
    (3, 2, 1, 1, True, (7, 6)),
    ((2, 3), (1, 2), (1, 1), 1, True, (5, 8)),
    ((1, 6), (1, 1), (0, 0), 1, False, (1, 6)),
]


def random(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def double(x: Any) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64)).requires_grad_()


def window(case: tuple[Any, ...]) -> Window:
    kernel, stride, padding, dilation = ((v, v) if isinstance(v, int) else v for v in case[:4])
    return Window(kernel, stride, padding, padding, dilation, case[4])


def close(ours: Any, theirs: torch.Tensor | None, tolerance: float = 1e-6) -> None:
    assert theirs is not None
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", [*POOLS, (2, 1, 0, 2, False, (5, 6)), (3, 2, 1, 2, True, (8, 9))])
def test_max_pool_matches_torch(case: tuple[Any, ...]) -> None:
    # Few distinct values: ties show which maximum wins.
    x = np.random.default_rng(1).integers(-2, 3, (2, 3, *case[5])).astype(np.float32)
    xt = double(x)
    yt = F.max_pool2d(xt, *case[:4], ceil_mode=case[4])
    y, winner = pooling.max_pool(x, window(case), P)
    assert np.array_equal(y, yt.detach().numpy())
    dy = random(y.shape, 2)
    yt.backward(torch.from_numpy(dy.astype(np.float64)))
    close(pooling.max_pool_gradient(dy, winner, x.shape, window(case), P), xt.grad)


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.parametrize(("include", "divisor"), [(True, None), (False, None), (True, 5)])
def test_average_pool_matches_torch(case: tuple[Any, ...], include: bool, divisor: int | None) -> None:
    x = random((2, 3, *case[5]))
    xt = double(x)
    yt = F.avg_pool2d(xt, *case[:3], case[4], include, divisor)
    counts = pooling.divisors(case[5], window(case), include, divisor)
    y = pooling.average_pool(x, window(case), counts, P)
    close(y, yt)
    dy = random(y.shape, 2)
    yt.backward(torch.from_numpy(dy.astype(np.float64)))
    close(pooling.average_pool_gradient(dy, x.shape, window(case), counts, P), xt.grad)


def test_max_pool_adds_overlapping_gradients_in_window_order() -> None:
    """((0 + a) + b) + c with a = 1, b = 2**-24, c = 2**-24 stays 1; any other order gives more."""
    x = np.zeros((1, 1, 1, 5), np.float32)
    x[..., 2] = 1
    shape = Window((1, 3), (1, 1), (0, 0), (0, 0))
    _, winner = pooling.max_pool(x, shape, P)
    dy = np.array([1, 2.0**-24, 2.0**-24], np.float32).reshape(1, 1, 1, 3)
    assert pooling.max_pool_gradient(dy, winner, x.shape, shape, P)[0, 0, 0, 2] == 1
    assert pooling.max_pool_gradient(dy[..., ::-1], winner, x.shape, shape, P)[0, 0, 0, 2] > 1


def test_max_results_are_never_negative_zero() -> None:
    x = np.full((1, 1, 2, 2), -0.0, np.float32)
    y, _ = pooling.max_pool(x, Window((2, 2), (2, 2), (0, 0), (0, 0)), P)
    assert not np.signbit(y).any()
    assert not np.signbit(elementwise.relu(x, P)).any()
    assert not np.signbit(elementwise.relu6(x, P)).any()


def test_max_pool_passes_nan_on() -> None:
    x = np.array([1, np.nan, 2, 0], np.float32).reshape(1, 1, 2, 2)
    assert np.isnan(pooling.max_pool(x, Window((2, 2), (2, 2), (0, 0), (0, 0)), P)[0]).all()


@pytest.mark.parametrize("shape", [(16, 4), (6, 4, 5), (8, 4, 5, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_matches_torch(shape: tuple[int, ...], training: bool) -> None:
    x, gamma, beta = random(shape) * 3 + 1, random((4,), 1), random((4,), 2)
    mean, var = random((4,), 3), np.abs(random((4,), 4))
    xt, gt, bt = double(x), double(gamma), double(beta)
    rm, rv = torch.from_numpy(mean.astype(np.float64)), torch.from_numpy(var.astype(np.float64))
    yt = F.batch_norm(xt, rm, rv, gt, bt, training, 0.1, 1e-5)
    if training:
        m, v, unbiased = norm.batch_statistics(x, P)
        close(norm.running(mean, m, 0.1, P), rm)
        close(norm.running(var, unbiased, 0.1, P), rv)
    else:
        m, v = mean, var
    y, saved = norm.batch_norm(x, m, v, (gamma, beta), 1e-5, training, P)
    close(y, yt, 1e-5)
    dy = random(shape, 5)
    yt.backward(torch.from_numpy(dy.astype(np.float64)))
    for ours, theirs in zip(norm.batch_norm_gradients(dy, saved, P), (xt, gt, bt), strict=True):
        close(ours, theirs.grad, 2e-5)


def test_batch_norm_is_the_bracketed_sequence_of_float32_operations() -> None:
    x, gamma, beta, dy = random((5, 2, 3, 3)), random((2,), 1), random((2,), 2), random((5, 2, 3, 3), 3)
    f, n, column = np.float32, np.float32(45), (slice(None), None, None)

    def total(v: Any) -> Any:
        return P.exact_sum(v, (0, 2, 3))[column]

    mean = total(x) / n
    d = x - mean
    var = total(d * d) / n
    inv = f(1) / np.sqrt(var + f(1e-5))
    xhat = d * inv
    y = xhat * gamma[column] + beta[column]
    dx = (gamma[column] * inv) * ((dy - total(dy) / n) - xhat * (total(dy * xhat) / n))
    m, v, unbiased = norm.batch_statistics(x, P)
    ours, saved = norm.batch_norm(x, m, v, (gamma, beta), 1e-5, True, P)
    assert np.array_equal(ours, y)
    assert np.array_equal(norm.batch_norm_gradients(dy, saved, P)[0], dx)
    assert np.array_equal(unbiased, (total(d * d) / f(44)).ravel())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_matches_torch(smoothing: float) -> None:
    logits, labels = random((9, 5)) * 4, np.array([0, 1, 2, 3, 4, 0, 1, 2, 3])
    lt = double(logits)
    expected = F.cross_entropy(lt, torch.from_numpy(labels), label_smoothing=smoothing)
    expected.backward()
    loss, gradient = softmax_cross_entropy(logits, labels, smoothing, P)
    close(np.asarray(loss), expected)
    close(gradient, lt.grad)


def test_loss_survives_large_logits() -> None:
    logits = np.array([[3e38, -3e38], [-1e4, 1e4]], np.float32) / np.float32(4)
    loss, gradient = softmax_cross_entropy(logits, np.array([0, 1]), 0.0, P)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("labels", "smoothing", "message"),
    [
        (np.array([0, 5]), 0.0, "label = 5: must be 0..4; give the network more outputs"),
        (np.array([0, -1]), 0.0, "label = -1: must be 0..4; give the network more outputs"),
        (np.array([0.0, 1.0]), 0.0, "labels of type float64: must be integers; give class indices"),
        (np.array([0, 1, 2]), 0.0, "labels of shape (3,) for logits of shape (2, 5): must be (N,) for (N, classes); "
         "give one class index per sample"),
        (np.array([0, 1]), 1.0, "label_smoothing = 1.0: must be at least 0 and below 1; 0.1 is usual"),
    ],
)  # fmt: skip
def test_loss_refuses(labels: Any, smoothing: float, message: str) -> None:
    with pytest.raises(InputError) as caught:
        softmax_cross_entropy(random((2, 5)), labels, smoothing, P)
    assert str(caught.value) == message


def test_relu6_gradient_stops_at_both_ends() -> None:
    x = np.array([-1, 0, 3, 6, 7], np.float32)
    y = elementwise.relu6(x, P)
    assert y.tolist() == [0, 0, 3, 6, 6]
    assert elementwise.relu6_gradient(y, np.ones(5, np.float32)).tolist() == [0, 0, 1, 0, 0]


def test_dropout_keeps_words_from_the_threshold_on() -> None:
    keep = elementwise.dropout_mask((3, 5), 0.25, 7, 260, 3, P)
    words = P.random_words(7, 260, 3, 15)
    assert np.array_equal(keep.ravel(), words >= 2**30)
    y = elementwise.dropout(np.ones((3, 5), np.float32), keep, 0.25, P)
    assert np.array_equal(y, np.where(keep, np.float32(1 / 0.75), np.float32(0)))
    assert not elementwise.dropout(np.ones((3, 5), np.float32), keep, 1.0, P).any()


def test_gradients_meet_left_to_right() -> None:
    parts = [np.full(1, v, np.float32) for v in (1, 2.0**-24, 2.0**-24)]
    assert elementwise.add_in_order(parts, P) == 1
    assert elementwise.add_in_order(parts[::-1], P) > 1


def test_window_that_does_not_fit() -> None:
    with pytest.raises(InputError) as caught:
        Window((3, 3), (1, 1), (0, 0), (0, 0), (2, 2)).positions((4, 9))
    assert str(caught.value) == (
        "input of 4 x 9 positions: a window that spans 5 x 5 does not fit with its padding; "
        "feed larger images or remove a pooling stage"
    )
