"""Rows to examples: every row format, every kind of mark, every reason to drop a row."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from thinktune.config import Format, parse_config
from thinktune.data import Example, Row, RowFault
from thinktune.data.replies import extract_answer, split_reply
from thinktune.data.row_formats import (
    ROW_FORMATS,
    choose_formats,
    clean_prompt,
    find_format,
    to_example,
    unused_columns,
)
from thinktune.errors import ConfigError

STRATOS_THOUGHT = "<|begin_of_thought|>t"
STRATOS_SYSTEM = "Your role as an assistant involves thoroughly exploring questions."


def trace(sentences: int, seed: int = 0) -> str:
    """A thought like Stratos' own: thousands of words with LaTeX, code, blank lines and second thoughts."""
    draw = random.Random(seed)
    kinds = (
        "Wait, let me check {a} again: if $x_{{{a}}} = \\frac{{{b}}}{{{c}}}$ then \\boxed{{{b}}} would be too small.",
        "So for i in range({a}): total += i * {b}, which gives {c} after the loop.\n\n",
        "Alternatively, perhaps {a} < {b} and {b} > {c}; hmm, 小明 says {{{a}, {b}}} is the set.",
        "```python\ndef f(n):\n    return n * {a} + {b} if n else {c}\n```\n\n",
    )
    return " ".join(
        draw.choice(kinds).format(a=draw.randint(1, 99), b=draw.randint(1, 999), c=draw.randint(1, 9999))
        for _ in range(sentences)
    )


def stratos(prompt: str, thought: str, solution: str) -> dict[str, Any]:
    reply = (
        f"<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
    )
    turns = [{"from": "user", "value": prompt}, {"from": "assistant", "value": reply}]
    return {"system": STRATOS_SYSTEM, "conversations": turns}


CODE = '''```python
def solve(values):
    """Return {'a': 1} style counts; 2 < 3 holds."""
    counts = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts
```'''


def example_of(fields: dict[str, Any], system: str = "drop", need_thought: bool = True, **fmt: Any) -> Example:
    row_format = find_format(fields, ROW_FORMATS)
    assert row_format is not None
    return to_example(Row(7, fields), row_format, "rows.jsonl", Format(**fmt), system, need_thought=need_thought)


def fault_of(fields: dict[str, Any]) -> str:
    with pytest.raises(RowFault) as caught:
        example_of(fields)
    return str(caught.value)


def test_a_stratos_math_row_gives_its_last_box_and_loses_the_request_for_one() -> None:
    thought = trace(400)
    row = stratos(
        "Return your final response within \\boxed{}. What is $\\frac{1}{2}+\\frac{1}{4}$?",
        thought,
        "First, \\boxed{1} is wrong.\n\nThe sum is \\[\n\\boxed{\\frac{3}{4}}\n\\]",
    )
    example = example_of(row)
    assert example.answer == "\\frac{3}{4}"
    assert example.think == thought.strip()
    assert len(example.think) > 20_000
    assert example.messages == ({"role": "user", "content": "What is $\\frac{1}{2}+\\frac{1}{4}$?"},)
    assert (example.row, example.source) == (7, "rows.jsonl")


def test_a_stratos_code_row_keeps_its_whole_fenced_function() -> None:
    prompt = "Generate an executable Python function generated from the given prompt.\n\nCount the values.\n"
    example = example_of(stratos(prompt, trace(500, seed=1), CODE))
    assert example.answer == CODE
    assert example.messages[-1]["content"] == prompt.strip()


def test_a_stratos_free_text_row_keeps_its_whole_solution() -> None:
    solution = "The essay argues three things.\n\n1. First…\n2. Second…\n\n**In short**, balance matters."
    example = example_of(stratos("Summarise the essay.", trace(300, seed=2), solution))
    assert example.answer == solution


def test_the_solution_can_be_kept_whole_although_it_has_a_box() -> None:
    row = stratos("Q?", "t", "It is \\boxed{5}.")
    assert example_of(row, answer="solution").answer == "It is \\boxed{5}."
    assert example_of(row).answer == "5"


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "<think>t</think> a"}]}, "Q"),
        (
            {
                "conversations": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "<think>t</think>a"},
                ]
            },
            "Q",
        ),
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>t</think>\n\na"}]},
            "Q",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "a", "reasoning_content": "t"},
                ]
            },
            "Q",
        ),
        ({"instruction": "Do", "input": "this", "output": "<think>t</think> <answer>a</answer>"}, "Do\n\nthis"),
        ({"instruction": "Do", "input": "", "output": "<think>t</think> <answer>a</answer>"}, "Do"),
        ({"instruction": "Do", "output": "<think>t</think> a"}, "Do"),
        ({"prompt": "Q", "completion": "<think>\nt\n</think>\n\n<answer>\na\n</answer>\n"}, "Q"),
        ({"question": "Q", "answer": "t\n#### a"}, "Q"),
        ({"question": "Q", "answer": "<think>t</think>a"}, "Q"),
    ],
)
def test_every_row_format_gives_prompt_thought_and_answer(fields: dict[str, Any], prompt: str) -> None:
    example = example_of(fields)
    assert (example.messages[-1]["content"], example.think, example.answer) == (prompt, "t", "a")


def test_a_gsm8k_answer_loses_its_calculator_notes() -> None:
    example = example_of(
        {"question": "Q", "answer": "Half is 48/2 = <<48/2=24>>24 clips.\n24+48=<<24+48=72>>72\n#### 72"}
    )
    assert (example.think, example.answer) == ("Half is 48/2 = 24 clips.\n24+48=72", "72")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("just 42", "no thought"),
        ("<think> </think> 42", "no thought"),
        ("<think>t</think>", "no answer"),
        ("<think>t</think> <answer> </answer>", "no answer"),
        ("<think>t</think> \\boxed{}", "no answer"),
        ("<think>t 42", "thought not closed"),
        ("t</think> 42", "stray or nested tags"),
        ("Sure! <think>t</think> 42", "stray or nested tags"),
        ("<think>a<think>b</think></think> 42", "stray or nested tags"),
        ("<think>a <answer>1</answer></think> <answer>42</answer>", "stray or nested tags"),
        ("<answer>42</answer> <think>t</think>", "stray or nested tags"),
        ("<think>t</think> so <answer>42</answer>", "text outside the tags"),
        ("<think>t</think> <answer>42", "answer not closed"),
        ("<|begin_of_thought|>t<|end_of_thought|>", "no answer"),
        ("<|begin_of_thought|>t", "thought not closed"),
        ("<|begin_of_solution|>42<|end_of_solution|>", "no thought"),
        ("<|begin_of_thought|>t<|end_of_thought|><|begin_of_solution|>42", "answer not closed"),
        (
            f"{STRATOS_THOUGHT}<think><|end_of_thought|><|begin_of_solution|>42<|end_of_solution|>",
            "stray or nested tags",
        ),
        (f"{STRATOS_THOUGHT}<|end_of_thought|> so <|begin_of_solution|>4<|end_of_solution|>", "text outside the tags"),
        ("<think>t</think> 4\ud83d2", "not UTF-8"),
    ],
)
def test_a_broken_reply_is_a_fault_with_its_reason(reply: str, reason: str) -> None:
    assert fault_of({"prompt": "Q", "completion": reply}) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"conversations": []}, "no assistant turn"),
        ({"conversations": "text"}, "turns are not a list of objects"),
        ({"conversations": ["a", "b"]}, "turns are not a list of objects"),
        ({"conversations": [{"from": "user", "value": "Q"}]}, "no assistant turn"),
        ({"conversations": [{"from": "robot", "value": "Q"}, {"from": "gpt", "value": "a"}]}, "unknown role"),
        ({"messages": [{"role": "assistant", "content": "<think>t</think> a"}]}, "no user turn before the reply"),
        (
            {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "a"}]},
            "no text in 'content'",
        ),
        (
            {"messages": [{"role": role, "content": "<think>t</think> a"} for role in ("user", "assistant", "user")]},
            "last turn is not the assistant's",
        ),
        (
            {"messages": [{"role": role, "content": "<think>t</think> a"} for role in ("user", "user", "assistant")]},
            "turns do not alternate between user and assistant",
        ),
        ({"prompt": "  ", "completion": "<think>t</think> a"}, "empty prompt"),
        (
            {"prompt": "Return your final response within \\boxed{}.", "completion": "<think>t</think> a"},
            "empty prompt",
        ),
        ({"prompt": "Q", "completion": None}, "no text in 'completion'"),
        ({"question": "Q", "answer": ["a"]}, "no text in 'answer'"),
    ],
)
def test_a_broken_row_is_a_fault_with_its_reason(fields: dict[str, Any], reason: str) -> None:
    assert fault_of(fields) == reason


def test_earlier_turns_are_context_in_our_own_format_and_only_the_last_reply_is_trained() -> None:
    reply = "<|begin_of_thought|>t1<|end_of_thought|> <|begin_of_solution|>\\boxed{1}<|end_of_solution|>"
    turns = [("human", "Q1"), ("gpt", reply), ("human", "Q2"), ("gpt", "<think>t2</think> 2")]
    example = example_of({"conversations": [{"from": role, "value": text} for role, text in turns]})
    assert [message["role"] for message in example.messages] == ["user", "assistant", "user"]
    assert example.messages[1]["content"] == "<think>t1</think> <answer>1</answer>"
    assert (example.think, example.answer) == ("t2", "2")
    assert example.multi_turn


def test_an_earlier_reply_without_thought_stays_as_it_is() -> None:
    turns = [("user", "Hi"), ("assistant", "Hello!"), ("user", "Q"), ("assistant", "<think>t</think> a")]
    example = example_of({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert example.messages[1] == {"role": "assistant", "content": "Hello!"}


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("setting", "expected"), [("drop", None), ("keep", "Be brief."), ("Think hard.", "Think hard.")]
)
def test_the_rows_system_text_is_dropped_kept_or_replaced(setting: str, expected: str | None, inside: bool) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>t</think> a"}]
    if inside:
        fields: dict[str, Any] = {"messages": [{"role": "system", "content": "Be brief."}, *turns]}
    else:
        fields = {"system": "Be brief.", "messages": turns}
    example = example_of(fields, system=setting)
    systems = [message["content"] for message in example.messages if message["role"] == "system"]
    assert systems == ([expected] if expected else [])
    assert example.messages[-1] == {"role": "user", "content": "Q"}
    assert not example.multi_turn


def test_prompts_are_left_alone_where_the_config_says_so() -> None:
    prompt = "Return your final response within \\boxed{}. Q"
    assert example_of(stratos(prompt, "t", "a"), clean_prompt=False).messages[0]["content"] == prompt


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("Return your final response within \\boxed{}. What?", "What?"),
        ("What?\nReturn your final response within \\boxed{}.", "What?"),
        ("What is \\boxed{}?", "What is \\boxed{}?"),
        ("Line one\n\nline two", "Line one\n\nline two"),
    ],
)
def test_only_the_request_for_a_box_is_taken_out(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned


def test_for_evaluation_a_row_needs_no_thought_and_its_answer_may_be_a_number() -> None:
    example = example_of({"question": "Q", "answer": 42}, need_thought=False)
    assert (example.think, example.answer) == ("", "42")
    assert example_of({"question": "Q", "answer": "so \\boxed{7}"}, need_thought=False).answer == "7"


def test_braces_of_a_box_are_balanced() -> None:
    assert extract_answer("\\boxed{1}, hence \\boxed{\\sqrt{\\frac{1}{2}}}.", "boxed") == "\\sqrt{\\frac{1}{2}}"
    assert extract_answer("a \\boxed{1 unbalanced", "boxed") == "a \\boxed{1 unbalanced"


def test_a_reply_without_marks_has_no_thought() -> None:
    assert split_reply("  plain \n") == (None, "plain")


def test_keys_that_no_format_has_give_none() -> None:
    assert find_format({"text": "x", "label": 1}, ROW_FORMATS) is None
    assert all(find_format(dict.fromkeys(each.keys), ROW_FORMATS) is each for each in ROW_FORMATS)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"The roots are \boxed{2} and \boxed{3}.", "2, 3"),
        (r"$x = \boxed{2}$ or $\boxed{-2}$", "2, -2"),
        (r"\[\boxed{1}, \quad \boxed{2}, \text{ and } \boxed{3}\]", "1, 2, 3"),
        ("所以答案是 \\boxed{4} 或 \\boxed{5}。", "4, 5"),
        ("(a) It is \\boxed{10}.\n(b) So \\boxed{12}.", "10, 12"),
        ("1. \\boxed{x=1}\n\n2. By that, \\boxed{y=2}", "x=1, y=2"),
        ("**Part A**: \\boxed{5}\n**Part B**: \\boxed{6}", "5, 6"),
        (r"It is \boxed{7}. Again: \boxed{7}.", "7"),
        (r"\boxed{7} and \boxed{ 7 }", "7"),
        (r"\boxed{\boxed{8}}", "8"),
        (r"First \boxed{1}? No, that was wrong: \boxed{2}.", "2"),
        (r"So \boxed{} and \boxed{3}", "3"),
    ],
)
def test_boxes_that_belong_together_are_the_answer_together(solution: str, answer: str) -> None:
    assert example_of({"prompt": "Q", "completion": f"<think>t</think> {solution}"}).answer == answer


@pytest.mark.parametrize(
    ("solution", "left_out"),
    [
        (r"First \boxed{1}? No: \boxed{2}.", True),
        ("(a) \\boxed{1}\nand then \\boxed{2}", True),
        (r"\boxed{2} and \boxed{3}", False),
        (r"\boxed{2}, that is \boxed{2}", False),
        ("no box", False),
    ],
)
def test_an_example_says_whether_a_box_is_not_in_its_answer(solution: str, left_out: bool) -> None:
    assert example_of({"prompt": "Q", "completion": f"<think>t</think> {solution}"}).boxes_left_out is left_out
    assert not example_of(
        {"prompt": "Q", "completion": f"<think>t</think> {solution}"}, answer="solution"
    ).boxes_left_out


def turns(*texts: str, **last: Any) -> list[dict[str, Any]]:
    roles = [("user", "assistant")[at % 2] for at in range(len(texts))]
    listed: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    listed[-1] |= last
    return listed


@pytest.mark.parametrize(
    "fields",
    [
        {"conversations": None, "messages": turns("Q", "<think>t</think> a")},
        {"conversations": [], "messages": turns("Q", "<think>t</think> a")},
        {"messages": None, "instruction": "Q", "input": None, "output": "<think>t</think> a"},
        {"instruction": "", "input": "", "output": "", "prompt": "Q", "completion": "<think>t</think> a"},
        {"prompt": float("nan"), "completion": float("nan"), "question": "Q", "answer": "t\n#### a"},
        {"messages": [{"from": None, "value": None, **turn} for turn in turns("Q", "<think>t</think> a")]},
        {
            "messages": [
                {"tool_calls": [], "function_call": {"name": None}, **turn} for turn in turns("Q", "<think>t</think> a")
            ]
        },
        {"messages": turns("Q", "a", reasoning="t")},
        {"messages": turns("Q", "a", thinking="t", reasoning_content=None)},
        {"messages": turns("Q", "<think>t</think> a", reasoning_content="t")},
        {"messages": turns("Q", "t\n</think>\n\na")},
        {"messages": turns("Q", "t</think>\na")},
        {"messages": turns("Q", "t\n</think> <answer>a</answer>")},
        {"conversations": turns("Q", "t\n<|end_of_thought|>\n<|begin_of_solution|>a<|end_of_solution|>")},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Q"}]},
                turns("", "<think>t</think> a")[1],
            ]
        },
        {"messages": [{"role": "developer", "content": "s"}, *turns("Q", "<think>t</think> a")]},
        {"prompt": turns("Q"), "completion": [{"role": "assistant", "content": "<think>t</think> a"}]},
        {"prompt": "Q", "completion": "a", "reasoning": "t"},
        {"question": "Q", "answer": "a", "thinking": "t", "context": None, "choices": []},
        {"question": "Q", "answer": "<think>t</think>\n#### Step\n1\n#### Result\n\\boxed{a}"},
        {"question": "Q", "answer": "t\r\n#### a\r\n"},
    ],
)
def test_a_row_is_read_by_what_it_holds(fields: dict[str, Any]) -> None:
    example = example_of(fields)
    assert (example.messages[-1]["content"], example.think, example.answer) == ("Q", "t", "a")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"messages": turns("Q", "<think>t</think> a", tool_calls=[{"id": "1"}])}, "'tool_calls' would be lost"),
        ({"messages": turns("Q", "<think>t</think> a", function_call={"name": "f"})}, "'function_call' would be lost"),
        ({"messages": turns("Q", "<think>t</think> a"), "tools": "[{}]"}, "'tools' would be lost"),
        ({"messages": turns("<image>Q", "<think>t</think> a"), "images": ["1.png"]}, "'images' would be lost"),
        ({"instruction": "Q", "input": ["1"], "output": "<think>t</think> a"}, "no text in 'input'"),
        ({"instruction": "Q", "input": {"x": 1}, "output": "<think>t</think> a"}, "no text in 'input'"),
        ({"instruction": "Q", "output": "<think>t</think> a", "history": "Hi"}, "'history' is no list of pairs"),
        ({"instruction": "Q", "output": "<think>t</think> a", "history": [["Hi", None]]}, "no text in 'history'"),
        ({"question": "Which?", "answer": "t\n#### a", "choices": ["x", "y"]}, "'choices' would be lost"),
        ({"question": "Who?", "answer": "t\n#### a", "context": "It was Ann."}, "'context' would be lost"),
        ({"prompt": "Double it.", "input": 21, "completion": "<think>t</think> a"}, "'input' would be lost"),
        ({"prompt": "Q", "completion": "<think>t</think> a", "reasoning": "u"}, "two thoughts that differ"),
        ({"messages": turns("Q", "a", reasoning="t", thinking="u")}, "two thoughts that differ"),
        ({"messages": turns("Q", "a", reasoning={"effort": "high"})}, "no text in 'reasoning'"),
        ({"messages": turns("Q", "<think>t</think> a"), "system": ["s"]}, "no text in 'system'"),
        ({"messages": turns("Q", "<think>t</think> a", weight=0)}, "the last turn is marked as not to be trained"),
        ({"messages": turns("Q", "<think>t</think>", "R", "<think>t</think> a")}, "an earlier reply without an answer"),
        ({"messages": turns("Q", [{"type": "image_url"}], "R", "a")}, "no text in 'content'"),  # type: ignore[arg-type]
        ({"messages": turns("Q", "The tag </think> closes it.")}, "stray or nested tags"),
        ({"question": "Q", "answer": "#### Step 1\nAdd.\n#### Result\nIt is 7."}, "no thought"),
        ({"question": "Q", "answer": "#### Step 1\nAdd.\n#### 7"}, "no thought"),
        ({"question": "Q", "answer": "t\n####"}, "no answer"),
    ],
)
def test_what_cannot_be_read_is_dropped_under_a_reason_that_says_so(fields: dict[str, Any], reason: str) -> None:
    assert fault_of(fields) == reason


def test_alpacas_history_and_numbers_are_part_of_the_prompt() -> None:
    row = {"instruction": "Double it.", "input": 21, "output": "<think>t</think> 42", "history": [["Hi", "Hello!"]]}
    assert [message["content"] for message in example_of(row).messages] == ["Hi", "Hello!", "Double it.\n\n21"]


def test_an_earlier_thought_that_stands_apart_is_rendered_in_our_format() -> None:
    first = turns("Q1", "1", reasoning_content="t1")
    example = example_of({"messages": [*first, *turns("Q2", "2", reasoning_content="t2")]})
    assert example.messages[1] == {"role": "assistant", "content": "<think>t1</think> <answer>1</answer>"}
    assert (example.think, example.answer) == ("t2", "2")


def test_columns_and_fields_of_turns_that_are_not_read_are_named() -> None:
    fields = {"id": 7, "note": None, "messages": turns("Q", "<think>t</think> a", name="bot"), "question": "Q"}
    row_format = find_format(fields, ROW_FORMATS)
    assert row_format is not None
    assert unused_columns(fields, row_format) == ["id", "question", "messages[].name"]


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_formats.py").write_text(
        "from thinktune.data import Parts, RowFault\n"
        "def chosen(row):\n"
        "    if row['score'] < 3:\n"
        "        raise RowFault('low score')\n"
        "    return Parts([{'role': 'user', 'content': row['q']}], row['a'], row['why'])\n"
        "def wrong(row):\n"
        "    return row\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.usefixtures("own_module")
def test_a_function_of_the_users_own_reads_rows_of_any_format() -> None:
    (own,) = choose_formats("my_formats:chosen")
    row = {"q": "Q", "a": "\\boxed{2}", "why": "because", "score": 5}
    example = to_example(Row(1, row), own, "s", Format())
    assert (example.messages[0]["content"], example.think, example.answer) == ("Q", "because", "2")
    with pytest.raises(RowFault, match="low score"):
        to_example(Row(2, {**row, "score": 1}), own, "s", Format())


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    "reference", ["my_formats:missing", "no_such_module:f", "my_formats", "my_formats:number", ":f"]
)
def test_a_format_that_cannot_be_imported_is_named(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.format"):
        choose_formats(reference)


@pytest.mark.usefixtures("own_module")
def test_a_format_that_returns_something_else_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="returned dict"):
        to_example(Row(1, {}), choose_formats("my_formats:wrong")[0], "s", Format())


@pytest.mark.usefixtures("own_module")
def test_a_function_of_the_users_own_that_fails_is_named_with_its_row() -> None:
    with pytest.raises(ConfigError, match=r"my_formats:chosen fails on row 3 of s: KeyError: 'score'"):
        to_example(Row(3, {}), choose_formats("my_formats:chosen")[0], "s", Format())


def test_a_format_is_chosen_by_name_where_rows_have_the_keys_of_several() -> None:
    fields = {"messages": turns("Q1", "<think>t</think> 1"), "prompt": "Q2", "completion": "<think>t</think> 2"}
    first, named = (find_format(fields, choose_formats(name)) for name in (None, "prompt/completion"))
    assert (first, named) == (ROW_FORMATS[1], ROW_FORMATS[3])
    assert find_format({"messages": []}, choose_formats("prompt/completion")) is None


def test_the_former_key_of_the_format_is_understood(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_config({"data": {"shape": "my_formats:chosen"}}).data.format == "my_formats:chosen"
    assert "shape is called format now" in caplog.text
