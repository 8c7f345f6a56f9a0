"""Batch files: what a line may set itself, in our shape and in OpenAI's."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from thinktune.config import Infer, Sampling, load_config
from thinktune.errors import BatchFileError, ConfigError
from thinktune.inference.batch_file import Item, read_batch_file
from thinktune.inference.profiles import PROFILES, samplings
from thinktune.scoring import TASKS

ROOT = Path(__file__).parents[1]


def read(folder: Path, *lines: dict[str, Any], **settings: Any) -> list[Item]:
    file = folder / "batch.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_batch_file(file, **settings)


def problem(folder: Path, **fields: Any) -> str:
    (item,) = read(folder, {"id": 1, "type": "math", **fields}, skip_bad=True)
    return item.problem or ""


def openai(**body: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "q"}], **body}
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_a_line_may_set_its_own_sampling_n_and_system_text(tmp_path: Path) -> None:
    first, second, third = read(
        tmp_path,
        {"id": 1, "type": "math", "prompt": "q", "sampling": {"temperature": 0.5, "stop": ["x"]}, "n": 2},
        {"id": 2, "type": "math", "prompt": "q", "system": "Be brief."},
        {"id": 3, "type": "code-generate", "prompt": "q", "prompt_id": "mine"},
    )
    assert first.sampling == TASKS["math"].sampling.changed(temperature=0.5, stop=("x",), n=2, seed=0)
    assert second.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"})
    assert third.sampling.n == 3


def test_a_conversation_may_stand_in_the_place_of_a_prompt(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
    ]
    (item,) = read(tmp_path, {"id": 1, "type": "math", "messages": turns})
    assert item.messages == (*turns[:3], {"role": "user", "content": "cd"})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "q", "messages": []}, "both prompt and messages"),
        ({"messages": []}, "must be a list"),
        ({"messages": ["q"]}, "message 1 is not"),
        ({"messages": [{"role": "robot", "content": "q"}]}, 'role "robot"; known are system, user, assistant'),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "may hold text only"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "may hold text only"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "must end with"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "system", "content": "a"}]}, "beginning only"),
        ({"messages": [{"role": "system", "content": "s"}], "system": "t"}, "system text twice"),
        ({"prompt": "q", "system": 5}, "system must be a text"),
        ({"prompt": "q", "sampling": 5}, "sampling must be an object"),
        ({"prompt": "q", "sampling": {"temprature": 1}}, "temprature: unknown key; did you mean temperature?"),
        ({"prompt": "q", "sampling": {"top_p": 2}}, "top_p: "),
        ({"prompt": "q", "sampling": {"n": 2}, "n": 3}, "n is given twice"),
        ({"prompt": "q", "n": 0}, "n: "),
        ({"prompt": "q", "sampling": {"think_budget": 9000}}, "leaves no tokens for the answer"),
        ({"prompt": "q", "temperature": 0.5}, "temperature belongs into sampling"),
        ({"prompt": "q", "sampling": []}, "sampling must be an object"),
        ({"prompt": "q", "max_new_tokens": 5}, "did you mean max_tokens, which belongs into sampling?"),
        ({"promt": "q"}, 'unknown field "promt"; did you mean prompt?'),
    ],
)
def test_faults_of_a_line_are_named(tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    assert expected in problem(tmp_path, **fields)


def test_openais_batch_lines_are_understood(tmp_path: Path) -> None:
    developer = {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "q"}]}
    body = {"max_completion_tokens": 50, "temperature": 0.7, "stop": "END", "n": 2, "stream": False, "user": "me"}
    (item,) = read(tmp_path, openai(**developer, **body))
    assert (item.id, item.type) == ("a", "generic-generate")
    assert item.messages[0]["role"] == "system"
    expected = {"max_tokens": 50, "temperature": 0.7, "stop": ("END",), "n": 2, "seed": 0}
    assert item.sampling == TASKS["generic-generate"].sampling.changed(**expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (openai(tools=[{}]), "body.tools cannot be honoured"),
        (openai(stream=True), "body.stream cannot be honoured"),
        (openai(temperature="hot"), "temperature"),
        (openai(max_tokens=500, max_completion_tokens=8), "max_tokens twice, and differs"),
        ({**openai(), "url": "/v1/embeddings"}, "url must be /v1/chat/completions"),
        ({**openai(), "body": None}, "body must be an object"),
        ({**openai(), "custom_id": ""}, "custom_id must be"),
        (openai(messages=None), "has no prompt"),
        (openai(messages=[{"role": "assistant", "content": "a", "tool_calls": [{}]}]), "tool_calls of a message"),
    ],
)
def test_what_openais_lines_ask_for_in_vain_is_named(tmp_path: Path, line: dict[str, Any], expected: str) -> None:
    with pytest.raises(BatchFileError, match=expected):
        read(tmp_path, line)


def test_the_article_profile_is_what_the_articles_config_says() -> None:
    article = load_config(ROOT / "configs/article.yaml").infer.profiles
    assert {str(name): sampling for name, sampling in article.items()} == dict(PROFILES["article"])


def test_settings_go_over_the_profile_and_fill_what_it_leaves_open() -> None:
    settings = Infer(profile="article", profiles={"math": Sampling(max_tokens=9, seed=4)}, think_budget=8)
    chosen = samplings(settings, seed=7)
    assert chosen["math"] == Sampling(max_tokens=9, seed=4, think_budget=8)
    assert chosen["choice"] == PROFILES["article"]["choice"].changed(seed=7, think_budget=8)
    with pytest.raises(ConfigError, match="math: think_budget 9 leaves no tokens"):
        samplings(settings.model_copy(update={"think_budget": 9}))
    assert samplings(settings, think_budget=2, n=3)["math"] == Sampling(max_tokens=9, seed=4, think_budget=2, n=3)
    with pytest.raises(ConfigError, match="math: think_budget 9 leaves no tokens"):
        samplings(settings, think_budget=9)


def test_a_number_too_long_for_python_is_a_fault_of_its_line(tmp_path: Path) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_text(f'{{"id": {"9" * 5000}, "type": "math", "prompt": "q"}}\n')
    with pytest.raises(BatchFileError, match="line 1: holds a number with more digits"):
        read_batch_file(file)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"{}", mtime=0), "is gzip,"),
        ('{"id": 1}\n'.encode("utf-16"), "is UTF-16 text,"),
        (b"PK\x03\x04...", "is a zip archive,"),
        (b'[\n  {"id": 1, "type": "math", "prompt": "q"}\n]\n', "is one JSON list,"),
        (b'\xef\xbb\xbf[{"id": 1, "type": "math", "prompt": "q"}]', "is one JSON list,"),
    ],
)
def test_a_file_that_has_no_lines_of_json_is_refused_as_what_it_is(tmp_path: Path, content: bytes, kind: str) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_bytes(content)
    with pytest.raises(BatchFileError, match=kind) as caught:
        read_batch_file(file, skip_bad=True)
    assert "line 1" not in str(caught.value)


def test_a_wrong_value_is_shown_in_its_own_script(tmp_path: Path) -> None:
    assert 'unknown type "数学"' in problem(tmp_path, type="数学", prompt="q")


def test_a_single_stop_text_needs_no_list(tmp_path: Path) -> None:
    (item,) = read(tmp_path, {"id": 1, "type": "math", "prompt": "q", "sampling": {"stop": "END"}})
    assert item.sampling.stop == ("END",)
