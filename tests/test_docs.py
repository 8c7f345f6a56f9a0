"""What the documentation says about commands, files and names is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from families import FAMILIES, model_type
from thinktune.cli import app
from thinktune.training.tried_families import TRIED

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
VERBS = set(typer.main.get_group(app).commands)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", read(path))
    assert [target for target in targets if "://" not in target and not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_verb_that_a_page_shows_exists(path: Path) -> None:
    shown = re.findall(r"(?:^ *|`)thinktune ([a-z]+)\b", read(path), re.MULTILINE)
    assert set(shown) <= VERBS


@pytest.mark.parametrize("path", READMES.values(), ids=READMES.keys())
def test_the_readme_lists_every_verb(path: Path) -> None:
    assert set(re.findall(r"^\| `([a-z]+)[ `]", read(path), re.MULTILINE)) >= VERBS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_exist(path: Path) -> None:
    named = re.findall(r"\b(?:configs|docs|bench)/[\w.-]+\.(?:yaml|json|md|py)\b", read(path))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_chinese_readme_has_the_sections_tables_and_code_of_the_english_one() -> None:
    english, chinese = read(READMES["en"]), read(READMES["zh"])
    assert code_blocks(chinese) == code_blocks(english)
    for pattern in (r"^#+ ", r"^\|", r"^- ", r"^\d\. "):
        lines = [re.findall(pattern, without_code(text), re.MULTILINE) for text in (english, chinese)]
        assert lines[0] == lines[1], pattern


def test_the_readme_stays_short() -> None:
    assert len(read(READMES["en"]).splitlines()) <= 200


def test_the_tree_in_contributing_names_every_folder_of_the_package() -> None:
    package = ROOT / "src" / "thinktune"
    folders = {file.parent.name for file in package.rglob("*.py") if file.parent != package}
    assert [name for name in sorted(folders) if f" {name}/" not in read(ROOT / "CONTRIBUTING.md")] == []


def test_the_table_of_families_says_what_their_tests_hold() -> None:
    lines = re.findall(r"^\| ([a-z]+) \| ([^|]+) \|", read(ROOT / "docs" / "models.md"), re.MULTILINE)
    told = {family: outcome for outcome, families in lines for family in re.findall(r"`([^`]+)`", families)}
    assert told == {family: row.outcome for family, row in FAMILIES.items()}


def test_every_family_of_the_table_counts_as_tried_and_no_other() -> None:
    assert set(map(model_type, FAMILIES)) == TRIED
