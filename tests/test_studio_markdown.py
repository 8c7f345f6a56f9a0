"""What the studio makes of texts: prices, formulas, tags, and nothing that could become a part of the page."""

from __future__ import annotations

import re
from typing import Any

import pytest

from thinktune.studio.conversations import history
from thinktune.studio.markdown import messages, plain, rendered, split_reply
from thinktune.studio.tabs.rate import _shown
from thinktune.studio.translations import Words

WORDS = Words(None)


def answer(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": "", "text": text, "state": "done", "error": "", "tokens": 0, "seconds": 0.0, "think_tokens": 3,
        "think_seconds": 1.25, "verdict": "", **fields,
    }  # fmt: skip


def shown(text: str) -> str:
    """The HTML of a text, without its frame, formulas in brackets."""
    html = rendered(text, source=False).removeprefix('<div class="written">').removesuffix("</div>")
    marks = str.maketrans({"\ue000": "⟦", "\ue001": "⟧", "\ue002": "⟪", "\ue003": "⟫"})
    return html.replace("&#10;", "\n").strip().removeprefix("<p>").removesuffix("</p>").translate(marks)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a < b & c", "a &lt; b &amp; c"),
        ("`a<b>` and <i>", "<code>a&lt;b&gt;</code> and &lt;i&gt;"),
        ("```html\n<p>\n```\n<p>", "<pre><code>&lt;p&gt;\n</code></pre>\n<p>&lt;p&gt;"),
        ("```\n<script>", "<pre><code>&lt;script&gt;</code></pre>"),
        ("a ` <b> and no more", "a ` &lt;b&gt; and no more"),
        ("$x < y$", "⟦x &lt; y⟧"),
        ("<think>", "&lt;think&gt;"),
        ("&lt;b&gt; &amp;", "&amp;lt;b&amp;gt; &amp;amp;"),
        ("5*3 and 2*4, 2**3 and 4**2", "5*3 and 2*4, 2**3 and 4**2"),
        ("**bold** and *it*", "<strong>bold</strong> and <em>it</em>"),
        ("*重点*内容", "<em>重点</em>内容"),
    ],
)
def test_html_in_markdown_is_text_and_code_stays_code(text: str, html: str) -> None:
    assert shown(text) == html


PRICES = [
    "Tom has $30 and Ann has $40.",
    "It costs $5, and a meal $12.50 more.",
    "US$5 and US$6",
    "A$5,A$6",
    "$1,200.50 or $1,300",
    "$5-$10",
    "$5–$10",
    "$5/$6",
    "5$ and 6$",
    "(5$) and (10$)",
    "5$, 10$",
    "$5 (in US$) or more",
    "$ 5 and $ 6",
    "价格是$5元，而不是6$。",
    "苹果$5，梨$6",
    "$12*3=$36, $36+$4=$40",
    "The total is $$5.",
    "costs $$5 and $$6",
    "$5k and $3M",
    "$5and$6",
    "$5.$6",
    "-$5 to -$3",
    "tax:$7; price:$6",
    "($5) + ($6) = ($11)",
    "$PATH:$HOME",
    "5*$3=$15",
    "$5 million or 6$",
    "A costs $12, B 15$",
    "3 cups at $4, 2 at 6$",
]


@pytest.mark.parametrize("text", PRICES)
def test_prices_are_shown_as_they_are_written(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("What is $x^2$?", "What is ⟦x^2⟧?"),
        (r"\(x\) and \[y\] and $$z$$", "⟦x⟧ and ⟪y⟫ and ⟪z⟫"),
        ("$x$ costs $5 and $y$ costs $6", "⟦x⟧ costs $5 and ⟦y⟧ costs $6"),
        ("$5 = $x$", "$5 = ⟦x⟧"),
        (r"\$5 and \$6", "$5 and $6"),
        ("**$5** or **$6**", "<strong>$5</strong> or <strong>$6</strong>"),
        ("$25 = 3x$, $x=25$ and $25$", "$25 = 3x$, $x=25$ and $25$"),  # a digit at an edge
        ("$x_1$, $2^n$ and $x + y$", "⟦x_1⟧, ⟦2^n⟧ and ⟦x + y⟧"),  # no price has one of these inside
        (r"$10\%$ of $\$50$", r"⟦10\%⟧ of ⟦\$50⟧"),
        (r"$100 \times 2 = 200$ dollars, $20 \text{ dollars}$", r"⟦100 \times 2 = 200⟧ dollars, ⟦20 \text{ dollars}⟧"),
        (r"2$\pi$ and the $n$th", r"2⟦\pi⟧ and the ⟦n⟧th"),
        (r"between $3 and $4 is $\pi$", r"between $3 and $4 is ⟦\pi⟧"),
        (r"**Answer:** $\boxed{42}$", r"<strong>Answer:</strong> ⟦\boxed{42}⟧"),
        ("`$5` and `$x$`", "<code>$5</code> and <code>$x$</code>"),
        ("$$\nx\n- y\n= 3\n$$", "⟪x\n- y\n= 3⟫"),
    ],
)
def test_formulas_are_found_among_prices(text: str, html: str) -> None:
    assert shown(text) == html


def test_prices_in_a_table_stay_prices() -> None:
    cells = shown("| a | b |\n|---|---|\n| $5 | $6 |\n| $x$ | 7 |")
    assert "<td>$5</td>" in cells
    assert "<td>⟦x⟧</td>" in cells


@pytest.mark.parametrize(
    "text",
    [
        "$`$ <div style='position:fixed'>x</div> $`$",
        "<img src=http://evil.example/x>",
        "![a](x.png)",
        "[x](javascript:alert(1))",
        "[x](data:text/html,x)",
        "[x](//evil.example)",
        "[x](/logout)",
        "[x](vbscript:x)",
        "[a]: javascript:alert(1)\n\n[a]",
        "<svg/onload=x>",
        "<math><mi href=x>",
        "<form><input autofocus>",
        "<!-- x -->",
        "<style>*{}</style>",
        "<a href=http://x>",
        "&lt;img src=x&gt;",
        "```x' onclick='y\na\n```",
        "%%%LATEX_BLOCK_0%%%",
        "\ue000x\ue001",
        "<details open>",
        "a\n\n<p id=x>\n\nb",
        "<![CDATA[x]]>",
        "<?php x ?>",
    ],
)
def test_nothing_of_a_text_becomes_an_element_of_the_page(text: str) -> None:
    html = rendered(text)
    assert set(re.findall(r"<(\w+)", html)) <= {"div", "p", "code", "pre", "span"}
    assert set(re.findall(r"<\w+ ([^>]*)>", html)) <= {'class="written"', 'class="source"'}
    assert "%%%LATEX" not in html
    assert not re.search("[\ue000-\ue003]", html)
    assert "\n" not in html  # an empty line would end the block that Gradio lets through


def test_an_image_is_not_fetched() -> None:
    assert "<img" not in shown("![a](http://evil.example/x.png)")


def test_links_lead_to_the_web_and_show_where() -> None:
    assert shown('[x](https://example.org/?a="b)').startswith('<a href="https://example.org/?a=%22b" title="https://')


def test_a_plain_text_has_no_markdown_at_all() -> None:
    assert plain("*a* [b](http://c) <d>") == '<div class="said">*a* [b](http://c) &lt;d&gt;</div>'


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("<think>a</think> <answer>4</answer>", "a", "4"),
        ("<think>a</think>\n7", "a", "7"),
        ("Write <think> first, then $5.", None, "Write <think> first, then $5."),
        ("I close with </think> here", None, "I close with </think> here"),
        ("<think>a </think> b</think> c", None, "<think>a </think> b</think> c"),
        ("<think>a</think> <answer>4</answer> and more", "a", "<answer>4</answer> and more"),
        ("<think>a</think> the tag <answer> opens it", "a", "the tag <answer> opens it"),
        ("x < y <ans", None, "x < y <ans"),
    ],
)
def test_only_the_frame_of_a_completion_is_taken_away(text: str, thought: str | None, said: str) -> None:
    assert split_reply(text) == (thought, said)


def contents(text: str, state: str) -> list[str]:
    return [each["content"] for each in messages("q", answer(text, state=state), WORDS)][1:]


def test_what_was_stopped_ends_before_half_a_tag_and_says_that_it_is_cut() -> None:
    for text in ("<think>a</think> <answer>4</ans", "<think>a</think> <answer>4"):
        *_, said, remark = contents(text, "stopped")
        assert "<p>4</p>" in said
        assert WORDS("cut") in remark
    assert len(contents("<think>a</think> <ans", "stopped")) == 2  # a thought and the remark
    assert "x &lt;" in contents("x <", "done")[0]


def test_a_rater_sees_all_of_an_answer_whose_thought_is_never_closed() -> None:
    (said,) = _shown("<think>the answer is 4", False, WORDS)
    assert "&lt;think&gt;the answer is 4" in said["content"]
    assert [each.get("metadata", {}).get("title") for each in _shown("<think>a</think> 7", True, WORDS)] == [
        "Show thinking",
        None,
    ]


def test_a_question_is_plain_text_and_is_copied_as_it_was_written() -> None:
    for text in ("# 5 * 3 * 2 at $5 and $x$", "- a\n- <b>", "$$5$$ \\(x\\)"):
        (question,) = messages(text, None, WORDS)
        assert set(re.findall(r"<(\w+)", question["content"])) == {"div", "span"}
        assert question["content"].count(text.split("\n")[-1].replace("<b>", "&lt;b&gt;")) == 2


def test_a_rater_sees_a_thought_without_an_answer_and_is_told_of_silence() -> None:
    (thought,) = _shown("<think>it is 4</think>", False, WORDS)
    assert "it is 4" in thought["content"]
    (nothing,) = _shown("  ", False, WORDS)
    assert WORDS("no_answer") in nothing["content"]


def test_a_stub_is_marked_for_the_model_that_reads_it_in_the_history() -> None:
    stub = {"answers": [answer("<think>a</think> <answer>4</ans", state="stopped"), None], "question": "q"}
    silent = {"answers": [answer("<thi", state="stopped"), None], "question": "q"}
    turns = [{**turn, "gone": [False, False]} for turn in (stub, silent, {"question": "now", "answers": [None, None]})]
    assert [each["content"] for each in history(turns, 0)] == ["q", "<think>a</think> <answer>4 […]", "now"]


def test_a_thought_folds_away_with_its_length_and_time() -> None:
    found = list(messages("q", answer("<think>So.</think> <answer>4</answer>"), WORDS))
    assert [each["role"] for each in found] == ["user", "assistant", "assistant", "assistant"]
    assert found[1]["metadata"] == {"title": "Thought: 3 tokens, 1.2 s", "status": "done"}
    assert found[0]["content"] == plain("q", source=True)
    for message, text in zip(found[:3], ["q", "So.", "4"], strict=True):
        assert message["content"] == rendered(text) or message is found[0]
        assert f'<span class="source">{text}</span>' in message["content"]


def test_a_thought_that_goes_on_is_open_and_half_a_tag_is_not_shown() -> None:
    thought = list(messages("q", answer("<think>So", state="running"), WORDS))[1]
    assert thought["metadata"] == {"title": "Thinking … 3 tokens", "status": "pending"}
    assert contents("<think>So</thi", "running") == [rendered("So", source=False)]


def test_what_is_not_well_formed_is_shown_and_said() -> None:
    said, remark = contents("Just 4 <b>", "done")
    assert said == rendered("Just 4 <b>")
    assert remark == '<div class="facts"><span class="chip warn">not well-formed: no &lt;think&gt;</span></div>'


def test_an_answer_says_whose_it_is_how_fast_it_came_and_whether_it_is_right() -> None:
    facts = {"model": "/runs/<b>mine", "tokens": 30, "seconds": 1.5, "verdict": "right"}
    *_, said = messages("q", answer("<think>a</think> <answer>4</answer>", **facts), WORDS)
    chips = re.findall(r'class="chip (\w*)">(.*?)</span>', said["content"])
    assert chips == [
        ("model", "&lt;b&gt;mine"), ("", "30 tokens · 20 tokens/s"), ("", "thought for 1.2 s"), ("good", "well-formed"),
        ("good", "right"),
    ]  # fmt: skip
