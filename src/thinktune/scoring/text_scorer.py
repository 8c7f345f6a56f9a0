"""Free text: its similarity to a reference, BLEU and chrF as sacrebleu computes them. There is no right or wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from thinktune import tags
from thinktune.config import Sampling
from thinktune.errors import MissingExtra
from thinktune.scoring.base import TAIL, Score, Task, format_outcome, reference_fault, reference_of

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    """Score by sentence chrF, from 0 to 1: sentence BLEU is zero for most sentences.

    Raises:
        MissingExtra: sacrebleu is not installed.
    """
    outcome = format_outcome(text, finish_reason)
    if fault := reference_fault(gold):
        return Score(None, None, outcome or "not scored", None, None, "thinktune format 1", fault)
    if outcome is not None:
        return Score(None, 0.0, outcome, None, None, scorer_name())
    answer = tags.parse(text).answer or ""
    note = f"only the first {TAIL} characters are measured" if len(answer) > TAIL else None
    value = similarity([answer], [reference_of(gold)])["chrf"] / 100
    return Score(None, value, "measured", answer, None, scorer_name(), note)


def similarity(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute BLEU and chrF of a corpus, each from 0 to 100.

    BLEU sees words, and Chinese has none without being tokenised as Chinese: with the usual tokenizer it is 0. The
    Chinese one leaves other scripts to the usual rules, so that it serves mixed corpora too.

    Raises:
        MissingExtra: sacrebleu is not installed.
    """
    sacrebleu = _sacrebleu()
    answers = [answer[:TAIL] for answer in answers]
    tokenize = "zh" if any(map(_HAN.search, references)) else "13a"
    bleu = sacrebleu.corpus_bleu(answers, [list(references)], tokenize=tokenize)
    return {"bleu": bleu.score, "chrf": sacrebleu.corpus_chrf(answers, [list(references)]).score}


@cache
def scorer_name() -> str:
    _sacrebleu()
    return f"chrF by sacrebleu {version('sacrebleu')}"


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise MissingExtra(
            "free text is measured by sacrebleu, which is not installed", hint="pip install 'thinktune[eval]'"
        ) from None
    return sacrebleu


def metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Measure the samples that have a reference as one corpus."""
    compared = [line for line in lines if line["reference"] is not None]
    if not compared:
        return {}
    return similarity([line["extracted"] or "" for line in compared], [reference_of(line) for line in compared])


TASK = Task("generic-generate", Sampling(temperature=0.3, top_p=0.9, max_tokens=1024), score, metrics)
