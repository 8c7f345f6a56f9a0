"""The page: everything on it, nothing loaded, and nothing that a model writes runs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from test_compare import write_run, write_scores
from thinktune.errors import ConfigError, RunFolderError
from thinktune.report import html
from thinktune.report.compare import COLUMNS, compare, sentences
from thinktune.report.html import MOST_PROBLEMS, write_comparison, write_report
from thinktune.report.translations import CHINESE, in_chinese
from thinktune.scoring.base import Outcome

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</details></div></article>\"'><svg/onload=alert(1)> {{{{ 7*7 }}}} {}"
)


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", tuned="rrrw", base="wwww")


def test_the_page_has_scores_curves_config_versions_and_samples(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert "tuned is better than base" not in page  # four problems prove nothing
    assert "tuned is 75.0 points above base, which may be luck" in page
    assert "75.0% (30–95)" in page
    assert "1,234 of 5,000" in page
    assert '<details><summary><span class="en">thinking, 2 characters</span>' in page
    assert page.count('<article class="problem">') == 4
    assert "alpha: 8" in page
    assert "base: told the format" in page
    assert [tag for tag, _ in Elements(page).found].count("svg") == 1


def test_figures_are_in_both_languages_and_names_of_runs_in_their_own(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", tuned="rw")).read_text(encoding="utf-8")
    english, chinese = (set(re.findall(f'<text class="{which}"[^>]*>([^<]+)<', page)) for which in ("en", "zh"))
    assert {"optimizer step", "loss (nats a trained token)"} <= english
    assert {"优化步", "损失（nat / 训练 token）"} <= chinese
    left = re.findall(r"<text (?!class)[^>]*>([^<]+)<", page)
    assert [text for text in left if re.search(r"[a-z]{3}", text)] == []  # numbers only
    runs = [write_run(tmp_path / name, tuned="rw") for name in ("right", "a<b")]
    page = write_comparison(compare(runs), tmp_path / "out").read_text(encoding="utf-8")
    assert not re.search('<text class="en"[^>]*>right<', page)
    assert re.search(r"<text (?!class)[^>]*>a&lt;b<", page)


def test_the_figure_of_one_run_has_no_legend_of_runs(tmp_path: Path) -> None:
    one, two = (write_run(tmp_path / name, tuned="rw") for name in ("one", "two"))
    for runs, legends in (([one], 0), ([one, two], 1)):
        figure = html._comparison_figure(compare(runs))
        assert (
            sum(axes.get_ylabel() == "loss, running mean" and axes.get_legend() is not None for axes in figure.axes)
            == legends
        )


def test_a_data_report_is_shown_with_the_rows_that_were_dropped(run: Path) -> None:
    source = {"source": "file<b>.jsonl", "read": 10, "usable": 8, "kept": 7, "dropped": {"no answer": [3, 9]}}
    lengths = {"total": 70, "trained": 40, "shortest": 5, "median": 9, "p95": 20, "longest": 21}
    report = {
        "sources": [source],
        "dropped": {"no answer": 2},
        "not_drawn": 1,
        "held_out": 0,
        "multi_turn": 0,
        "cut": 0,
        "packs": None,
        "lengths": {**lengths, "histogram": [[0, 10, 5], [10, 30, 2]]},
        "fingerprint": "f00",
    }
    (run / "data_report.json").write_text(json.dumps(report))
    page = write_report(run).read_text(encoding="utf-8")
    assert "rows 3, 9 of file&lt;b&gt;.jsonl" in page
    assert "width: 40.0%" in page


def test_nothing_is_loaded_from_anywhere(run: Path, tmp_path: Path) -> None:
    for page in (write_report(run), write_comparison(compare([run]), tmp_path / "out")):
        for tag, attributes in Elements(page.read_text(encoding="utf-8")).found:
            assert tag not in ("link", "iframe", "object", "embed", "base", "video", "audio")
            for name in ("src", "href", "srcset", "action", "poster"):
                assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)


def test_what_a_model_writes_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tuned="rw", base="wr", completion=HOSTILE)
    for page in (write_report(run), write_comparison(compare([run]), tmp_path / "out")):
        text = page.read_text(encoding="utf-8")
        elements = Elements(text).found
        assert [tag for tag, _ in elements].count("script") == 1
        assert not any(name.startswith("on") for _, attributes in elements for name in attributes)
        assert [tag for tag, _ in elements].count("svg") == 1  # the figure
        assert "&lt;script&gt;document.title=" in text
        assert "{{ 7*7 }}" in text


def test_the_policy_lets_only_the_pages_own_script_run(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_a_page_of_very_many_problems_shows_the_first_and_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tuned="r" * (MOST_PROBLEMS + 5))
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count('<article class="problem">') == MOST_PROBLEMS
    assert f"The first {MOST_PROBLEMS} of {MOST_PROBLEMS + 5} are here" in page


def test_a_run_without_scores_has_a_page_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tuned="r")
    shutil.rmtree(run / "eval")
    page = write_report(run).read_text(encoding="utf-8")
    assert "tuned was not scored" in page
    assert '<article class="problem">' not in page


@pytest.mark.slow
def test_in_a_browser_filters_work_hostile_text_is_inert_and_a_phone_shows_it_whole(tmp_path: Path) -> None:
    from playwright import sync_api

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser here")
    run = write_run(tmp_path / "run", tuned="rrw", base="wrw", completion=HOSTILE)
    file = write_report(run)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        assert page.title() == "run – thinktune"
        assert page.inner_text("output") == "3 / 3"
        page.select_option("select >> nth=0", "wrong")
        page.select_option("select >> nth=1", "right")
        assert page.inner_text("output") == "1 / 3"
        assert page.locator("article.problem:visible").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        browser.close()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", "x"),
        ("run.json", "[]"),
        ("run.json", "{}"),
        ("run.json", "\0\0\0"),
        ("run.json", '{"final_loss": "low"}'),
        ("metrics.jsonl", "x\n"),
        ("metrics.jsonl", "null\n"),
        ("metrics.jsonl", '{"loss": 1}\n'),
        ("metrics.jsonl", '{"step": 1, "loss": "low"}\n'),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
        ("data_report.json", "[]"),
        ("data_report.json", '{"sources": 5}'),
        ("eval/tuned/summary.json", '{"accuracy": "high"}'),
        ("eval/tuned/samples.jsonl", '{"id": 1}\n'),
    ],
)
def test_a_damaged_file_of_a_run_is_named(run: Path, file: str, content: str) -> None:
    (run / file).write_text(content)
    with pytest.raises(RunFolderError, match=rf"{re.escape(str(run / file))}.* is damaged"):
        write_report(run)


@pytest.mark.parametrize("content", ["x", "a: &a [*a]", "\0", "seed: 5"])
def test_a_damaged_config_of_a_run_is_named(run: Path, content: str) -> None:
    (run / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(str(run / "config.yaml"))):
        write_report(run)


def test_a_last_line_of_metrics_that_is_being_written_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert write_report(run).is_file()


@pytest.mark.parametrize(
    "content", ["x", "[]", '{"model": "m", "figures": 5}', '{"model": "m", "figures": [{"task": "t"}]}']
)
def test_damaged_figures_of_a_harness_are_named(run: Path, content: str) -> None:
    (run / "eval" / "tuned" / "harness.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"harness\.json is damaged"):
        write_report(run)


@pytest.mark.parametrize(
    ("tuned", "base", "english", "chinese"),
    [
        (
            "r" * 30,
            "w" * 30,
            "Better: tuned has 100.0% of 30 problems right, base 0.0% (+100.0 points, 95% interval +77.3 to +100.0).",
            "更好：30 道题中，tuned 答对 100.0%，base 答对 0.0%（+100.0 个百分点，95% 区间 +77.3 至 +100.0）。",
        ),
        (
            "w" * 30,
            "r" * 30,
            "Worse: tuned has 0.0% of 30 problems right, base 100.0% (-100.0 points",
            "更差：30 道题中",
        ),
        ("rrrw", "wwww", "Not known: tuned has 75.0% of 4 problems right, base 0.0% (+75.0 points", "未定：4 道题中"),
    ],
)
def test_the_first_sentence_is_the_verdict_with_its_interval(
    tuned: str, base: str, english: str, chinese: str, tmp_path: Path
) -> None:
    page = write_report(write_run(tmp_path / "run", tuned=tuned, base=base)).read_text(encoding="utf-8")
    first = page.partition("<h2>")[0]
    assert english in first
    assert chinese in first


def test_the_first_screen_has_one_chart_with_intervals(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "sure", tuned="r" * 30, base="w" * 30)).read_text(encoding="utf-8")
    assert "tuned: 100.0%, 95% interval 88.6 to 100.0" in page.partition("<h2>")[0]


@pytest.mark.parametrize(
    ("tuned", "base", "better", "step"),
    [
        ("r" * 30, "w" * 30, "better: +100.0", "<code>thinktune serve "),
        ("w" * 30, "r" * 30, "worse: -100.0", "train.learning_rate="),
        ("rw" * 15, "wr" * 15, "not known: +0.0", "--suite reasoning</code>"),
        ("rw", None, "not known: it was not scored beside its base model", "thinktune eval m --suite quick</code>"),
    ],
)
def test_the_first_screen_answers_five_questions(
    tuned: str, base: str | None, better: str, step: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", tuned=tuned, base=base)
    if "format" not in step:  # the tiny summaries have the same rate for the format
        summary = json.loads((run / "eval/tuned/summary.json").read_text())
        (run / "eval/tuned/summary.json").write_text(json.dumps(summary | {"format_rate": 1.0}))
    first = write_report(run).read_text(encoding="utf-8").partition("<h2>")[0]
    assert "m, LoRA r=4, on ?: 2 steps, 1.00 epochs, 100 tokens" in first
    assert better in first
    assert "1 min 30 s, 0.50 GiB, a CPU, 2 tokens/s" in first
    assert step in first


def test_samples_that_changed_come_first_and_lost_ones_before_all(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", tuned="rrwr", base="rwrw")).read_text(encoding="utf-8")
    assert re.findall(r'<span class="prompt">What is (\d)', page) == ["3", "2", "4", "1"]


def test_scores_of_result_files_and_of_other_data_are_on_the_page_of_their_run(run: Path) -> None:
    write_scores(run / "scores" / "other-rows", "rw")
    rate = {"value": 0.5, "low": 0.1, "high": 0.9}
    types = {
        "types": {"choice": {"n": 2, "format": rate, "strict": rate}, "generic-generate": {"n": 1, "strict": None}}
    }
    (run / "scores" / "A1").mkdir()
    (run / "scores" / "A1" / "summary.json").write_text(json.dumps(types))
    page = write_report(run).read_text(encoding="utf-8")
    for cells in (
        "A1, choice</td><td>2</td><td>50.0% (10–90)",
        "generic-generate</td><td>1</td><td>–",
        "other-rows</td><td>2",
    ):
        assert cells in page


def test_every_own_text_of_the_pages_has_a_chinese_one() -> None:
    for template in sorted((Path(html.__file__).parent / "templates").glob("*.html")):
        texts = re.findall(r'say\("([^"]+)"\)', template.read_text(encoding="utf-8"))
        assert [text for text in texts if text not in CHINESE] == []


def test_outcomes_columns_and_conclusions_have_chinese_texts(tmp_path: Path) -> None:
    comparison = compare([write_run(tmp_path / "run", tuned="rrrrrrrrrw", base="wwwwwwwrww")], ["tuned"])
    texts = [*get_args(Outcome), *sentences(comparison), "more than one </answer>", "rows.jsonl, row 7, sample 2"]
    texts += [heading for heading, _ in COLUMNS if heading != "GiB"]
    assert [text for text in texts if in_chinese(text) is None] == []
    assert in_chinese("my own words") is None


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("base was not scored", "base 未评分"),
        ("1 h 2 min 3 s", "1 小时 2 分 3 秒"),
        ("4,884,480 of 139,399,488 (3.50%)", "139,399,488 中的 4,884,480（3.50%）"),
        (
            "a is 3.0 points below b, which may be luck: they cannot be told apart "
            "(95% interval -1.0 to 7.0; 20 problems)",
            "a 比 b 低 3.0 个百分点，可能出于偶然，两者无法区分（95% 置信区间 -1.0 至 7.0；20 道题）",
        ),
    ],
)
def test_numbers_and_names_stay_in_a_chinese_text(english: str, chinese: str) -> None:
    assert in_chinese(english) == chinese
