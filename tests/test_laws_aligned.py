"""Laws of zero-aligned quantizers, this project's own: widening times the mass near zero (docs/framework.md)."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from law_draws import FAULTS, HONEST, Claim, Float32, Law, Source, broken, gaussian, measured, stochastic

from fqtsim.analysis import laws

ALIGNED, PLAIN = "aligned", "float_offset"


def laplace(rows: int, columns: int, seed: int = 0) -> Float32:
    """Return rows of Laplace values whose mean magnitude is 1."""
    return np.random.default_rng(seed).laplace(size=(rows, columns)).astype(np.float32)


MAKE = {"gaussian": gaussian, "laplace": laplace}


def from_5_to_4_bits(name: str, source: Source) -> list[Claim]:
    """4.43, where plain grids have 4.27: the rows' asymmetry is spread over the cells of both grids."""
    x = gaussian({"psq": 1024, "bhq": 256}[name], 128)
    five, premises = measured(stochastic(name, 5, ALIGNED), x, source)
    four, others = measured(stochastic(name, 4, ALIGNED), x, source)
    ratio = four / five if five else np.nan
    return [Claim("ratio", ratio, laws.aligned_per_bit_ratio(5, 4), 0.02), *premises, *others]


def one_dominant_row(rows: int, source: Source) -> list[Claim]:
    """PTQ / PSQ is 1 and not N: the other rows sit on the grid point at zero. PSQ / BHQ is N as before."""
    x = gaussian(rows, 2048)
    x[3] *= 1e6
    found = [measured(stochastic(name, 5, ALIGNED), x, source) for name in ("ptq", "psq", "bhq")]
    ptq, psq, bhq = (variance if variance else np.nan for variance, _ in found)
    ptq_to_psq, psq_to_bhq = laws.dominant_row_ratios(rows, ALIGNED)
    return [
        Claim("PTQ / PSQ", ptq / psq, ptq_to_psq, 0.05),
        Claim("PSQ / BHQ", psq / bhq, psq_to_bhq, 0.12),
        *(premise for _, premises in found for premise in premises),
    ]


def rows_of_one_scale(shape: laws.Shape, bits: int, source: Source) -> list[Claim]:
    """PSQ on rows of one scale: the closed law against draws."""
    x = MAKE[shape](64, 1024)
    variance, premises = measured(stochastic("psq", bits, ALIGNED), x, source)
    law = laws.aligned_variance(x.min(axis=1), x.max(axis=1), np.ones(64), 1024, bits, shape)
    return [Claim("variance / law", variance / law, 1.0, 0.03), *premises]


def rows_of_many_scales(shape: laws.Shape, sigma: float, bits: int, source: Source) -> list[Claim]:
    """PTQ on rows from far below a step to several: from their scales alone."""
    scales = np.exp(sigma * gaussian(256, 1, seed=1))
    x = np.asarray(MAKE[shape](256, 512) * scales, np.float32)
    variance, premises = measured(stochastic("ptq", bits, ALIGNED), x, source)
    law = laws.aligned_variance(x.min(), x.max(), scales[:, 0], 512, bits, shape)
    return [Claim("variance / law", variance / law, 1.0, 0.03), *premises]


def one_row_above(bits: int, shrink: float, source: Source) -> list[Claim]:
    """PTQ where the other 63 rows are `shrink` of the first: their share of the variance is theirs by the law."""
    x = gaussian(64, 2048)
    scales = np.full(64, shrink)
    scales[0] = 1.0
    x = np.asarray(x * scales[:, None], np.float32)
    variance, premises = measured(stochastic("ptq", bits, ALIGNED), x, source)
    law = laws.aligned_variance(x.min(), x.max(), scales, 2048, bits)
    return [Claim("variance / law", variance / law, 1.0, 0.05), *premises]


LAWS: dict[str, Law] = {
    **{f"{name} from 5 to 4 bits": partial(from_5_to_4_bits, name) for name in ("psq", "bhq")},
    **{f"one dominant row of {rows}": partial(one_dominant_row, rows) for rows in (8, 32, 128)},
    **{
        f"psq, {shape} rows of one scale, {bits} bits": partial(rows_of_one_scale, shape, bits)
        for shape in ("gaussian", "laplace")
        for bits in (8, 5, 4, 3)
    },
    **{
        f"ptq, {shape} rows, sigma {sigma:.0f}, {bits} bits": partial(rows_of_many_scales, shape, sigma, bits)
        for shape in ("gaussian", "laplace")
        for sigma in (1.0, 2.0)
        for bits in (8, 4)
    },
    **{f"ptq, one row above others of {s}, 5 bits": partial(one_row_above, 5, s) for s in (0.1, 0.01, 0.001)},
}


@pytest.mark.parametrize("law", LAWS)
def test_the_law_holds(law: str) -> None:
    assert broken(LAWS[law], HONEST) == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("law", LAWS)
def test_the_law_notices(law: str, fault: str) -> None:
    assert broken(LAWS[law], FAULTS[fault])


def test_the_plain_law_fails_for_aligned_rows() -> None:
    """What a law of its own is for: taken for plain, PTQ on small rows is off by far more than any tolerance."""
    x = gaussian(64, 512)
    x[1:] *= 1e-4
    aligned, plain = (laws.exact_variance(stochastic("ptq", 5, zero), x) for zero in (ALIGNED, PLAIN))
    assert plain / laws.ptq_bound(x, 5) > 0.05
    assert aligned / laws.ptq_bound(x, 5) < 0.02
    assert aligned == pytest.approx(laws.aligned_variance(x.min(), x.max(), np.r_[1, [1e-4] * 63], 512, 5), rel=0.05)


def test_heavy_tails_beyond_both_shapes() -> None:
    """Student's t with 3 degrees of freedom has no closed form here; near_zero of the quotients is the law."""
    x = np.random.default_rng(0).standard_t(3, (32, 2048)).astype(np.float32)
    q = stochastic("psq", 3, ALIGNED)
    step = np.asarray(q.quantize(x).step, float)
    law = sum(2048 / 6 * s**2 * laws.near_zero(row / s) for row, s in zip(x.astype(float), step, strict=True))
    draws = HONEST.draws(q, x, 16)
    assert float(draws.var(axis=0, ddof=1).sum()) == pytest.approx(law, rel=0.03)
    assert law < 0.8 * float(np.sum(2048 / 6 * step**2))
