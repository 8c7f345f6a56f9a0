"""Answers on the screen: thinking dimmed, tags hidden, nothing lost when raw."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from conftest import make_tiny_tokenizer
from scripted import ScriptedModel
from thinktune.config import Sampling
from thinktune.errors import GenerationError, UsageError
from thinktune.inference.chat_cli import answer, ask, chat_loop
from thinktune.inference.engines import Opened
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.models import Chat

SAMPLING = Sampling(max_tokens=150)
REPLY = "<think>First [bold]\n 3 < 4.</think> <answer>小明 has 7</answer>"


class Terminal:
    """A chat with a scripted model, and what it shows on its two outputs."""

    def __init__(self, reply: str | Callable[[str], str], *, colour: bool = False) -> None:
        tokenizer = make_tiny_tokenizer()
        model = ScriptedModel(tokenizer, reply if callable(reply) else lambda prompt: reply)
        self.opened = Opened(TransformersEngine(model, tokenizer, [2]), Chat(tokenizer), "scripted")
        self.out, self.err = io.StringIO(), io.StringIO()
        self.console = Console(
            file=self.out, force_terminal=colour, color_system="standard" if colour else None, width=40
        )
        self.messages = Console(file=self.err, width=200)

    def ask(self, question: str = "How many?", *, raw: bool = False) -> str:
        return answer(self.opened, question, SAMPLING, self.console, raw, messages=self.messages)

    def talk(self) -> None:
        chat_loop(self.opened, SAMPLING, self.console, messages=self.messages)


def test_thought_and_answer_are_shown_without_tags_and_without_control_codes_in_a_pipe() -> None:
    terminal = Terminal(REPLY)
    assert terminal.ask() == REPLY
    assert terminal.out.getvalue() == "First [bold]\n 3 < 4.\n\n小明 has 7\n"
    assert terminal.err.getvalue() == ""


def test_on_a_terminal_the_thought_is_dim_and_the_answer_plain() -> None:
    terminal = Terminal("<think>so</think> <answer>7</answer>", colour=True)
    terminal.ask()
    shown = terminal.out.getvalue()
    assert "\x1b[2m" in shown.partition("\n\n")[0]
    assert "\x1b" not in shown.partition("\n\n")[2]


def test_raw_prints_exactly_what_the_model_wrote() -> None:
    terminal = Terminal(REPLY)
    assert terminal.ask(raw=True) == REPLY
    assert terminal.out.getvalue() == REPLY


@pytest.mark.parametrize(
    ("reply", "warning"),
    [
        ("It is 7.", "the answer has no <think>, </think>, <answer>, </answer>"),
        ("<think>a</think> <answer>7", "the answer has no </answer>"),
        ("<answer>7</answer> <think>a</think>", "the answer has no <think>, </think>"),  # it stops at </answer>
        ("<think>a</think> well <answer>7</answer>", "the answer is not well-formed: text outside the tags"),
    ],
)
def test_missing_tags_are_warned_of_by_name(reply: str, warning: str) -> None:
    terminal = Terminal(reply)
    terminal.ask()
    assert terminal.err.getvalue().strip() == warning


def test_text_without_tags_is_shown_whole() -> None:
    terminal = Terminal("It is 7, for\n\n 3 < 10 and <b> is no tag.")
    terminal.ask()
    assert terminal.out.getvalue() == "It is 7, for\n\n 3 < 10 and <b> is no tag.\n"


def test_control_codes_written_by_a_model_do_not_reach_the_terminal() -> None:
    terminal = Terminal("<think>\x1b[2Jclear</think> <answer>7\x07</answer>")
    terminal.ask()
    assert terminal.out.getvalue() == "\ufffd[2Jclear\n\n7\ufffd\n"


def test_a_question_that_does_not_fit_is_refused() -> None:
    with pytest.raises(GenerationError, match="context of 512"):
        Terminal(REPLY).ask("x" * 5000)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def type_lines(*lines: str | type[BaseException]) -> None:
        queue: Iterator[Any] = iter(lines)

        def read(prompt: str = "") -> str:
            line = next(queue, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)

    return type_lines


def test_a_conversation_remembers_until_it_is_cleared(typed: Callable[..., None]) -> None:
    asked: list[str] = []

    def reply(prompt: str) -> str:
        asked.append(prompt)
        return REPLY

    terminal = Terminal(reply)
    typed("one?", "", "two?", "/clear", "three?")
    terminal.talk()
    prompts = list(dict.fromkeys(asked))
    assert f"one?<|im_end|>\n<|im_start|>assistant\n{REPLY}<|im_end|>" in prompts[1]
    assert "one?" not in prompts[2]
    assert terminal.out.getvalue().count("小明 has 7") == 3


def test_exit_leaves_and_unknown_commands_are_told(typed: Callable[..., None]) -> None:
    terminal = Terminal(REPLY)
    typed("/exitt", "/exit", "never asked")
    terminal.talk()
    assert terminal.out.getvalue() == ""
    assert "/exitt is no command" in terminal.err.getvalue()


def test_ctrl_c_stops_the_answer_and_not_the_program(typed: Callable[..., None]) -> None:
    asked: list[str] = []

    def reply(prompt: str) -> str:
        asked.append(prompt)
        if "one?" in prompt and len(asked) > 3:
            raise KeyboardInterrupt
        return REPLY

    terminal = Terminal(reply)
    typed(KeyboardInterrupt, "one?", "two?")
    terminal.talk()
    assert "stopped" in terminal.err.getvalue()
    assert "one?" not in asked[-1]
    assert terminal.out.getvalue().endswith("小明 has 7\n")


def test_a_conversation_that_outgrows_the_context_can_be_cleared(typed: Callable[..., None]) -> None:
    terminal = Terminal(REPLY)
    typed("x" * 5000, "two?")
    terminal.talk()
    assert "/clear forgets" in terminal.err.getvalue()
    assert "小明 has 7" in terminal.out.getvalue()


def test_bytes_that_are_no_utf_8_are_asked_as_replacement_characters() -> None:
    asked: list[str] = []
    terminal = Terminal(lambda prompt: asked.append(prompt) or REPLY)  # type: ignore[func-returns-value]
    assert terminal.ask(b"caf\xe9?".decode("utf-8", "surrogateescape")) == REPLY
    assert "caf\ufffd?" in asked[0]


def test_a_blank_question_is_refused_before_a_model_is_looked_for() -> None:
    with pytest.raises(UsageError, match="question is blank"):
        ask("nowhere/at/all", " ", sampling=Sampling())
