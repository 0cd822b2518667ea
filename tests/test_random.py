"""S5.5: Philox words, in ref/ and in the kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.errors import InputError
from fqtsim.kernels import random as kernel
from fqtsim.kernels import threads
from fqtsim.ref import random as ref

WORD = st.integers(0, 2**32 - 1)

# Random123's kat_vectors: counter, key, result.
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.fixture
def five_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split work however small it is into five parts."""
    monkeypatch.setattr(threads, "SMALLEST_PART", 1)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 5)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_of_the_definition(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert ref.philox(counter, key) == words


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_of_the_kernel(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    found = np.empty(4, np.uint32)
    kernel.fill_blocks(found, counter[0], counter[0] + 1, counter[1:], key)
    assert tuple(found.tolist()) == words


@given(st.integers(0, 2**64 - 1), WORD, WORD, st.integers(0, 40))
def test_kernel_equals_definition(seed: int, stream: int, step: int, count: int) -> None:
    words = DEFAULT_PRIMITIVES.random_words(seed, stream, step, count)
    assert words.dtype == np.uint32
    assert words.tolist() == [ref.random_word(seed, stream, step, i) for i in range(count)]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 5))
def test_kernel_equals_definition_far_along_a_stream(seed: int, first: int) -> None:
    words = np.empty(20, np.uint32)
    kernel.fill_blocks(words, first, first + 5, (1, 2, 0), (seed & 0xFFFFFFFF, seed >> 32))
    assert words.tolist() == [ref.random_word(seed, 1, 2, 4 * first + i) for i in range(20)]


@pytest.mark.parametrize("blocks", [1, kernel.AT_ONCE - 1, kernel.AT_ONCE, kernel.AT_ONCE + 1, 3 * kernel.AT_ONCE + 5])
def test_every_counter_of_a_vector_and_nothing_behind_the_last(blocks: int) -> None:
    words = np.full(4 * blocks + 4, 7, np.uint32)
    kernel.fill_blocks(words[: 4 * blocks], 11, 11 + blocks, (1, 2, 0), (3, 4))
    assert words.tolist() == [ref.random_word(3 + (4 << 32), 1, 2, 44 + i) for i in range(4 * blocks)] + [7] * 4


def test_elements_take_consecutive_words_of_a_counter() -> None:
    words = DEFAULT_PRIMITIVES.random_words(5, 6, 7, 12)
    assert tuple(words[8:12].tolist()) == ref.philox((2, 6, 7, 0), (5, 0))


@given(st.integers(1, 32), st.integers(0, 100))
def test_bits_are_the_top_bits(bits: int, index: int) -> None:
    word = ref.random_word(1, 2, 3, index)
    assert ref.random_bits(1, 2, 3, index, bits) == int(f"{word:032b}"[:bits], 2)


@pytest.mark.usefixtures("five_threads")
def test_threads_do_not_change_words() -> None:
    words = DEFAULT_PRIMITIVES.random_words(9, 8, 7, 1001)
    assert words.tolist() == [ref.random_word(9, 8, 7, i) for i in range(1001)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2**64, 0, 0, 1), "seed = 18446744073709551616: must be 0..2**64 - 1, a field of the generator"),
        ((-1, 0, 0, 1), "seed = -1: must be 0..2**64 - 1"),
        ((0, 2**32, 0, 1), "stream = 4294967296: must be 0..2**32 - 1"),
        ((0, 0, 2**32, 1), "step = 4294967296: must be 0..2**32 - 1"),
        ((0, 0, 0, 2**34 + 1), "count = 17179869185: must be 0..2**34, the length of one stream; split the tensor"),
        ((0, 0, 0, -1), "count = -1: must be 0..2**34"),
    ],
)
def test_a_field_that_would_overflow_is_an_error(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        DEFAULT_PRIMITIVES.random_words(*arguments)
    assert str(caught.value).startswith(message)
