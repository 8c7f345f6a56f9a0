"""The package as it is built and installed: what the wheel holds, what the extras are called, what is public."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import thinktune
from test_compare import write_run
from thinktune.workflows import doctor

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_types_data_and_configs_beside_the_code(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    sources = (ROOT / "src").rglob("*.py")
    assert {str(path.relative_to(ROOT / "src")) for path in sources} <= names
    assert {"thinktune/py.typed", "thinktune/data/questions.jsonl"} <= names
    assert {f"thinktune/configs/{path.name}" for path in (ROOT / "configs").iterdir()} <= names


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} == {
        "thinktune",
        f"thinktune-{version('thinktune')}.dist-info",
    }


@pytest.mark.slow
def test_the_installed_wheel_works_away_from_the_sources(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    venv.create(tmp_path / "env")
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    wheel.extractall(site)
    # The dependencies are those of this environment, without what makes our sources importable in it.
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        python = tmp_path / "env" / "bin" / "python"
        done = subprocess.run([python, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("-c", "import thinktune; print(thinktune.__file__)").startswith(str(site))
    assert run("-m", "thinktune", "--version") == f"thinktune {version('thinktune')}"
    assert run("-m", "thinktune", "config", "--schema") + "\n" == (ROOT / "configs" / "schema.json").read_text("utf-8")
    quickstart = "from thinktune.workflows.run import quickstart_config as q; print(q(['lora.r=3']).lora.r)"
    assert run("-c", quickstart) == "3"
    questions = "from thinktune.inference.batch_file import read_batch_file as r; print(len(r('builtin:questions')))"
    assert run("-c", questions) == "12"
    write_run(tmp_path / "mine", tuned="rrrw", base="wwww")
    assert run("-m", "thinktune", "report", "mine") == "mine/report.html"


def test_the_version_is_written_twice_and_is_the_same(project: dict[str, Any]) -> None:
    assert project["version"] == thinktune.__version__


def test_the_extras_are_those_that_doctor_explains(project: dict[str, Any]) -> None:
    assert set(project["optional-dependencies"]) - {"dev"} == set(doctor._EXTRAS)
    names = "vllm quant eval harness demo modelscope gguf serve dedup ray openai"
    assert set(doctor._EXTRAS) == set(names.split())


def test_the_public_names_are_these() -> None:
    assert sorted(thinktune.__all__) == [
        "Config",
        "Infer",
        "Parsed",
        "ThinktuneError",
        "load_config",
        "parse",
        "render",
    ]
    assert all(hasattr(thinktune, name) for name in thinktune.__all__)


def test_importing_the_package_stays_light() -> None:
    code = "import sys, thinktune; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
