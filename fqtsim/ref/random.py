"""Philox4x32-10, the random bits of everything (S5.5)."""

from __future__ import annotations

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the four 32-bit words of one counter under one key.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, figure 2.
    """
    for _ in range(10):
        left, right = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
        counter = (
            right >> 32 ^ counter[1] ^ key[0],
            right & _WORD,
            left >> 32 ^ counter[3] ^ key[1],
            left & _WORD,
        )
        key = (key[0] + _WEYL[0] & _WORD, key[1] + _WEYL[1] & _WORD)
    return counter


def random_word(seed: int, stream: int, step: int, index: int) -> int:
    """Return the word of element `index`, its place in row-major order of the logical tensor."""
    block, lane = divmod(index, 4)
    return philox((block, stream, step, 0), (seed & _WORD, seed >> 32))[lane]


def random_bits(seed: int, stream: int, step: int, index: int, bits: int) -> int:
    """Return the top `bits` bits of the word of element `index`."""
    return random_word(seed, stream, step, index) >> 32 - bits
