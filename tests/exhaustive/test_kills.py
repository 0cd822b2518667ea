"""A run killed at random moments, again and again, ends in the digest of the uninterrupted one."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(3600)]

KILLS = 20
RUN = ["--model", "mlp", "--data", "digits", "--recipe", "bhq5", "--hardware", "int8_acc20_tree4", "--batch", "64",
       "--epochs", "15", "--save-every", "7"]  # fmt: skip


def train(out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fqtsim", "train", *RUN, "--out", str(out), *more]
    with open(f"{out}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def last_digest(out: Path) -> str:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return str(json.loads(lines[-1])["digest"])


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    started = time.monotonic()
    assert whole.wait() == 0
    length = time.monotonic() - started
    rng = random.Random(0)
    out, kills = tmp_path / "killed", 0
    while True:
        resume = ["--resume"] if (out / "run.yaml").exists() else []
        process = train(out, *resume)
        try:
            # Start-up takes most of a short run, so kill anywhere from before the first step to well into the run.
            process.wait(timeout=rng.uniform(0.1, length) if kills < KILLS else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0, Path(f"{out}.log").read_text(encoding="utf-8")
        if kills >= KILLS:
            break
        # It finished between two kills: start again from nothing and go on killing.
        assert last_digest(out) == last_digest(tmp_path / "whole")
        out = tmp_path / f"killed{kills}"
    print(f"\n{kills} kills")
    assert last_digest(out) == last_digest(tmp_path / "whole")
