"""Run the Verilog MAC of mac.v on a folder of golden vectors with Icarus, every register after every addition.

    fqtsim golden make --hardware int8_acc16_saturate --gemm dgrad --format readmemh --out vectors
    python run_mac.py vectors          # or: python run_mac.py vectors --bug

The bug of `--bug`, a register that is wide and clamped when it is read, passes `torch.equal` with a clamped wide
product on random data: only a sum that leaves the range and comes back shows it.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def simulate(folder: Path, bug: bool = False) -> str:
    """Compile and run one case's bench; return what it prints. It leaves outputs.hex in the folder."""
    program = folder.resolve() / "bench.vvp"
    sources = [HERE / "mac.v", HERE / "mac_bench.v"]
    flags = ["-DBUG"] if bug else []
    subprocess.run(["iverilog", "-g2005", "-I", folder, *flags, "-o", program, *sources], check=True)
    run = subprocess.run(["vvp", program], cwd=folder, check=True, capture_output=True, text=True)
    program.unlink()
    return run.stdout.strip()


def read_words(path: Path, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Return the words of a $readmemh or $writememh file as signed integers."""
    words = [int(line, 16) for line in path.read_text().splitlines() if not line.startswith("//")]
    codes = np.array(words, np.int64)
    return np.where(codes >> (bits - 1), codes - (1 << bits), codes).reshape(shape)


def main(vectors: Path, bug: bool) -> int:
    """Simulate every case that has registers; return 1 where an addition differs."""
    failed = 0
    for case in json.loads((vectors / "index.json").read_text())["cases"]:
        if case["steps"]:
            said = simulate(vectors / case["name"], bug)
            failed += said != "0 additions differ"
            print(f"{case['name']}: {said.replace(chr(10), '; ')}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), "--bug" in sys.argv[2:]))
