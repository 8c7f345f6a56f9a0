"""What is in deploy/ can be read by its readers, and says what the documentation and the package say."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from rich.console import Console

from conftest import make_tiny_model
from test_sweep import make_file
from thinktune.config import load_config
from thinktune.training.train import train
from training import adapter_of

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sbatch")), ids=lambda script: script.name)
def test_batch_scripts_are_bash_with_their_options_first(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text(encoding="utf-8").splitlines()
    first = next(at for at, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # sbatch would not read them


def test_manifests_mount_what_they_declare() -> None:
    jobset: Any = yaml.safe_load((DEPLOY / "jobset.yaml").read_text(encoding="utf-8"))
    rayjob: Any = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text(encoding="utf-8"))
    cluster = rayjob["spec"]["rayClusterSpec"]
    pods = [jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]]
    pods += [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        declared = {volume["name"] for volume in pod["volumes"]}
        assert all(mount["name"] in declared for each in pod["containers"] for mount in each["volumeMounts"])
    nodes = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    command = pods[0]["containers"][0]["args"][0]
    assert f"--nnodes {nodes['parallelism']} " in command
    assert nodes["parallelism"] == nodes["completions"]


def test_the_image_has_versions_that_the_package_allows() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("vllm", "ray"):
        pinned = re.findall(rf"ARG {name.upper()}=(.+)", dockerfile)[0]
        wanted = re.findall(rf'"({name}>=[^";]+)', project)[0]
        assert Requirement(wanted).specifier.contains(pinned)
    rayjob: Any = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text(encoding="utf-8"))
    assert f"ARG RAY={rayjob['spec']['rayClusterSpec']['rayVersion']}\n" in dockerfile


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" & first=$!
"$@" & second=$!
trap 'kill -TERM "$first" "$second"' TERM
wait "$first"; wait "$first"; status=$?
wait "$second"
exit "$status"
"""
SCONTROL = """#!/bin/bash
case $1 in show) echo localhost ;; requeue) touch "$REQUEUED" ;; esac
"""


@pytest.mark.slow
def test_a_job_on_two_nodes_that_runs_out_of_time_is_queued_again_and_ends_as_on_one(tmp_path: Path) -> None:
    """The nodes are two agents on this machine, each with a process of its own."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "REQUEUED": str(tmp_path / "requeued"),
        "MASTER_PORT": str(port),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_JOB_ID": "7",
    }
    config = make_file(make_tiny_model(tmp_path / "tiny"), tmp_path, train={"max_steps": 60, "learning_rate": 1e-3})
    run = tmp_path / "nodes"
    call = ["bash", str(DEPLOY / "train.sbatch"), str(config), str(run), "train.save_every=5", "train.accumulation=2"]
    job = subprocess.Popen(call, env=environment)
    _until(lambda: list(run.glob("checkpoints/*/whole.json")))
    job.send_signal(signal.SIGTERM)
    job.wait(120)
    assert (tmp_path / "requeued").exists()
    assert not (run / "run.json").exists()
    subprocess.run(call, env=environment, check=True)
    alone = load_config(config, ["train.accumulation=2", f"output={tmp_path / 'alone'}"])
    train(alone, console=Console(file=io.StringIO()))
    torch.testing.assert_close(adapter_of(run), adapter_of(tmp_path / "alone"), rtol=1e-4, atol=1e-6)


def _until(condition: Any) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
