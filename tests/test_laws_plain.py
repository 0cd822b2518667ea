"""Laws of the paper's own quantizers (`float_offset`), measured; and each law notices when randomness is spoilt."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
from law_draws import FAULTS, HONEST, Claim, Float32, Law, Reused, Source, broken, gaussian, measured, stochastic, sums

from fqtsim.analysis import laws
from fqtsim.quantizers import quantizer

PLAIN = "float_offset"
#: Cells of the synthetic table: standard deviation of the logarithm of the row scales -> PTQ/PSQ, PSQ/BHQ at 8 bits.
#: Computed once from the paper's formulas and the authors' groups and scales, for one draw of the rows.
TABLE = {0.0: (1.8, 1.00), 1.0: (38.0, 2.6), 2.0: (72.0, 9.7), 3.0: (80.0, 68.0)}
#: The same for one row 1000 times the others.
TABLE_ONE_ROW = (93.0, 89.0)


def one_bit_fewer(bits: int, source: Source) -> list[Claim]:
    """(B / B')**2 for PSQ: 4.03, 4.06, 4.13, 4.27."""
    x = gaussian(32, 2048)
    more, premises = measured(stochastic("psq", bits, PLAIN), x, source)
    fewer, others = measured(stochastic("psq", bits - 1, PLAIN), x, source)
    ratio = fewer / more if more else np.nan
    return [Claim("ratio", ratio, laws.per_bit_ratio(bits, bits - 1), 0.03), *premises, *others]


def two_thirds_of_the_bound(name: str, source: Source) -> list[Claim]:
    x = gaussian(32, 2048)
    bound = {"ptq": laws.ptq_bound, "psq": laws.psq_bound, "bhq": laws.bhq_bound}[name](x, 8)
    variance, premises = measured(stochastic(name, 8, PLAIN), x, source)
    return [Claim("variance / bound", variance / bound, 2 / 3, 0.04), *premises]


def one_dominant_row(rows: int, source: Source) -> list[Claim]:
    """PSQ / BHQ is N, and PTQ / PSQ for the bounds; BHQ is near its closed form."""
    x = gaussian(rows, 2048)
    x[3] *= 1e5
    psq, premises = measured(stochastic("psq", 5, PLAIN), x, source)
    bhq, others = measured(stochastic("bhq", 5, PLAIN), x, source)
    ptq_to_psq, psq_to_bhq = laws.dominant_row_ratios(rows, PLAIN)
    ranges = np.sort(np.ptp(x.astype(float), axis=1))
    closed = laws.bhq_group_estimate(ranges[-1], ranges[-2], rows, x.shape[1], 5)
    return [
        Claim("PSQ / BHQ", psq / bhq if bhq else np.nan, psq_to_bhq, 0.12),
        Claim("bounds of PTQ / PSQ", laws.ptq_bound(x, 5) / laws.psq_bound(x, 5), ptq_to_psq, 0.001),
        Claim("BHQ / closed form", bhq / closed, 2 / 3, 0.12),
        *premises,
        *others,
    ]


def scaled_rows(sigma: float, seed: int, rows: int = 128, columns: int = 1024) -> Float32:
    x = gaussian(rows, columns, seed)
    return np.asarray(x * np.exp(sigma * gaussian(rows, 1, seed + 1000)), np.float32)


@cache
def table_ratios(sigma: float) -> np.ndarray:
    """Return log PTQ/PSQ and log PSQ/BHQ of the exact variances, (16, 2): the row scales alone move them a lot."""
    names = ("ptq", "psq", "bhq")
    each = [
        [laws.exact_variance(stochastic(name, 8, PLAIN), scaled_rows(sigma, seed)) for name in names]
        for seed in range(16)
    ]
    return -np.diff(np.log(each), axis=1)


def synthetic_table(sigma: float, source: Source) -> list[Claim]:
    """The quoted cell is a plausible draw of the row scales, and measured variances give the ratios of S5.6."""
    x = scaled_rows(sigma, 0)
    found = [measured(stochastic(name, 8, PLAIN), x, source, count=4) for name in ("ptq", "psq", "bhq")]
    variances = np.array([variance for variance, _ in found])
    with np.errstate(all="ignore"):
        ratios = variances[:-1] / variances[1:]
    logs = table_ratios(sigma)
    away = (np.log(TABLE[sigma]) - logs.mean(axis=0)) / logs.std(axis=0, ddof=1)
    names = ("PTQ / PSQ", "PSQ / BHQ")
    return [
        *(Claim(f"{n}: quoted value, deviations from the mean", a, 0.0, 3.0) for n, a in zip(names, away, strict=True)),
        *(Claim(n, r, float(np.exp(log)), 0.2) for n, r, log in zip(names, ratios, logs[0], strict=True)),
        *(premise for _, premises in found for premise in premises),
    ]


def mean_of_draws(name: str, zero: str, source: Source) -> list[Claim]:
    """The squared error of the mean of n draws is variance / n: unbiased, and it decays as 1 / sqrt(n)."""
    x = (gaussian(16, 256) * np.exp(gaussian(16, 1, seed=1))).astype(np.float32)
    q = stochastic(name, 4, zero)
    exact = laws.exact_variance(q, x)
    errors = sums(source.draws(q, x, 64) - x)
    claims, sizes = [], []
    for n in (1, 4, 16, 64):
        means = errors.reshape(64 // n, n, -1).mean(axis=1)
        size = float(np.square(means).sum(axis=1).mean())
        sizes.append(max(size, 1e-300))
        claims.append(Claim(f"mean of {n} draws: n * squared error / variance", n * size / exact, 1.0, 0.3))
    slope = float(np.polyfit(np.log([1, 4, 16, 64]), np.log(sizes) / 2, 1)[0])
    z = float(errors.mean(axis=0).sum() / np.sqrt(exact / 64))
    return [*claims, Claim("exponent of n", slope, -0.5, 0.06), Claim("sum of all errors, z", z, 0.0, 4.5)]


def few_random_bits(n: int, source: Source) -> list[Claim]:
    """Low by 2**-(n + 1) of a step on average, with variance (1 - 4**-n) / 6 of a step squared."""
    x = gaussian(16, 4096)
    q = stochastic("psq", 6, PLAIN, n)
    step = np.asarray(q.quantize(x).step, float)[:, None]
    errors = (source.draws(q, x, 8) - x) / step
    variance = float(sums(errors).var(axis=0, ddof=1).sum() / x.size)
    off = float(np.square(sums(errors.mean(axis=0) - laws.exact_bias(q, x) / step)).sum() * 8 / x.size)
    return [
        Claim("bias in steps", float(errors.mean()), laws.expected_bias(n), 0.06),
        Claim("variance in steps squared", variance, laws.expected_variance(n), 0.03),
        Claim("mean of 8 draws: n * squared error", off, laws.expected_variance(n), 0.1),
    ]


LAWS: dict[str, Law] = {
    **{f"one bit fewer than {bits}": partial(one_bit_fewer, bits) for bits in (8, 7, 6, 5)},
    **{f"2/3 of the bound of {name}": partial(two_thirds_of_the_bound, name) for name in ("ptq", "psq", "bhq")},
    **{f"one dominant row of {rows}": partial(one_dominant_row, rows) for rows in (8, 32, 128)},
    **{f"synthetic table, sigma {sigma:.0f}": partial(synthetic_table, sigma) for sigma in TABLE},
    **{
        f"mean of draws, {name} {zero}": partial(mean_of_draws, name, zero)
        for name in ("ptq", "psq", "bhq")
        for zero in ("aligned", PLAIN)
    },
    **{f"{n} random bits": partial(few_random_bits, n) for n in (2, 3, 4)},
}


@pytest.mark.parametrize("law", LAWS)
def test_the_law_holds(law: str) -> None:
    assert broken(LAWS[law], HONEST) == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("law", LAWS)
def test_the_law_notices(law: str, fault: str) -> None:
    assert broken(LAWS[law], FAULTS[fault])


@pytest.mark.parametrize("zero", [PLAIN, "aligned", "symmetric"])
@pytest.mark.parametrize("name", ["ptq", "psq", "bhq"])
def test_a_fault_changes_words_alone(name: str, zero: str) -> None:
    """With its words unchanged, the rounding that faults are planted in is the quantizer's own."""
    x = gaussian(6, 31)
    q = quantizer(name, 5, "stochastic", 9, zero=zero, format="int8")
    ours = q.quantize(x, seed=3, stream=7, step=2)
    theirs = q.quantize(x, seed=3, stream=7, step=2, primitives=Reused(lambda words: words))
    assert np.array_equal(ours.codes, theirs.codes)
    assert ours.clamps == theirs.clamps


def test_one_row_a_thousand_times_the_others() -> None:
    """93 and 89 in the table; the first moves by the draw of a single row, the second hardly."""
    ratios = []
    for seed in range(16):
        x = gaussian(128, 1024, seed)
        x[5] *= 1000
        ptq, psq, bhq = (laws.exact_variance(stochastic(name, 8, PLAIN), x) for name in ("ptq", "psq", "bhq"))
        ratios.append((ptq / psq, psq / bhq))
    least, most = np.min(ratios, axis=0), np.max(ratios, axis=0)
    assert least[0] < TABLE_ONE_ROW[0] < most[0]
    assert np.median(ratios, axis=0)[1] == pytest.approx(TABLE_ONE_ROW[1], rel=0.1)


def test_quantizers_are_ordered_on_heavy_tailed_rows() -> None:
    x = scaled_rows(2.0, 0, columns=256)
    ptq, psq, bhq = (laws.exact_variance(stochastic(name, 5, PLAIN), x) for name in ("ptq", "psq", "bhq"))
    assert ptq > 5 * psq > 10 * bhq
