"""The tab for blind comparison: two answers, no names, a key for each verdict."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import gradio as gr

from thinktune.config import SEED
from thinktune.errors import ThinktuneError, UsageError
from thinktune.evaluation.ratings import Verdict
from thinktune.evaluation.significance import Rate
from thinktune.files import write_text
from thinktune.inference.batch_file import BUILTIN, read_batch_file
from thinktune.studio.events import QUIET, STREAMED, ending_in_silence, fill
from thinktune.studio.formulas import LATEX
from thinktune.studio.markdown import plain, reply
from thinktune.studio.run_view import table
from thinktune.studio.state import Studio, download
from thinktune.studio.study import (
    Pair,
    Study,
    finished,
    names,
    new_folder,
    study_of_models,
    study_of_scores,
    throw_away,
)
from thinktune.studio.translations import Words, label

_VERDICTS: dict[str, Verdict] = {
    "left": "first", "right": "second", "both_good": "both good", "both_bad": "both bad",
}  # fmt: skip
_TAKE_COMMENT = """(rater, study, ...rest) => {
    const box = document.querySelector("#rate-comment textarea, #rate-comment input");
    if (rater.trim() && study && box) {
        box.value = "";
        box.dispatchEvent(new Event("input", {bubbles: true}));
    }
    return [rater, study, ...rest];
}"""
"""Empties the box at once: the comment goes with its verdict, and what is typed from now on is on the next pair."""
_LOOK_SECONDS = 0.5
_MOST_COMMENT = 2000  # characters


@dataclass(frozen=True)
class _View:
    """What a rater wants to see of a pair, and the pairs put off."""

    thinking: bool
    reference: bool
    skipped: list[Any]


class RateTab:
    """Builds the tab within the running `gr.Blocks`, and answers its events.

    The session keeps the pair that is shown, and never the sides of its models: the browser does not learn them.
    """

    def __init__(self, studio: Studio, rater_kept: gr.BrowserState) -> None:
        self._studio = studio
        self.rater_kept = rater_kept
        self._build()

    @property
    def _folder(self) -> Path:
        return self._studio.folder / "studies"

    def _build(self) -> None:
        found = names(self._folder)
        self.shown = gr.State(None)  # id of the question and both models, on the server
        self.skipped = gr.State([])  # the pairs that the rater has put off, as `shown`
        self.explained = gr.Markdown(label("explain_study"), elem_id="rate-explained", visible=not found)
        with gr.Row(elem_id="rate-setup"):
            self.rater = gr.Textbox(label=label("rater"), max_length=60, elem_id="rate-rater")
            self.study = gr.Dropdown(
                found, value=found[0] if found else None, label=label("study"), elem_id="rate-study"
            )
            with gr.Column(min_width=160, scale=0, elem_id="rate-shown"):
                self.thinking = gr.Checkbox(
                    False, label=label("show_thinking"), elem_id="rate-thinking", container=False
                )
                self.with_reference = gr.Checkbox(
                    False, label=label("show_reference"), elem_id="rate-with-reference", container=False
                )
            self.begin = gr.Button(label("begin"), variant="primary", elem_id="rate-begin", min_width=170, scale=0)
            self.delete = gr.Button(
                label("delete_study"), elem_id="rate-delete", elem_classes="icon quiet trash", size="sm", scale=0
            )
        with gr.Column(visible=False, elem_id="rate-panel") as self.panel:
            self.prompt = gr.Markdown(elem_id="rate-prompt", latex_delimiters=[], container=True)
            self.reference = gr.Markdown(elem_id="rate-reference", latex_delimiters=LATEX)
            with gr.Row(elem_id="rate-pair"):
                self.left = self._answer("left_answer", "rate-left-answer")
                self.right = self._answer("right_answer", "rate-right-answer")
        with gr.Column(elem_id="rate-bar"):
            with gr.Row(visible=False, elem_id="rate-verdicts") as self.verdicts:
                self.buttons = {
                    key: gr.Button(label(key), elem_id=f"rate-{key.replace('_', '-')}", min_width=120)
                    for key in _VERDICTS
                }
            with gr.Row(elem_id="rate-below"):
                self.progress = gr.Markdown(elem_id="rate-progress", latex_delimiters=[])
                self.comment = gr.Textbox(
                    label=label("comment"), max_length=_MOST_COMMENT, elem_id="rate-comment", visible=False,
                    placeholder=label("comment"), show_label=False, container=False, min_width=160,
                )  # fmt: skip
                self.undo = gr.Button(
                    label("undo"), elem_id="rate-undo", elem_classes="icon quiet again", size="sm", scale=0
                )
                self.skip = gr.Button(
                    label("skip"), elem_id="rate-skip", elem_classes="icon quiet next", size="sm", scale=0
                )
        with gr.Accordion(label("results"), open=False, elem_id="rate-results"):
            self.show_results = gr.Button(label("show_results"), elem_id="rate-show-results")
            self.results = gr.HTML(elem_id="rate-table")
            self.count = gr.Markdown(elem_id="rate-count")
            self.file = gr.File(
                label=label("ratings_file"), interactive=False, visible=False, height=90, elem_id="rate-file"
            )
        self._build_preparation()
        self._connect()

    def _answer(self, text: str, name: str) -> gr.Chatbot:
        return gr.Chatbot(
            label=label(text), elem_id=name, height=420, latex_delimiters=LATEX, sanitize_html=True, allow_tags=False,
            buttons=[], min_width=280, autoscroll=False,
        )  # fmt: skip

    def _build_preparation(self) -> None:
        pair = [model for model in self._studio.pool.pair() if model]
        models = pair if len(pair) > 1 else self._studio.pool.names()[:2]
        with gr.Accordion(label("new_study"), open=False, elem_id="rate-new"):
            with gr.Row():
                self.models = gr.Dropdown(
                    self._studio.pool.choices(), value=models, multiselect=True, label=label("study_models"),
                    elem_id="rate-models",
                )  # fmt: skip
                self.suggested = gr.State(suggested := self.suggest(models))
                self.name = gr.Textbox(suggested, label=label("study_name"), max_length=64, elem_id="rate-name")
                self.seed = gr.Number(SEED, precision=0, label=label("seed"))
            self.from_scores = gr.Checkbox(False, label=label("from_scores"), elem_id="rate-from-scores")
            self.questions = gr.File(
                label=label("questions"), file_types=[".jsonl", ".json", ".txt"], height=120, elem_id="rate-questions"
            )
            gr.Markdown(label("no_file"))
            with gr.Row():
                self.prepare = gr.Button(label("make_study"), elem_id="rate-prepare")
                self.stop = gr.Button(label("stop"), variant="stop", elem_id="rate-stop")
            self.prepared = gr.Markdown(elem_id="rate-prepared", latex_delimiters=[])

    def _connect(self) -> None:
        pair = [
            self.progress, self.panel, self.verdicts, self.prompt, self.reference, self.left, self.right, self.comment,
            self.shown,
        ]  # fmt: skip
        asked = [self.rater, self.study, self.thinking, self.with_reference, self.skipped]
        self.begin.click(self.show_next, asked, pair, js=_TAKE_COMMENT, **QUIET)
        self.begin.click(lambda rater: {"name": rater}, self.rater, self.rater_kept, **QUIET)
        self.begin.click(lambda: [], None, self.skipped, **QUIET)
        for shown in (self.thinking, self.with_reference):
            shown.input(self.show_again, asked, pair, **QUIET)
        self.skip.click(self.put_off, [self.skipped, self.shown], self.skipped, **QUIET).then(
            self.show_next, asked, pair, js=_TAKE_COMMENT, **QUIET
        )
        self.delete.click(self.delete_study, self.study, [self.study, self.explained, *pair], **QUIET)
        fill(
            self.models.change, self._suggest_unless_named, [self.models, self.name, self.suggested], [self.name],
            [self.suggested], **QUIET,
        )  # fmt: skip
        for key, button in self.buttons.items():
            rate = self._rater_of(_VERDICTS[key])
            button.click(rate, [*asked, self.comment, self.shown], pair, js=_TAKE_COMMENT, **QUIET)
        self.undo.click(self.take_back, asked, pair, **QUIET)
        self.show_results.click(self.tell_results, self.study, [self.results, self.count, self.file], **QUIET)
        making = [self.name, self.models, self.questions, self.seed, self.from_scores]
        self.prepare.click(self.make, making, [self.prepared, self.study, self.explained], **STREAMED)
        self.stop.click(self.stop_making, None, None, **QUIET)

    def show(self, kept: Any) -> tuple[Any, ...]:
        """Fill the tab when the page opens. Boxes: rater; outputs: study, models, explanation."""
        found = names(self._folder)
        models = self._studio.pool.choices()
        rater = kept.get("name") if isinstance(kept, dict) else None
        return (
            [str(rater) if rater else None],
            gr.update(choices=found),
            gr.update(choices=models),
            gr.update(visible=not found),
        )

    def suggest(self, models: list[str]) -> str:
        """Return a name for a study of these models that is not taken."""
        short = [re.sub(r"[^\w.-]+", "-", self._studio.pool.shown(model).rpartition(":")[2])[-24:] for model in models]
        name = " vs ".join(short[:2]).strip(" .-") or "study"
        taken = names(self._folder)
        return next(each for each in (name, *(f"{name} {n}" for n in range(2, 1000))) if each not in taken)

    def _suggest_unless_named(
        self, _: gr.Request, models: list[str], name: str, suggested: str
    ) -> tuple[list[str | None], str]:
        """Suggest a name, and remember it; one that a person has given stays."""
        new = self.suggest(models)
        return [new if name in ("", suggested) else None], new

    def put_off(self, skipped: list[Any], shown: Any) -> list[Any]:
        """Put the pair that is shown behind all others."""
        return [*[each for each in skipped if each != shown], shown] if shown else skipped

    def delete_study(self, study: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Take a study off the list. Its folder is moved to `studio/deleted`: ratings are people's work."""
        if study:
            throw_away(self._open(study).folder)
        left = names(self._folder)
        found = gr.update(choices=left, value=left[0] if left else None)
        return found, gr.update(visible=not left), *_nothing("")

    def show_next(
        self, rater: str, study: str | None, thinking: bool, reference: bool, skipped: list[Any], request: gr.Request
    ) -> tuple[Any, ...]:
        words = Words(request)
        if not rater.strip() or not study:
            return _nothing(words("name_yourself"))
        return self._next(self._open(study), rater.strip(), _View(thinking, reference, skipped), words)

    def show_again(
        self, rater: str, study: str | None, thinking: bool, reference: bool, skipped: list[Any], request: gr.Request
    ) -> tuple[Any, ...]:
        """Show the pair with or without thoughts and reference, if there is one."""
        if not rater.strip() or not study:
            return tuple(gr.skip() for _ in _nothing(""))
        return self.show_next(rater, study, thinking, reference, skipped, request)

    def take_back(
        self, rater: str, study: str | None, thinking: bool, reference: bool, skipped: list[Any], request: gr.Request
    ) -> tuple[Any, ...]:
        """Remove the rater's last rating, and show its pair again."""
        words = Words(request)
        if not rater.strip() or not study:
            return (words("name_yourself"), *[gr.skip()] * 8)
        opened = self._open(study)
        if opened.ratings.take_back(rater.strip()) is None:
            return (plain(words("nothing_to_undo", rater=rater.strip())), *[gr.skip()] * 8)
        return self._next(opened, rater.strip(), _View(thinking, reference, skipped), words)

    def _rater_of(self, verdict: Verdict) -> Any:
        def rate(
            rater: str, study: str | None, thinking: bool, reference: bool, skipped: list[Any], comment: str,
            shown: Any, request: gr.Request,
        ) -> tuple[Any, ...]:  # fmt: skip
            words = Words(request)
            if not shown or not study or not rater.strip():
                return (words("name_yourself"), *[gr.skip()] * 8)
            opened = self._open(study)
            item, left, right = shown
            question = next(each for each in opened.questions if each.id == item)
            opened.rate(rater.strip(), Pair(question, left, right), verdict, comment[:_MOST_COMMENT])
            return self._next(opened, rater.strip(), _View(thinking, reference, skipped), words)

        return rate

    def _open(self, name: str) -> Study:
        if name not in names(self._folder):
            raise gr.Error("there is no such study")
        return Study(self._folder / name)

    def _next(self, study: Study, rater: str, view: _View, words: Words) -> tuple[Any, ...]:
        pair, done, total = study.next(rater, [tuple(each) for each in view.skipped])
        if pair is None:
            return _nothing(plain(words("all_rated", rater=rater)))
        text = plain(words("progress", done=done, total=total, rater=rater))
        sides = [_shown(pair.question.answers[model], view.thinking, words) for model in (pair.left, pair.right)]
        reference = pair.question.reference or words("no_reference")
        told = plain(words("reference_is", reference=reference), "reference") if view.reference else ""
        seen = gr.update(visible=True)
        shown = (pair.question.id, pair.left, pair.right)
        return text, seen, seen, plain(pair.question.prompt), told, *sides, seen, shown

    def tell_results(self, name: str | None, request: gr.Request) -> tuple[Any, ...]:
        words = Words(request)
        none = "", words("no_ratings"), gr.update(visible=False)
        if not name:
            return none
        study = self._open(name)
        results = study.results()
        if not results["ratings"]:
            return none
        rows = [[words("win_rate", model=one, other=two), _rate(rate, words)] for one, two, rate in results["wins"]]
        for model, strength in sorted(results["strengths"].items(), key=lambda item: -item[1]):
            rows.append([words("strength", model=model), f"{strength:+.2f}"])
        alpha = results["raters_agree"]
        rows.append([words("raters_agree"), words("too_few") if alpha is None else f"{alpha:.2f}"])
        rows.append([words("scores_agree"), _rate(results["scores_agree"], words)])
        count = words("count_ratings", count=results["ratings"], raters=results["raters"])
        if results["old_display"]:
            count = f"{count}; {words('old_display', count=results['old_display'])}"
        return table([words("what"), words("results")], rows), count, gr.update(value=_download(study), visible=True)

    @ending_in_silence(3)
    def make(
        self, name: str, models: list[str], file: str | None, seed: int, from_scores: bool, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Prepare a study, reporting its progress."""
        words = Words(request)
        session = f"study {request.session_hash}"
        handle = self._studio.sessions.open(session)
        news: SimpleQueue[Study | ThinktuneError] = SimpleQueue()
        asking: list[str] = []
        try:
            folder = new_folder(self._folder, name)
            if unknown := set(models) - set(self._studio.pool.names()):
                raise UsageError(f"the studio has no model {min(unknown)!r}")
            runs = [Path(model) for model in models if Path(model).is_dir()]
            total = 0 if from_scores else len(read_batch_file(file or BUILTIN))

            def work() -> None:
                try:
                    news.put(
                        study_of_scores(folder, runs, seed=seed)
                        if from_scores
                        else study_of_models(
                            folder, self._studio.pool, models, file, seed=seed, handle=handle, tell=asking.append
                        )
                    )
                except ThinktuneError as error:
                    news.put(error)

            Thread(target=work, daemon=True).start()
            while True:
                try:
                    outcome = news.get(timeout=_LOOK_SECONDS)
                    break
                except Empty:
                    if asking:
                        done = finished(folder, len(asking) - 1)
                        facts = words("preparing", model=asking[-1], done=done, total=total)
                        yield plain(facts, "said busy"), gr.skip(), gr.skip()
            if isinstance(outcome, ThinktuneError):
                raise outcome
            found = names(self._folder)
            chosen = gr.update(choices=found, value=folder.name)
            yield words("prepared", count=len(outcome.questions)), chosen, gr.update(visible=False)
        except ThinktuneError as error:
            yield plain(words.problem(error)), gr.skip(), gr.skip()
        finally:
            handle.stop()
            self._studio.sessions.close(session, handle)

    def stop_making(self, request: gr.Request) -> None:
        self._studio.sessions.stop(f"study {request.session_hash}")


def _nothing(text: str) -> tuple[Any, ...]:
    """Return the outputs of a tab without a pair, and a text."""
    hidden = gr.update(visible=False)
    return text, hidden, hidden, "", "", [], [], hidden, None


def _shown(text: str, thinking: bool, words: Words) -> list[dict[str, Any]]:
    answer = {"text": text, "state": "done", "think_tokens": 0, "think_seconds": 0.0}
    found = list(reply(answer, words, fold_open=False))
    # Of a model that has thought and said nothing, the thought is all there is to be judged.
    messages = [message for message in found if thinking or "metadata" not in message] or found
    for message in messages:
        if "metadata" in message:  # lengths and times would tell the models apart
            message["metadata"] = {"title": words("show_thinking"), "status": "done"}
    return messages or [{"role": "assistant", "content": plain(words("no_answer"), "remark")}]


def _rate(rate: Rate | None, words: Words) -> str:
    return words("too_few") if rate is None else str(rate)


def _download(study: Study) -> str:
    file = download(f"{study.folder.name}-ratings.jsonl")
    write_text(file, study.export())
    return str(file)
