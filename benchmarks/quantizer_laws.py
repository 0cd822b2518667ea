"""The laws of quantization noise beside what the quantizers do: a table for docs/results. Under a minute.

python benchmarks/quantizer_laws.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqtsim.analysis import laws
from fqtsim.quantizers import quantizer

Float32 = NDArray[np.float32]
ZEROS = ("float_offset", "aligned")
NAMES = ("ptq", "psq", "bhq")
#: PTQ/PSQ and PSQ/BHQ of a prototype with the authors' formulas, one draw of the rows each.
QUOTED = {"0": (1.8, 1.00), "1": (38, 2.6), "2": (72, 9.7), "3": (80, 68), "one row x1000": (93, 89)}


def variance(name: str, bits: int, zero: str, x: Float32) -> float:
    """Return the exact variance over the random words, 24 random bits."""
    return laws.exact_variance(quantizer(name, bits, "stochastic", 24, zero=zero), x)


def drawn_variance(name: str, bits: int, zero: str, x: Float32, draws: int = 8) -> float:
    """Return the variance over draws of the random words."""
    q = quantizer(name, bits, "stochastic", 24, zero=zero)
    made = np.stack([q.quantize(x, step=i).dequantize() for i in range(draws)]).astype(np.float64)
    return float(made.var(axis=0, ddof=1).sum())


def per_bit() -> list[dict[str, Any]]:
    """Return ratios of PSQ's variance for one bit fewer, 1024 Gaussian rows of 128."""
    x = np.random.default_rng(0).standard_normal((1024, 128)).astype(np.float32)
    rows = []
    for bits in (8, 7, 6, 5, 4):
        for zero, law in zip(ZEROS, (laws.per_bit_ratio, laws.aligned_per_bit_ratio), strict=True):
            found = drawn_variance("psq", bits - 1, zero, x) / drawn_variance("psq", bits, zero, x)
            rows.append({"bits": bits, "zero": zero, "law": law(bits, bits - 1), "measured": found})
    return rows


def scaled(kind: str, seed: int) -> Float32:
    """Return 128 rows of 1024 Gaussian values: scales lognormal(sigma), or one row a thousand times the others."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((128, 1024))
    if kind == "one row x1000":
        x[0] *= 1000
    else:
        x *= np.exp(float(kind) * random.standard_normal((128, 1)))
    return x.astype(np.float32)


def synthetic(seeds: int) -> list[dict[str, Any]]:
    """Return the ratios of the three quantizers' variances at 8 bits, over draws of the rows."""
    rows = []
    for kind, quoted in QUOTED.items():
        drawn = [scaled(kind, seed) for seed in range(seeds)]
        row: dict[str, Any] = {"rows": kind, "quoted": quoted}
        for zero in ZEROS:
            each = np.array([[variance(name, 8, zero, x) for name in NAMES] for x in drawn])
            ratios = each[:, :-1] / each[:, 1:]
            row[zero] = np.quantile(ratios, (0.05, 0.5, 0.95), axis=0).T.tolist()
        rows.append(row)
    return rows


def aligned_law() -> list[dict[str, Any]]:
    """Return measured variance / law of zero-aligned quantizers, from ranges and row scales alone."""
    random = np.random.default_rng(0)
    shapes: dict[laws.Shape, Callable[..., Any]] = {"gaussian": random.standard_normal, "laplace": random.laplace}
    rows = []
    for shape, draw in shapes.items():
        for name, sigma in (("psq", 0.0), ("ptq", 1.0), ("ptq", 2.0), ("ptq", 3.0)):
            scales = np.exp(sigma * random.standard_normal((256, 1)))
            x = (draw(size=(256, 512)) * scales).astype(np.float32)
            ends = (x.min(), x.max()) if name == "ptq" else (x.min(axis=1), x.max(axis=1))
            row: dict[str, Any] = {"shape": shape, "quantizer": name, "sigma": sigma}
            for bits in (8, 6, 5, 4, 3):
                law = laws.aligned_variance(*ends, scales[:, 0], 512, bits, shape)
                plain = (laws.ptq_bound if name == "ptq" else laws.psq_bound)(x, bits) * 2 / 3
                row[str(bits)] = {"measured / law": drawn_variance(name, bits, "aligned", x) / law,
                                  "law / plain law": law / plain}  # fmt: skip
            rows.append(row)
    return rows


def page(result: dict[str, Any]) -> str:
    """Return the Markdown page."""
    lines = [
        "# The laws of quantization noise, measured",
        "",
        "`python benchmarks/quantizer_laws.py` makes this page: formulas of `fqtsim.analysis.laws`, derived in",
        "[framework.md](../framework.md), beside the quantizers; 24 random bits, seeds from 0.",
        "",
        "## One bit fewer: PSQ, 1024 Gaussian rows of 128",
        "",
        "| bits | plain, law | measured | zero-aligned, law | measured |",
        "|---|---|---|---|---|",
    ]
    pairs = zip(result["per_bit"][::2], result["per_bit"][1::2], strict=True)
    for a, b in pairs:
        cells = [a["law"], a["measured"], b["law"], b["measured"]]
        lines.append(f"| {a['bits']} to {a['bits'] - 1} | " + " | ".join(f"{v:.3f}" for v in cells) + " |")
    lines += [
        "",
        "## Three quantizers: 8 bits, 128 rows of 1024 Gaussian values, row scales lognormal(sigma)",
        "",
        f"Median and 5 % to 95 % over {result['seeds']} draws of the rows. `quoted`: a prototype with the",
        "authors' formulas, one draw. The draw of the row scales moves these ratios by factors, not percents.",
        "",
        "| sigma | PTQ/PSQ quoted | plain | zero-aligned | PSQ/BHQ quoted | plain | zero-aligned |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["synthetic"]:
        cells = [row["rows"]]
        for place in (0, 1):
            cells.append(f"{row['quoted'][place]:g}")
            for zero in ZEROS:
                low, middle, high = row[zero][place]
                cells.append(f"{middle:.3g} ({low:.3g} to {high:.3g})")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "## The law of zero-aligned grids",
        "",
        "Measured variance by the law, which knows ranges and row scales alone; in parentheses the law by 2/3 of the",
        "plain bound. 256 rows of 512; sigma is the deviation of the logarithms of the row scales.",
        "",
        "| values | quantizer | sigma | 8 bits | 6 | 5 | 4 | 3 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["aligned_law"]:
        found = [row[str(bits)] for bits in (8, 6, 5, 4, 3)]
        cells = [f"{one['measured / law']:.3f} ({one['law / plain law']:.2g})" for one in found]
        lines.append(f"| {row['shape']} | {row['quantizer']} | {row['sigma']:.0f} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40, help="draws of the rows")
    arguments = parser.parse_args()
    result = {"seeds": arguments.seeds, "per_bit": per_bit(), "synthetic": synthetic(arguments.seeds),
              "aligned_law": aligned_law()}  # fmt: skip
    folder = Path(__file__).resolve().parents[1] / "docs" / "results"
    (folder / "quantizer_laws.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "quantizer_laws.md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
