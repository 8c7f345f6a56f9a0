"""A user's scorer: a function, named `module:function`, that says whether an answer is right.

def within_a_percent(answer: str, gold: dict) -> bool:
    return abs(float(answer) - float(gold["reference"])) <= 0.01 * abs(float(gold["reference"]))
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

import numpy

from thinktune import tags
from thinktune.errors import ConfigError
from thinktune.plugins import load_function
from thinktune.scoring.base import TAIL, Score, Scorer, Verdict, format_outcome, score_of

logger = logging.getLogger(__name__)


def load_scorer(reference: str) -> Scorer:
    """Make a scorer of a user's function.

    The function gets the answer without its tags and the gold record. It is called from several threads. The answer of
    a completion that is not well-formed, which counts leniently, is the text after the thought. An exception makes
    the outcome "error": an answer that is not right, with a note. The first one is logged as a warning.

    Raises:
        ConfigError: there is no such function; on scoring, it returned neither True nor False.
    """
    function = load_function(reference, "--scorer")
    failures = itertools.count()  # of all threads

    def judge(answer: str, gold: Mapping[str, Any]) -> Verdict:
        try:
            right = function(answer, gold)
        except Exception as error:  # noqa: BLE001 - a user's code on a model's text: the other answers are scored
            note = f"{type(error).__name__}: {error}"
            if next(failures) == 0:
                logger.warning(f"--scorer: {reference} failed on an answer, which counts as not right: {note}")
            return Verdict(False, note, failed=True)
        if not isinstance(right, (bool, numpy.bool_)):
            raise ConfigError(f"--scorer: {reference} returned {right!r}", hint="return True or False")
        return Verdict(bool(right))

    def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
        outcome = format_outcome(text, finish_reason)
        if outcome == "error":
            return Score(False, 0.0, "error", None, False, reference)
        answer = tags.parse(text).answer or text.rpartition("</think>")[2].strip()[-TAIL:]
        return score_of(judge(answer, gold), outcome, answer, reference)

    return score
