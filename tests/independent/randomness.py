"""Random bits (section 5, rule 5) and stochastic rounding (rule 6), gate by gate."""

from __future__ import annotations

from collections.abc import Sequence

from .bits import HIGH, LOW, Number, add, constant, drop, extend, multiply, pack, unpack
from .floats import BINARY64, decode

Word = Number  # 32 planes; the sign plane that arithmetic wants is added where it is needed


def word(number: Number) -> Word:
    return extend(number, 32)[:32]


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Return the four 32-bit words of Philox4x32-10 for one counter (4 words) and key (2 words)."""
    words = philox_words([constant(c) for c in counter], [constant(k) for k in key])
    return [unpack([*planes, LOW], 1)[0] for planes in words]


def philox_words(counter: Sequence[Number], key: Sequence[Number]) -> list[Word]:
    """Return the four output words of every lane's counter and key."""
    words = [word(number) for number in counter]
    keys = [word(number) for number in key]
    weyl = [constant(0x9E3779B9), constant(0xBB67AE85)]
    for turn in range(10):
        if turn:
            keys = [word(add([*k, LOW], step)) for k, step in zip(keys, weyl, strict=True)]
        first = extend(multiply([*words[0], LOW], constant(0xD2511F53)), 64)
        second = extend(multiply([*words[2], LOW], constant(0xCD9E8D57)), 64)
        words = [
            [p ^ q ^ r for p, q, r in zip(second[32:64], words[1], keys[0], strict=True)],
            second[:32],
            [p ^ q ^ r for p, q, r in zip(first[32:64], words[3], keys[1], strict=True)],
            first[:32],
        ]
    return words


def random_bits(seed: int, stream: int, step: int, count: int, bits: int) -> list[int]:
    """Return `count` random integers: element i is the top `bits` of word i mod 4 of counter i div 4."""
    blocks = -(-count // 4)
    seed_wires = extend([*constant(seed)[:-1], LOW], 65)
    key = [seed_wires[:32], seed_wires[32:64]]
    counter = [pack(range(blocks)), constant(stream), constant(step), constant(0)]
    lines = [unpack([*w[32 - bits :], LOW], blocks) for w in philox_words(counter, key)]
    return [lines[i % 4][i // 4] for i in range(count)]


def stochastic_round(y: float, r: int, n: int) -> int:
    """Return (floor(y * 2**n) + 2**n - 1 - r) >> n for a finite float y."""
    sign, significand, exponent = decode(y, BINARY64)
    magnitude = [*significand, LOW]
    value = add([~plane for plane in magnitude], [LOW], HIGH) if sign else magnitude
    return unpack(drop_stochastic(value, -exponent, constant(r), n), 1)[0]


def drop_stochastic(number: Number, places: int, random: Number, n: int) -> Number:
    """Return number / 2**places rounded by the n wires of a random integer (0 <= random < 2**n)."""
    fine = drop(number, places - n, "toward_negative")
    complement = [~plane for plane in extend(random, n)[:n]]  # 2**n - 1 - random
    return drop(add(fine, [*complement, LOW]), n, "toward_negative")
