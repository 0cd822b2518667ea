"""The digest of the training state, by hand (S5.10)."""

from __future__ import annotations

import hashlib

import numpy as np

from fqtsim.train.digest import state_digest, tensor_digest


def test_tensor_digest_is_of_little_endian_bytes_in_logical_order() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = hashlib.sha256(np.arange(6, dtype="<f4").tobytes()).hexdigest()
    assert tensor_digest(x) == expected
    assert tensor_digest(np.asfortranarray(x)) == expected
    assert tensor_digest(x.astype(">f4")) == expected
    assert tensor_digest(x.T) != expected


def test_state_digest_is_of_sorted_lines() -> None:
    tensors = {
        "conv.weight": np.ones((2, 1, 3, 3), np.float32),
        "Step": np.array([7], np.int64),
        "bn.running_mean": np.zeros(4, np.float32),
    }
    ones, seven, zeros = (hashlib.sha256(t.tobytes()).hexdigest() for t in tensors.values())
    lines = f"Step int64 1 {seven}\nbn.running_mean float32 4 {zeros}\nconv.weight float32 2x1x3x3 {ones}\n"
    digest = state_digest(tensors)
    assert digest.hex == hashlib.sha256(lines.encode()).hexdigest()
    assert digest.tensors == {"conv.weight": ones, "Step": seven, "bn.running_mean": zeros}
    assert not digest.platform


def test_every_part_of_a_line_counts() -> None:
    base = state_digest({"a": np.zeros(4, np.float32)}).hex
    assert base == state_digest({"a": np.zeros(4, np.float32)}).hex
    for other in (
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.array([0, 0, 0, -0.0], np.float32)},
    ):
        assert state_digest(other).hex != base
