"""What the codes of a layer's product must sum to with random words, by its operands alone (Freivalds, S4).

(s A) B instead of s (A B): the rows of A are summed first. Rows of a convolution are patches, but words are products
(RowWords), so that samples are summed before they are patches, or channels before taps meet them. Codes only, modulo
2**32: zero points and steps come later, and padding and holes are the code of real zero, as in S4.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fqtsim.backends.checksum import RowWords
from fqtsim.backends.direct import Walk
from fqtsim.kernels import freivalds
from fqtsim.kernels.gpu import freivalds as on_device
from fqtsim.train.operands import Array, Operand
from fqtsim.train.products import ConvGradient, ConvImages, LinearGradient, Product


def expected_sums(product: Product, words: RowWords) -> Array:
    """Return uint32 (2, groups * N), or an int32 tensor of the product's device."""
    tensors = isinstance(product.out, torch.Tensor)
    if isinstance(product, ConvImages):
        return _image_tensors(product, words) if tensors else _images(product, words)
    if isinstance(product, ConvGradient):
        return _gradient_tensors(product, words) if tensors else _gradient(product, words)
    return _linear(product, words)


def _rows(codes: Array) -> Array:
    """Return (..., K) as a matrix."""
    return codes.reshape(-1, codes.shape[-1])


def _linear(product: Product, words: RowWords) -> Array:
    maths: Any = on_device if isinstance(product.out, torch.Tensor) else freivalds
    a, b = _rows(product.a.codes), product.b.codes
    if isinstance(product, LinearGradient):
        return maths.combine(maths.combine_rows(words.flat, a), _rows(b))
    sums = maths.combine(words.flat, a)
    return maths.combine(sums, b) if product.names[1] == "dgrad" else maths.combine_rows(sums, b)


def _weights(product: ConvImages) -> Array:
    """Return the codes of W, groups apart: (G, N, KH, KW, C) with the C that are summed over."""
    w = product.b.codes
    apart = w.reshape(product.groups, -1, *w.shape[1:])
    axes = (0, 2, 3, 4, 1) if product.is_dgrad else (0, 1, 3, 4, 2)
    return apart.transpose(axes) if isinstance(w, np.ndarray) else apart.permute(axes)


@lru_cache(maxsize=256)
def _grid(walk: Walk) -> freivalds.Grid:
    return freivalds.grid_of(walk.outputs, walk.taps, walk.step, walk.tap, walk.offset, walk.hole)


def _images(product: ConvImages, words: RowWords) -> Array:
    walk, codes, groups = product.walk, np.ascontiguousarray(product.a.codes), product.groups
    samples, channels = codes.shape[:2]
    images = freivalds.combine(words.outer, codes.reshape(samples, -1)).reshape(2, *codes.shape[1:])
    fill = freivalds.combine(words.outer, product.a.fill(samples)[:, None])[:, 0]
    met = freivalds.tap_sums(images, fill, _grid(product.walk), words.inner.reshape(2, *walk.outputs), walk.taps)
    met = met.reshape(2, groups, channels // groups, -1).transpose(1, 0, 3, 2).reshape(groups, 2, -1)
    weights = np.ascontiguousarray(_weights(product)).reshape(groups, -1, met.shape[2])
    parts = [freivalds.combine_rows(*pair) for pair in zip(met, weights, strict=True)]
    return np.concatenate(parts, axis=1)


def _gradient(product: ConvGradient, words: RowWords) -> Array:
    x, dh = (np.ascontiguousarray(operand.codes) for operand in (product.a, product.b))
    taps = words.outer.reshape(2, *product.walk.taps)
    return freivalds.gradient_sums(
        x, product.a.fill(len(x)), _grid(product.walk), taps, words.inner, dh, product.groups
    )


def _zeros(operand: Operand, samples: int) -> torch.Tensor:
    """Return the code of real zero of each sample, (N, 1)."""
    zeros: torch.Tensor = operand.zero_point.reshape(-1, 1).expand(samples, 1)
    return zeros


def _image_tensors(product: ConvImages, words: RowWords) -> torch.Tensor:
    codes, groups = product.a.codes.permute(0, 2, 3, 1), product.groups
    samples, channels = codes.shape[0], codes.shape[3]
    images = on_device.combine(words.outer, codes.reshape(samples, -1)).reshape(2, *codes.shape[1:])
    fill = on_device.combine(words.outer, _zeros(product.a, samples)).reshape(2)
    met = on_device.tap_sums(images, fill, product.walk, words.inner).reshape(2, -1, groups, channels // groups)
    weights = _weights(product)
    return on_device.combine_rows(met.transpose(1, 2).reshape(2, groups, -1), weights.reshape(*weights.shape[:2], -1))


def _gradient_tensors(product: ConvGradient, words: RowWords) -> torch.Tensor:
    codes, groups = product.a.codes.permute(0, 2, 3, 1), product.groups
    samples, height, width, channels = codes.shape
    images = on_device.combine_rows(words.inner, codes.reshape(-1, channels // groups))
    fill = words.inner.sum(1, dtype=torch.int32)[:, None] * _zeros(product.a, samples)[:, 0].to(torch.int32)
    met = on_device.patch_sums(images.reshape(2, samples, height, width, groups), fill, product.walk, words.outer)
    dh = product.b.codes.permute(0, 2, 3, 1).reshape(met.shape[1], groups, -1)
    return on_device.combine(met.transpose(1, 2), dh.transpose(0, 1))
