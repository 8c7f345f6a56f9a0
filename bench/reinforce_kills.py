"""A reinforcement killed by SIGKILL at random moments: its adapter has to be that of one let alone, bit by bit.

    python bench/reinforce_kills.py --kills 20       # on a CPU, in float32, with a tiny model

Each try is a fork of this process, which has imported all that a training needs, and resumes where the one before was
killed; moments are drawn over the time that a whole training took. Killed before anything was saved, it begins anew.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from thinktune.config import Config, parse_config
from thinktune.files import write_json_lines
from thinktune.run_folder import RunFolder
from thinktune.training.train import train
from workload import model_folder


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--kills", type=int, default=20)
    cli.add_argument("--steps", type=int, default=8)
    args = cli.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="thinktune-kills-"))
    started = time.monotonic()
    wait_for(start(config_of(folder, "whole", args.steps)))
    whole = time.monotonic() - started
    draw, kills, steps = random.Random(1), 0, []
    config = config_of(folder, "killed", args.steps)
    run = RunFolder(config.run_folder)
    while True:
        if run.is_trained:  # it came through: again from the start, for the kills that are left
            require_same(folder)
            if kills >= args.kills:
                break
            shutil.rmtree(run.path)
        child = start(config)
        if kills < args.kills and not ends_within(child, draw.uniform(0.1, 1.0) * whole):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            journaled = sorted(int(file.stem[5:]) for file in run.rollouts.glob("step-*.jsonl"))
            steps.append(journaled[-1] if journaled else 0)
            print(f"kill {kills}: rollouts of {steps[-1]} steps journaled", flush=True)
            continue
        if kills >= args.kills:
            wait_for(child)
    print(f"{kills} kills, with rollouts of so many steps journaled: {steps}; the adapter is the same, bit by bit")
    shutil.rmtree(folder)


def config_of(folder: Path, name: str, steps: int) -> Config:
    rows = folder / "rows.jsonl"
    if not rows.exists():
        questions = ["".join(random.Random(at).choices("abcdef ", k=20)) for at in range(30)]
        write_json_lines(rows, ({"question": question, "answer": "7"} for question in questions))
    rl = {"prompts": 2, "num_generations": 6, "max_completion_length": 12, "oversampling": 20, "temperature": 1.0}
    return parse_config(
        {
            "model": str(model_folder("tiny", folder)),
            "method": "grpo",
            "load": {"dtype": "float32", "device": "cpu"},
            "data": {"source": str(rows), "max_length": 256},
            "lora": {"r": 4, "alpha": 8},
            "rl": {**rl, "rewards": {"length": 1.0}, "length_buffer": 12},
            "train": {"max_steps": steps, "save_every": 2, "learning_rate": 1e-3},
            "ask": {"questions": []},
            "output": str(folder / name),
        }
    )


def start(config: Config) -> int:
    """Train in a fork, from the newest checkpoint if there is a run; return its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(os.devnull, "w") as nowhere:
            run = RunFolder(config.run_folder)
            train(config, console=Console(file=nowhere), resume=run.config.exists(), overwrite=not run.config.exists())
        status = 0
    except Exception:  # noqa: BLE001 - told here, as nothing of the process it was forked from may run
        traceback.print_exc()
    finally:
        os._exit(status)


def ends_within(child: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            require_well(status)
            return True
        time.sleep(0.01)
    return False


def wait_for(child: int) -> None:
    require_well(os.waitpid(child, 0)[1])


def require_well(status: int) -> None:
    if status:
        raise SystemExit("a training failed")


def require_same(folder: Path) -> None:
    whole, killed = (load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "killed"))
    if any(not torch.equal(whole[name], killed[name]) for name in whole):
        raise SystemExit("the adapter is another one")


if __name__ == "__main__":
    main()
