"""The configs that come with thinktune, each with its purpose in a line."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def shipped_configs() -> list[Path]:
    """List the shipped configs: inside the package where it was installed from a wheel, else beside the sources."""
    packaged = Path(str(files("thinktune") / "configs"))
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs"
    return sorted(folder.glob("*.yaml"))


def purpose_of(file: Path) -> str:
    """Return the purpose of a shipped config: its second line, a comment behind that for editors."""
    return file.read_text(encoding="utf-8").splitlines()[1].removeprefix("# ")
