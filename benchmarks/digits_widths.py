"""Accumulator width against accuracy on digits: 16, 20 and 24 bits x wgrad narrowed or int32 x where zero points enter.

The small CNN, 5-bit BHQ, 10 epochs, 3 paired seeds; one saturating register per GEMM, no dropped bits. Resumable.

    python benchmarks/digits_widths.py
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from experiment import Outcome, finish, publish, share_altered
from rich.progress import Progress

from fqtsim.train.config import TrainConfig

WIDTHS = (16, 20, 24)
PLACES = ("before_multiply", "after_accumulate")


def overrides(bits: int, narrow_wgrad: bool, zero_point: str) -> dict[str, str]:
    """Return what turns int8_acc32_wrap into this point of the table."""
    narrow = f"[{{terms: all, register: int{bits}, overflow: saturate}}]"
    wide = "[{terms: all, register: int32, overflow: wrap}]"
    return {
        "datapath.zero_point": zero_point,
        "datapath.levels": narrow,
        "gemms.wgrad.levels": narrow if narrow_wgrad else wide,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits_widths"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    points = list(itertools.product(WIDTHS, (True, False), PLACES))
    rows: list[dict[str, object]] = []
    lines = [
        "# Accumulator width on digits",
        "",
        f"Small CNN, `bhq5`, {arguments.epochs} epochs, batch 128, {arguments.seeds} seeds, 360 test images "
        "(one point is 3.6 images); one saturating register, no dropped bits. "
        "`python benchmarks/digits_widths.py` reruns it.",
        "",
        "| bits | wgrad | zero points | accuracy, %, by seed | altered fprop | altered dgrad | altered wgrad |",
        "|---|---|---|---|---|---|---|",
    ]
    with Progress() as progress:
        for bits, narrow, place in progress.track(points, description="points"):
            runs: list[Outcome] = []
            for seed in range(arguments.seeds):
                config = TrainConfig(
                    "cnn", "digits", "bhq5", ("int8_acc32_wrap",), seed=seed, epochs=arguments.epochs,
                    set_hardware=overrides(bits, narrow, place),
                )  # fmt: skip
                folder = (
                    arguments.out / f"{bits}_{'narrow' if narrow else 'int32'}_{place}_seed{seed}_{arguments.epochs}"
                )
                folder.parent.mkdir(parents=True, exist_ok=True)
                runs.append(finish(config, folder, progress))
            shares = {
                gemm: sum(share_altered(r.events, gemm) for r in runs) / len(runs)
                for gemm in ("fprop", "dgrad", "wgrad")
            }
            cells = [
                str(bits),
                f"int{bits}" if narrow else "int32",
                place,
                ", ".join(f"{100 * r.accuracy:.1f}" for r in runs),
            ]
            lines.append("| " + " | ".join(cells + [f"{100 * share:.3g} %" for share in shares.values()]) + " |")
            rows += [
                {"bits": bits, "wgrad_narrowed": narrow, "zero_point": place, "seed": seed, "accuracy": r.accuracy,
                 "digest": r.digest, **{f"altered_{g}": share_altered(r.events, g) for g in shares}}
                for seed, r in enumerate(runs)
            ]  # fmt: skip
    publish("digits_widths", rows, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
