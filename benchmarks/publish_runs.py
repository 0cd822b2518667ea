"""Write the published runs of fqtsim/verify/files by training them on emulator@cpu; resumable.

python benchmarks/publish_runs.py mlp-digits resnet8-digits
python benchmarks/publish_runs.py resnet20-fashion-mnist --data .data/fashion-mnist
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress, TaskID

from fqtsim.train.loop import StepRecord, run
from fqtsim.train.rundir import RunDir
from fqtsim.verify.published import EVERY, FOLDER, RUNS, from_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(RUNS), help=f"of {', '.join(RUNS)}")
    parser.add_argument("--data", type=Path, help="folder of the four Fashion-MNIST files")
    parser.add_argument("--steps", type=int, help="train this long instead")
    parser.add_argument("--runs", type=Path, default=Path("runs/published"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the files are written")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        config = replace(RUNS[name], eval_every=1 << 30, save_every=EVERY)
        if arguments.data is not None and config.data != "digits":
            config = replace(config, data=f"{config.data}:{arguments.data.resolve()}")
        if arguments.steps is not None:
            config = replace(config, steps=arguments.steps)
        folder = arguments.runs / f"{name}-{config.steps}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Progress() as bar:
            task = bar.add_task(name, total=config.steps)

            def on_step(line: StepRecord, bar: Progress = bar, task: TaskID = task) -> None:
                bar.update(task, completed=line.step)

            run(config, folder, resume=RunDir(folder).exists, on_step=on_step)
        print(from_folder(name, folder).save(arguments.out))


if __name__ == "__main__":
    main()
