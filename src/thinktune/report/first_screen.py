"""The first screen of a report: what was trained, whether it is better and by how much, what it cost, what to do next.

Sentences are in English and Chinese, by language.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from thinktune.report.candidates import Candidate
from thinktune.report.compare import Comparison
from thinktune.report.pairs import Pair
from thinktune.report.translations import in_chinese
from thinktune.run_folder import RunFolder

Said = dict[str, str]
_MUCH_CUT = 0.1  # of the completions, so that the score is one of the limit
_FEW_FORMED = 0.9
_VERDICTS = {"better": "更好", "worse": "更差", "not known": "未定"}


@dataclass(frozen=True)
class Step:
    """Something to do next, with its command."""

    why: Said
    command: str


def first_screen(folder: RunFolder, comparison: Comparison, record: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the answers that the report of a run begins with."""
    tuned = comparison.candidates[-1]
    return {
        "trained": _trained(tuned, record),
        "better": list(_better(comparison)),
        "cost": _cost(record),
        "next": list(_next(folder, comparison, tuned)),
    }


def headline(comparison: Comparison) -> dict[str, str]:
    """Say in one sentence, by language, whether the last candidate is better than the first, and by how much."""
    scored = [each for each in comparison.candidates if each.summary and "accuracy" in each.summary]
    if not scored or (len(scored) == 1 and scored[0] is not comparison.candidates[-1]):
        return _on_benchmarks(comparison) or {"en": "Trained; not scored yet.", "zh": "已训练，尚未评分。"}
    first, last = scored[0], scored[-1]
    right, problems = _accuracy(last)
    if len(scored) == 1:
        return {
            "en": f"{last.name} has {right} of {problems} problems right.",
            "zh": f"{last.name} 在 {problems} 道题中答对 {right}。",
        }
    names = {first.name, last.name}
    pair = next((each for each in comparison.pairs if {each.first, each.second} == names), None)
    if pair is None:
        before, others = _accuracy(first)
        return {
            "en": f"{last.name} has {right} of {problems} problems right, {first.name} {before} of {others}: "
            "not compared.",
            "zh": f"{last.name} 在 {problems} 道题中答对 {right}，{first.name} 在 {others} 道题中答对 {before}："
            "未作比较。",
        }
    # Of the problems that both were given: on others the two may lie the other way round.
    problems = f"{pair.difference.n:,}"
    before, right = (f"{each:.1%}" for each in (pair.difference.first_mean, pair.difference.second_mean))
    points, low, high = (
        f"{100 * each:+.1f}" for each in (pair.difference.value, pair.difference.low, pair.difference.high)
    )
    return {
        "en": f"{pair.verdict.capitalize()}: {last.name} has {right} of {problems} problems right, {first.name} "
        f"{before} ({points} points, 95% interval {low} to {high}).",
        "zh": f"{_VERDICTS[pair.verdict]}：{problems} 道题中，{last.name} 答对 {right}，{first.name} 答对 {before}"
        f"（{points} 个百分点，95% 区间 {low} 至 {high}）。",
    }


def _accuracy(candidate: Candidate) -> tuple[str, str]:
    """Return the accuracy of a candidate that was scored, and the number of its problems."""
    summary = candidate.summary or {}
    return f"{summary['accuracy']:.1%}", f"{summary.get('n', len(candidate.samples)):,}"


def _trained(tuned: Candidate, record: Mapping[str, Any]) -> Said:
    """Say what was trained, on which data, for how long."""
    settings = tuned.settings
    method = {"sft": "", "grpo": ", GRPO", "dpo": ", DPO"}.get(str(settings.get("method", "sft")), "")
    rank = f"LoRA r={settings['lora.r']}" if settings.get("lora.r") else None
    en, zh = (rank or all_weights for all_weights in ("all weights", "全部权重"))
    source = settings.get("data.source")
    names = [each["source"] if isinstance(each, Mapping) else str(each) for each in _listed(source)]
    data = ", ".join(names) or "?"
    epochs, counts = f"{record['epochs']:.2f}", [f"{record[name]:,}" for name in ("steps", "trained_tokens")]
    return {
        "en": f"{record['model']}{method}, {en}, on {data}: {counts[0]} steps, {epochs} epochs, {counts[1]} tokens",
        "zh": f"{record['model']}{method}，{zh}，数据 {data}：{counts[0]} 步，{epochs} 轮，训练 {counts[1]} 个 token",
    }


def _listed(source: Any) -> list[Any]:
    return source if isinstance(source, list) else [] if source is None else [source]


def _better(comparison: Comparison) -> Iterator[Said]:
    """Say for the problems of the config, and for all benchmarks together, whether the last candidate is better."""
    last = comparison.candidates[-1].name
    pair = next((each for each in comparison.pairs if each.second == last), None)
    if pair is not None:
        yield _verdict(pair)
    if on_benchmarks := _on_benchmarks(comparison):
        yield on_benchmarks
    if pair is None and not on_benchmarks:
        yield {"en": "not known: it was not scored beside its base model", "zh": "未知：未与基座模型一同评分"}


def _on_benchmarks(comparison: Comparison) -> Said | None:
    """Count the verdicts on the last candidate; None if there are none."""
    last = comparison.candidates[-1].name
    counts = comparison.benchmarks.verdicts(last)
    if not counts:
        return None
    better, worse, unknown = (counts[each] for each in ("better", "worse", "not known"))
    return {
        "en": f"On {sum(counts.values())} benchmarks, {last} is better on {better}, worse on {worse}, not known on "
        f"{unknown}.",
        "zh": f"{sum(counts.values())} 项基准测试中，{last} 有 {better} 项更好，{worse} 项更差，{unknown} 项未定。",
    }


def _verdict(pair: Pair) -> Said:
    difference = pair.difference
    size = f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} … {100 * difference.high:+.1f})"
    more = f"; {pair.needed}" if pair.needed else ""
    further = ""
    if pair.needed and pair.needed.problems:
        size_shown = f"{100 * pair.needed.difference:.1f}"
        further = f"；再测约 {pair.needed.problems:,} 题可分辨 {size_shown} 个百分点"
    return {
        "en": f"{pair.verdict}: {size} points against {pair.first}, {difference.n:,} problems{more}",
        "zh": f"{_VERDICTS[pair.verdict]}：与 {pair.first} 相比 {size} 个百分点，{difference.n:,} 题{further}",
    }


def _cost(record: Mapping[str, Any]) -> Said:
    hardware = record["hardware"]
    where = hardware.get("gpu", hardware["cpu"])
    facts = [
        duration(record["train_seconds"]), f"{record['peak_memory_gib']:.2f} GiB", where,
        f"{record['tokens_per_second']:,.0f} tokens/s",
    ]  # fmt: skip
    return {"en": ", ".join(facts), "zh": "，".join(in_chinese(fact) or fact for fact in facts)}


def _next(folder: RunFolder, comparison: Comparison, tuned: Candidate) -> Iterator[Step]:
    """Suggest one or two steps: first what makes the scores trustworthy, then what follows from them."""
    run, model, settings = folder.path, tuned.settings["model"], tuned.settings
    counts = comparison.benchmarks.verdicts(tuned.name)
    pair = next((each for each in comparison.pairs if each.second == tuned.name), None)
    asked = ",".join(tuned.benchmarks()) or "quick"
    if tuned.summary is None and asked == "quick":
        yield _step("score it", "给它评分", "eval", run, "--suite", asked)
    if pair is None and not counts:
        why = "score its base model, to know whether it is better", "给基座模型评分，才知道是否更好"
        yield _step(*why, "eval", model, "--suite", asked)
        return
    if (cut := share_cut_off(tuned)) > _MUCH_CUT:
        yield _step(
            f"{cut:.0%} of its answers were cut off: give them more tokens, or an end to the thought",
            f"{cut:.0%} 的回答因长度被截断：增加 token 数，或限制思考长度",
            *("eval", run, settings.get("eval.data") or "DATA", "--max-tokens", 4096),
        )
    verdicts = {*([pair.verdict] if pair else []), *counts}
    formed = (tuned.summary or {}).get("format_rate", 1.0)
    if "worse" in verdicts:
        rate = settings.get("train.learning_rate")
        rates = f"{rate / 3:.0e},{rate / 10:.0e}" if isinstance(rate, float) else "1e-4,3e-5"
        why = "it got worse: try lower learning rates, or fewer epochs", "变差了：尝试更低的学习率，或更少的轮数"
        yield _step(*why, "sweep", folder.config, f"train.learning_rate={rates}", f"output={run}-rates")
    elif formed < _FEW_FORMED:
        epochs = 2 * float(settings.get("train.epochs") or 1)
        yield _step(
            f"only {formed:.0%} of its answers have the format: train longer, or on more rows",
            f"只有 {formed:.0%} 的回答格式正确：训练更久，或用更多数据",
            *("train", folder.config, f"train.epochs={epochs:g}", f"output={run}-longer"),
        )
    elif "better" in verdicts:
        yield _step("use it", "使用它", "serve", run)
    else:
        yield _step("ask more problems", "测更多题目", "eval", run, "--suite", "reasoning")


def share_cut_off(candidate: Candidate) -> float:
    """Return the share of a candidate's completions that were cut off, 0 if there are none."""
    cut = [line["outcome"] == "cut off" for line in candidate.samples]
    return sum(cut) / len(cut) if cut else 0.0


def _step(english: str, chinese: str, *words: object) -> Step:
    return Step({"en": english, "zh": chinese}, shlex.join(["thinktune", *map(str, words)]))


def facts_of(record: dict[str, Any]) -> dict[str, str]:
    """Put run.json in words, for the head of the page."""
    share = record["trainable_parameters"] / record["parameters"]
    hardware = record["hardware"]
    return {
        "base model": record["model"],
        "parameters trained": f"{record['trainable_parameters']:,} of {record['parameters']:,} ({share:.2%})",
        "steps": f"{record['steps']:,} ({record['epochs']:.2f} epochs)",
        "tokens": f"{record['tokens']:,}, {record['trained_tokens']:,} of them trained",
        "speed": f"{record['tokens_per_second']:,.0f} tokens/s",
        "training time": duration(record["train_seconds"]),
        "peak memory": f"{record['peak_memory_gib']:.2f} GiB",
        "final loss": f"{record['final_loss']:.4f}",
        **_learnt(record),
        "hardware": f"{hardware.get('gpu', hardware['cpu'])}, {record['dtype']}",
        "seed": str(record["seed"]),
        "system text": record["system"] or "none",
    }


def _learnt(record: dict[str, Any]) -> dict[str, str]:
    """Put in words how many tokens are predicted right, and which checkpoint was kept."""
    found = {}
    if "final_token_accuracy" in record:
        found["token accuracy"] = f"{record['final_token_accuracy']:.2%}"
    if best := record.get("best"):
        ended = ", where training was stopped early" if best["stopped_early"] else ""
        found["checkpoint kept"] = f"the best, of step {best['step']} of {record['steps']:,}{ended}"
    return found


def duration(seconds: float) -> str:
    """Write seconds in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = zip((hours, minutes, rest), ("h", "min", "s"), strict=True)
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"
