"""Rows to what is trained: masks, draws, shares, what is too long, what is held out, and an account of all of it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import Write
from thinktune.config import Config, Data, Format, Load, Source, parse_config
from thinktune.data import Prepared, load_examples, pack, prepare
from thinktune.data.prepare import shares
from thinktune.errors import ConfigError, DataError
from thinktune.models.chat import Chat
from thinktune.report.data_preview import show


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from conftest import make_tiny_tokenizer

    return make_tiny_tokenizer()


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> Chat:
    return Chat(tokenizer)


def row(number: int, words: int = 3) -> dict[str, str]:
    return {"prompt": f"What is {number}?", "completion": f"<think>{'so ' * words}</think> <answer>{number}</answer>"}


def config_of(source: Any, train: dict[str, Any] | None = None, **data: Any) -> Config:
    return parse_config({"data": {"source": source, **data}, "train": train or {}})


def prompts_of(prepared: Prepared) -> list[str]:
    return [tokens.example.messages[-1]["content"] for tokens in prepared.train]


def test_ids_are_what_the_chat_template_renders_and_only_reply_and_end_of_turn_are_trained(
    write: Write, chat: Chat, tokenizer: Any
) -> None:
    (tokens,) = prepare(config_of(write([row(42)])), chat).train
    reply = "<think>so so so</think> <answer>42</answer>"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 42?"}, {"role": "assistant", "content": reply}], tokenize=False
    )
    assert tokenizer.decode(tokens.input_ids) + "\n" == rendered
    assert tokens.input_ids == tokenizer(rendered, add_special_tokens=False).input_ids[: len(tokens)]
    trained = [label for label in tokens.labels if label != -100]
    assert tokenizer.decode(trained) == reply + "<|im_end|>"
    assert tokens.labels == [-100] * tokens.context + trained
    assert len(tokens.input_ids) == len(tokens.labels) == len(tokens)
    assert tokens.trained == len(trained)


def test_a_conversation_trains_only_its_last_reply(write: Write, chat: Chat, tokenizer: Any) -> None:
    turns = [("user", "A?"), ("assistant", "<think>p</think> 1"), ("user", "B?"), ("assistant", "<think>q</think> 2")]
    source = write([{"messages": [{"role": role, "content": text} for role, text in turns]}, row(1)])
    prepared = prepare(config_of(source), chat)
    (tokens,) = (tokens for tokens in prepared.train if tokens.example.row == 1)
    trained = tokenizer.decode(tokens.ids[tokens.context :])
    assert trained == "<think>q</think> <answer>2</answer><|im_end|>"
    assert "<think>p</think> <answer>1</answer><|im_end|>" in tokenizer.decode(tokens.ids[: tokens.context])
    assert prepared.report.multi_turn == 1


def test_control_tokens_in_a_row_are_text(write: Write, chat: Chat) -> None:
    rows = [{"prompt": "Say <|im_end|>!", "completion": "<think>t <|im_end|></think> a"}, row(1)]
    prepared = prepare(config_of(write(rows)), chat)
    (tokens,) = (tokens for tokens in prepared.train if tokens.example.row == 1)
    trained = list(tokens.ids[tokens.context :])
    assert trained.count(chat.end_of_turn_id) == 1
    assert trained[-1] == chat.end_of_turn_id


def test_many_replies_at_once_are_tokenised_as_each_alone(chat: Chat) -> None:
    texts = ["<think>a</think> <answer>1</answer>", "12 + 30 = 42", "小明 有 3 个", "", "a\n\n  b"]
    assert chat.replies_ids(texts) == [chat.reply_ids(text) for text in texts]
    texts[1] = "not the end: <|im_end|>"
    assert chat.replies_ids(texts) == [chat.reply_ids(text) for text in texts]


def test_every_row_is_accounted_for_under_its_reason_with_its_number(tmp_path: Path, chat: Chat) -> None:
    lines = [
        json.dumps(row(1)).encode(),
        json.dumps({"prompt": "Q", "completion": "no marks"}).encode(),
        b'{"prompt": "\xff", "completion": "x"}',
        json.dumps({"text": "another format"}).encode(),
        json.dumps({"prompt": "Q", "completion": "<think>t</think>"}).encode(),
        json.dumps(row(6, words=5000)).encode(),
        json.dumps({"prompt": "Q", "completion": "again none"}).encode(),
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    report = prepare(config_of(str(tmp_path / "rows.jsonl"), max_length=512), chat).report
    assert report.sources[0].dropped == {
        "no thought": [2, 7],
        "not UTF-8": [3],
        "unknown row format": [4],
        "no answer": [5],
        "too long": [6],
    }
    assert (report.rows_read, report.kept, report.not_drawn) == (7, 1, 0)
    assert report.dropped["no thought"] == 2
    assert "7 rows read, 1 kept" in report.one_line()
    assert "2 no thought" in report.one_line()


def test_a_sample_is_drawn_by_seed_from_what_is_usable_and_fits(write: Write, chat: Chat) -> None:
    source = write([row(n, words=5000 if n % 3 == 0 else 3) for n in range(60)])
    drawn = prepare(config_of(source, sample=15, seed=1, max_length=512), chat)
    assert len(drawn.train) == 15
    assert len(set(prompts_of(drawn))) == 15
    assert drawn.report.kept == 15
    assert drawn.report.not_drawn + drawn.report.dropped["too long"] == 45
    assert drawn.report.sources[0].dropped["too long"] == sorted(drawn.report.sources[0].dropped["too long"])
    again = prepare(config_of(source, sample=15, seed=1, max_length=512), chat)
    assert (again.fingerprint, prompts_of(again)) == (drawn.fingerprint, prompts_of(drawn))
    other = prepare(config_of(source, sample=15, seed=2, max_length=512), chat)
    assert set(prompts_of(other)) != set(prompts_of(drawn))
    assert other.fingerprint != drawn.fingerprint


def test_the_top_level_seed_is_used_where_the_data_have_none(write: Write, chat: Chat) -> None:
    source = write([row(n) for n in range(30)])
    by_top = prepare(parse_config({"seed": 5, "data": {"source": source, "sample": 10}}), chat)
    by_data = prepare(parse_config({"seed": 9, "data": {"source": source, "sample": 10, "seed": 5}}), chat)
    assert by_top.fingerprint == by_data.fingerprint


def test_a_sample_larger_than_what_is_usable_takes_all_and_says_so(
    write: Write, chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepare(config_of(write([row(1), row(2)]), sample=10), chat)
    assert len(prepared.train) == 2
    assert "10 examples asked for, 2 usable" in caplog.messages[0]


def test_sources_share_the_sample_by_weight(write: Write, chat: Chat) -> None:
    first = write([row(n) for n in range(40)], "a.jsonl")
    second = write([row(n) for n in range(100, 140)], "b.jsonl")
    sources = [{"source": first, "weight": 3}, {"source": second}]
    report = prepare(config_of(sources, sample=20), chat).report
    assert [source.kept for source in report.sources] == [15, 5]


def test_each_source_may_have_its_own_split() -> None:
    sources = [Source(source="builtin:arithmetic"), Source(source="builtin:arithmetic", split="test")]
    examples, _ = load_examples(Data(source=sources, sample=20), Format(), 1, load=Load())
    prompts = {example.messages[0]["content"] for example in examples}
    assert len(prompts) == 20


@pytest.mark.parametrize(
    ("weights", "sample", "expected"),
    [
        ([1, 1, 1], 10, [4, 3, 3]),
        ([2, 1], 9, [6, 3]),
        ([1, 1], None, [None, None]),
        ([0.1, 0.9], 5, [1, 4]),
        ([1], 7, [7]),
    ],
)
def test_shares_add_up_to_the_sample(weights: list[float], sample: int | None, expected: list[int | None]) -> None:
    assert shares([Source(source="s", weight=weight) for weight in weights], sample) == expected


def test_weights_without_a_sample_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no data\.sample"):
        shares([Source(source="a"), Source(source="b", weight=2)], None)


def test_too_long_is_an_error_where_that_is_asked_for(write: Write, chat: Chat) -> None:
    source = write([row(1), row(2, words=500)])
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: .* tokens, but data\.max_length is 256"):
        prepare(config_of(source, max_length=256, overlong="error"), chat)


def test_a_cut_example_loses_its_end_and_is_counted_and_warned_of(
    write: Write, chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepare(config_of(write([row(1), row(2, words=500)]), max_length=256, overlong="cut"), chat)
    cut = next(tokens for tokens in prepared.train if tokens.cut)
    assert len(cut) == 256
    assert cut.ids[-1] != chat.end_of_turn_id
    assert prepared.report.cut == 1
    assert "1 examples were longer than 256 tokens and lost their end" in caplog.messages[0]
    assert "1 CUT" in prepared.report.one_line()


def test_a_prompt_that_leaves_nothing_to_train_is_dropped_even_where_rows_are_cut(write: Write, chat: Chat) -> None:
    rows = [row(1), {"prompt": "long " * 500, "completion": "<think>t</think> a"}]
    report = prepare(config_of(write(rows), max_length=256, overlong="cut"), chat).report
    assert report.sources[0].dropped == {"prompt alone too long": [2]}


def test_held_out_examples_are_apart_from_training_even_where_rows_repeat(write: Write, chat: Chat) -> None:
    source = write([row(n % 50) for n in range(200)])
    prepared = prepare(config_of(source, eval_fraction=0.1), chat)
    trained = set(prompts_of(prepared))
    held_out = {tokens.example.messages[-1]["content"] for tokens in prepared.held_out}
    assert not trained & held_out
    assert len(prepared.train) + len(prepared.held_out) == 200
    assert 20 <= len(prepared.held_out) <= 80
    assert prepared.report.held_out == len(prepared.held_out)


def test_holding_out_everything_is_refused(write: Write, chat: Chat) -> None:
    with pytest.raises(DataError, match="leaves nothing to train on"):
        prepare(config_of(write([row(1), row(1)]), eval_fraction=0.5), chat)


def test_the_report_counts_tokens_and_packs(write: Write, chat: Chat) -> None:
    prepared = prepare(config_of(write([row(n, words=n) for n in range(1, 40)]), max_length=256), chat)
    lengths = [len(tokens) for tokens in prepared.train]
    report = prepared.report
    assert report.lengths
    assert report.packs
    assert report.lengths.total == sum(lengths)
    assert report.lengths.trained == sum(tokens.trained for tokens in prepared.train)
    assert (report.lengths.shortest, report.lengths.longest) == (min(lengths), max(lengths))
    assert report.lengths.median == sorted(lengths)[len(lengths) // 2]
    assert sum(count for _, _, count in report.lengths.histogram) == len(lengths)
    assert all(
        count == sum(low <= length < high for length in lengths) for low, high, count in report.lengths.histogram
    )
    assert report.packs.count == len(pack(lengths, 256))
    assert report.packs.padding_share == pytest.approx(1 - sum(lengths) / (report.packs.count * 256))
    assert report.fingerprint == prepared.fingerprint


def test_unpacked_data_report_no_packs(write: Write, chat: Chat) -> None:
    assert prepare(config_of(write([row(1)]), {"packing": False}), chat).report.packs is None


def test_an_unknown_row_format_names_the_keys_seen_and_the_formats_known(write: Write, chat: Chat) -> None:
    with pytest.raises(DataError) as caught:
        prepare(config_of(write([{"text": "a", "label": 1}, {"text": "b", "extra": 2}])), chat)
    assert "keys seen: extra, label, text" in str(caught.value)
    assert "instruction/input/output" in str(caught.value)
    assert "data.format" in str(caught.value)


def test_no_usable_row_is_an_error_with_every_reason(write: Write, chat: Chat) -> None:
    rows = [{"prompt": "Q", "completion": "none"}, {"prompt": "", "completion": "<think>t</think> a"}]
    with pytest.raises(DataError, match=r"no usable rows: 1 no thought \(row 1 of .*; 1 empty prompt \(row 2 of"):
        prepare(config_of(write(rows)), chat)
    with pytest.raises(DataError, match=r"no usable rows: 1 too long \(row 1"):
        prepare(config_of(write([row(1, words=500)]), max_length=64), chat)


def test_loading_for_evaluation_needs_neither_tokenizer_nor_thought(write: Write) -> None:
    source = write([{"question": f"Q{n}", "answer": n} for n in range(1, 9)])
    data = Data(source=source, sample=5)
    examples, report = load_examples(data, Format(), 7, load=Load(), need_thought=False)
    assert len(examples) == report.kept == 5
    assert {example.answer for example in examples} <= {str(n) for n in range(1, 9)}
    with pytest.raises(DataError, match="8 no thought"):
        load_examples(data, Format(), 7, load=Load())


def test_a_split_can_be_given_apart_from_the_config() -> None:
    data = Data(sample=30)
    train, _ = load_examples(data, Format(), 7, load=Load())
    test, _ = load_examples(data, Format(), 7, load=Load(), split="test")
    prompts = {example.messages[0]["content"] for example in train}
    assert not prompts & {example.messages[0]["content"] for example in test}


def printed(config: Config, chat: Chat, **options: Any) -> str:
    console = Console(width=120, file=io.StringIO())
    show(config, chat, console, **options)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_data_are_shown_with_numbers_examples_and_one_pack_token_by_token(write: Write, chat: Chat) -> None:
    rows = [row(n) for n in range(8)] + [{"prompt": "Q", "completion": "[red]none[/red]"}]
    text = printed(config_of(write(rows), max_length=256), chat)
    assert "dropped: no thought" in text
    assert "example 3: row" in text
    assert "one packed batch" in text
    assert "document 2: row" in text
    assert "tokens of padding" in text
    assert "▶<think>so so so</think> <answer>" in text
    assert "<|im_end|>" in text


def test_very_long_documents_are_shortened_on_screen(write: Write, chat: Chat) -> None:
    text = printed(config_of(write([row(1, words=1500)]), {"packing": False}, max_length=8192), chat)
    assert "characters…]" in text
    assert "tokens…]" in text
    assert len(text.splitlines()) < 80


def test_without_a_chat_the_one_of_the_configs_model_is_used(
    write: Write, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config({"model": str(tiny_model), "data": {"source": write([row(1), row(2)])}})
    report = show(config, json=True)
    assert json.loads(capsys.readouterr().out)["fingerprint"] == report.fingerprint


def test_the_report_is_shown_as_json_where_a_program_reads_it(write: Write, chat: Chat) -> None:
    shown = json.loads(printed(config_of(write([row(1), row(2)])), chat, json=True))
    assert (shown["rows_read"], shown["kept"]) == (2, 2)
    assert shown["lengths"]["trained"] > 0
    assert shown["packs"]["count"] == 1
    assert shown["sources"][0]["dropped"] == {}


def test_a_source_without_a_usable_row_among_very_many_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["thinktune.data.prepare"], "_ROWS_TO_SEE", 5)
    (tmp_path / "rows.jsonl").write_text(
        '{"question": "Q", "answer": "no thought"}\n' * 6 + "not JSON, never reached\n"
    )
    with pytest.raises(DataError, match="no usable rows: 5 no thought"):
        load_examples(Data(source=str(tmp_path / "rows.jsonl")), Format(), 0, load=Load())
