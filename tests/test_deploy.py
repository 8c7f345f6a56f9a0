"""What is in deploy/ can be read by its readers, and says what the documentation and the package say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sbatch")), ids=lambda script: script.name)
def test_batch_scripts_are_bash_with_their_options_first(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text(encoding="utf-8").splitlines()
    first = next(at for at, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # sbatch would not read them


def test_manifests_mount_what_they_declare() -> None:
    rayjob: Any = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text(encoding="utf-8"))
    cluster = rayjob["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for pod in pods:
        declared = {volume["name"] for volume in pod["volumes"]}
        assert all(mount["name"] in declared for each in pod["containers"] for mount in each["volumeMounts"])


def test_the_image_has_versions_that_the_package_allows() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("vllm", "ray"):
        pinned = re.findall(rf"ARG {name.upper()}=(.+)", dockerfile)[0]
        wanted = re.findall(rf'"({name}>=[^";]+)', project)[0]
        assert Requirement(wanted).specifier.contains(pinned)
    rayjob: Any = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text(encoding="utf-8"))
    assert f"ARG RAY={rayjob['spec']['rayClusterSpec']['rayVersion']}\n" in dockerfile
