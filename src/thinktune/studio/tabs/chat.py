"""The tab for talking with models: one, or two side by side."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from thinktune.config import SEED, Ask, Sampling
from thinktune.errors import ConfigError, ThinktuneError
from thinktune.inference.profiles import PROFILES
from thinktune.run_folder import RunFolder
from thinktune.studio.answers import Answer, read_answers
from thinktune.studio.chat_scripts import BEGIN_ANEW, GIVE_BACK, SAVE, TAKE
from thinktune.studio.conversations import (
    history,
    id_of,
    listed,
    new_id,
    new_turn,
    side_shown,
    titles,
    turns_of,
    with_conversation,
    without_side,
)
from thinktune.studio.events import QUIET, STREAMED, ending_in_silence, fill
from thinktune.studio.formulas import LATEX
from thinktune.studio.markdown import plain
from thinktune.studio.state import Studio
from thinktune.studio.translations import Words, label
from thinktune.studio.waiting_questions import Line, WaitingQuestions

_ASK = Ask().sampling
_FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "think_budget", "seed")
_SECONDS_A_SESSION = 0.05  # between two updates of a page; with more sessions fewer, which leaves the engine the cores
_SAVE_SECONDS = 2.0  # between two times that an answer is kept while it is written, for a page that is reloaded then
_MOST_QUESTION = 100_000  # characters
_EXAMPLES = 3
_STATUS = {"running": "answering", "done": "answered", "stopped": "halted", "error": "broken"}


class ChatTab:
    """Builds the tab within the running `gr.Blocks`, and answers its events. Conversations: see `conversations`."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._waiting = WaitingQuestions()
        self._build()

    def _build(self) -> None:
        self.conversation = gr.BrowserState({"turns": []}, storage_key="thinktune-chat", secret="thinktune")
        self.kept = gr.BrowserState([], storage_key="thinktune-chats", secret="thinktune")
        with gr.Row(elem_id="chat-room"):
            with gr.Column(elem_id="chat-side", scale=0, min_width=230):
                self.new = gr.Button(label("new"), elem_id="chat-new", elem_classes="icon plus", size="md")
                self.list = gr.Radio([], label=label("conversations"), elem_id="chat-list")
                self.delete = gr.Button(
                    label("delete_conversation"), elem_id="chat-delete", elem_classes="icon trash", size="sm"
                )
                self.sampling = self._build_sampling()
            with gr.Column(elem_id="chat-main"):
                self._build_models()
                with gr.Row(elem_id="chat-panes"):
                    self.left = self._chatbot("chat-left", visible=True)
                    self.right = self._chatbot("chat-right", visible=bool(self._pair[1]))
                with gr.Row(elem_id="chat-examples"):
                    self.examples = [
                        gr.Button(text, elem_classes="example", size="md") for text in self._examples_of(self._pair[0])
                    ]
                self._build_composer()
        self._connect()

    def _build_models(self) -> None:
        names = self._studio.pool.choices()
        self._pair = first, second = self._studio.pool.pair()
        with gr.Row(elem_id="chat-models"):
            # Above each other on a phone: names of models are long.
            self.first = gr.Dropdown(names, value=first, label=label("model"), elem_id="chat-model", min_width=160)
            self.second = gr.Dropdown(
                [(label("none"), ""), *names], value=second, label=label("second_model"), elem_id="chat-second-model",
                min_width=160,
            )  # fmt: skip

    def _build_composer(self) -> None:
        with gr.Column(elem_id="chat-composer"):
            with gr.Row(elem_id="chat-box"):
                self.question = gr.Textbox(
                    label=label("question"), show_label=False, container=False, placeholder=label("question_hint"),
                    lines=1, max_lines=8, elem_id="chat-question", max_length=_MOST_QUESTION, autofocus=True, scale=1,
                )  # fmt: skip
                self.returned = gr.JSON({"text": ""}, visible=False)
                self.send = gr.Button(
                    label("send"), variant="primary", elem_id="chat-send", elem_classes="icon send", scale=0,
                    min_width=104,
                )  # fmt: skip
                self.stop = gr.Button(
                    label("stop"), variant="stop", elem_id="chat-stop", elem_classes="icon stop", scale=0, min_width=104
                )
            with gr.Row(elem_id="chat-actions"):
                self.status = gr.Markdown(elem_id="chat-status", latex_delimiters=[])
                self.again = self._action("again", "again")
                self.edit = self._action("edit", "pen")
                self.export = self._action("export", "save")

    def _action(self, name: str, icon: str) -> gr.Button:
        return gr.Button(
            label(name), elem_id=f"chat-{name}", elem_classes=f"icon quiet {icon}", size="sm", scale=0, min_width=40
        )

    def _chatbot(self, name: str, *, visible: bool) -> gr.Chatbot:
        return gr.Chatbot(
            elem_id=name, show_label=False, height="100%", latex_delimiters=LATEX, sanitize_html=True, allow_tags=False,
            buttons=["copy"], visible=visible, min_width=240,
        )  # fmt: skip

    def _build_sampling(self) -> list[Any]:
        with gr.Accordion(label("sampling"), open=False, elem_id="chat-sampling"):
            self.profile = gr.Dropdown(
                ["ask", *(f"{name}: {kind}" for name, kinds in PROFILES.items() for kind in kinds)],
                value="ask", label=label("profile"),
            )  # fmt: skip
            self.tell_format = gr.Checkbox(False, label=label("tell_format"))
            return [
                gr.Slider(0, 2, _ASK.temperature, step=0.05, label=label("temperature")),
                gr.Slider(0.05, 1, _ASK.top_p, step=0.05, label=label("top_p")),
                gr.Number(_ASK.top_k, precision=0, minimum=0, label=label("top_k")),
                gr.Slider(0.5, 2, _ASK.repetition_penalty, step=0.05, label=label("repetition_penalty")),
                gr.Number(
                    _ASK.max_tokens, precision=0, minimum=1, label=label("max_tokens"), elem_id="chat-max-tokens"
                ),
                gr.Number(0, precision=0, minimum=0, label=label("think_budget"), elem_id="chat-think-budget"),
                gr.Number(SEED, precision=0, label=label("seed")),
            ]

    def _connect(self) -> None:
        asked = [self.conversation, self.first, self.second, self.tell_format, *self.sampling]
        shown = [self.returned, self.conversation, self.left, self.right, self.status]
        keep = [self.keep, [self.conversation, self.kept], [self.kept, self.list]]
        for event, question in (
            (self.question.submit, self.question),
            (self.send.click, self.question),
            *((example.click, example) for example in self.examples),
        ):
            # Several at once: those that come while an answer is written wait in line.
            event(self.ask, [question, *asked], shown, trigger_mode="multiple", js=TAKE, **STREAMED).then(
                *keep, **QUIET
            )
        self.again.click(self.ask_again, asked, shown, **STREAMED).then(*keep, **QUIET)
        self.stop.click(self.stop_answers, None, None, **QUIET)
        self.returned.change(None, self.returned, None, js=GIVE_BACK, api_visibility="private")
        self.edit.click(self.edit_question, self.conversation, shown, **QUIET)
        opened = [*shown[1:], self.list]
        self.new.click(None, None, opened, js=BEGIN_ANEW, api_visibility="private")
        self.new.click(self.forget, None, opened, **QUIET)
        self.list.input(self.open, [self.list, self.kept], shown[1:], **QUIET)
        self.delete.click(self.delete_conversation, [self.conversation, self.kept], [*opened, self.kept], **QUIET)
        told = [self.conversation, self.left, self.right, self.status]
        self.left.clear(self.forget_left, [self.conversation, self.second], told, **QUIET).then(*keep, **QUIET)
        self.right.clear(self.forget_right, [self.conversation, self.second], told, **QUIET).then(*keep, **QUIET)
        self.export.click(None, self.conversation, None, js=SAVE, api_visibility="private")
        self.first.change(self._examples_of, self.first, self.examples, **QUIET)
        self.second.change(lambda name: gr.update(visible=bool(name)), self.second, self.right, **QUIET)
        fill(self.profile.change, lambda _, name: (self.take_profile(name),), [self.profile], self.sampling, **QUIET)

    @property
    def filled(self) -> list[Any]:
        """The outputs of `show`."""
        return [self.left, self.right, self.first, self.second, self.list, *self.examples]

    def show(self, conversation: Any, kept: Any, request: gr.Request) -> tuple[Any, ...]:
        """Fill the tab when the page opens: the conversation so far and the others, and the present models."""
        turns = turns_of(conversation)
        names = self._studio.pool.names()
        words = Words(request)
        pair = self._studio.pool.pair()
        if turns:
            first, second = (answer["model"] if answer else "" for answer in turns[-1]["answers"])
        else:
            first, second = pair if pair != self._pair else ("", "")
        # A choice that is not told is left as it is: the person may have been quicker.
        chosen: dict[str, Any] = {"value": first} if first in names else {}
        opened: dict[str, Any] = {"visible": bool(second)} if turns or second else {}
        beside: dict[str, Any] = {"value": second} if second in names or (turns and not second) else {}
        left, right = ("welcome_tuned", "welcome_base") if pair[1] else ("welcome_alone", "welcome_alone")
        return (
            gr.update(value=side_shown(turns, 0, words), placeholder=f"## {words('welcome')}\n\n{words(left)}"),
            gr.update(value=side_shown(turns, 1, words), placeholder=words(right), **opened),
            gr.update(choices=self._studio.pool.choices(), **chosen),
            gr.update(choices=[(words("none"), ""), *self._studio.pool.choices()], **beside),
            gr.update(choices=titles(kept), value=_chosen(conversation, kept)),
            *self._examples_of(first or pair[0]),
        )

    def _examples_of(self, model: str) -> list[str]:
        """Return example questions: those that a run's config asks, else those of any config."""
        questions = Ask().questions
        if RunFolder(Path(model)).config.is_file() and model in self._studio.pool.names():
            with suppress(ThinktuneError):  # a damaged config: the run's page tells of it
                questions = RunFolder(Path(model)).read_config().ask.questions or questions
        return (questions * _EXAMPLES)[:_EXAMPLES]

    @ending_in_silence(5)
    def ask(self, request: gr.Request, question: str, conversation: Any, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Answer a new question, or let it wait until those before it are answered."""
        if not question.strip():
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), Words(request)("no_question")
            return
        session = str(request.session_hash)
        line = self._waiting.add(session, question[:_MOST_QUESTION], 0, settings)
        if line is not None:
            yield from self._answer_line(line, conversation, turns_of(conversation), request)

    @ending_in_silence(5)
    def ask_again(self, request: gr.Request, conversation: Any, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Answer the last question anew, with other random numbers."""
        turns = turns_of(conversation)
        session = str(request.session_hash)
        if not turns or self._waiting.is_busy(session):
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip() if turns else Words(request)("no_question")
            return
        last = turns.pop()
        if line := self._waiting.add(session, last["question"], last["attempt"] + 1, settings):
            yield from self._answer_line(line, conversation, turns, request)

    def stop_answers(self, request: gr.Request) -> None:
        self._studio.sessions.stop(str(request.session_hash))

    def edit_question(self, conversation: Any, request: gr.Request) -> tuple[Any, ...]:
        """Take the last question back into the box, and forget its answers, also those in progress."""
        waited = self._drop(request)
        turns = turns_of(conversation)
        question = "\n".join([*([turns.pop()["question"]] if turns else []), *waited])
        words = Words(request)
        kept = {"id": id_of(conversation), "turns": turns}
        return _given_back(question), kept, side_shown(turns, 0, words), side_shown(turns, 1, words), ""

    def forget(self, request: gr.Request) -> tuple[Any, ...]:
        """Begin a new conversation, and stop the answers in progress; the list has the others."""
        self._drop(request)
        return {"turns": []}, [], [], "", gr.update(value=None)

    def open(self, chosen: str, kept: Any, request: gr.Request) -> tuple[Any, ...]:
        """Show another conversation of the list."""
        self._drop(request)
        words = Words(request)
        found: dict[str, Any] = next((each for each in listed(kept) if id_of(each) == chosen), {"turns": []})
        turns = turns_of(found)
        return found, side_shown(turns, 0, words), side_shown(turns, 1, words), ""

    def delete_conversation(self, conversation: Any, kept: Any, request: gr.Request) -> tuple[Any, ...]:
        self._drop(request)
        rest = [each for each in listed(kept) if id_of(each) != id_of(conversation)]
        return {"turns": []}, [], [], "", gr.update(choices=titles(rest), value=None), rest

    def keep(self, conversation: Any, kept: Any) -> tuple[Any, ...]:
        """Put the conversation into the list."""
        found = with_conversation(kept, conversation)
        return found, gr.update(choices=titles(found), value=_chosen(conversation, found))

    def forget_left(self, conversation: Any, second: str, request: gr.Request) -> tuple[Any, ...]:
        return self._forget_side(conversation, 0, second, request)

    def forget_right(self, conversation: Any, second: str, request: gr.Request) -> tuple[Any, ...]:
        return self._forget_side(conversation, 1, second, request)

    def _forget_side(self, conversation: Any, side: int, second: str, request: gr.Request) -> tuple[Any, ...]:
        self._drop(request)
        words = Words(request)
        turns = without_side(turns_of(conversation), side, both=bool(second))
        kept = {"id": id_of(conversation), "turns": turns}
        return kept, side_shown(turns, 0, words), side_shown(turns, 1, words), ""

    def _drop(self, request: gr.Request) -> list[str]:
        """End the answers in progress, of which nothing is to come back; return the questions that waited."""
        session = str(request.session_hash)
        self._studio.sessions.drop(session)
        return self._waiting.end(session)

    def leave(self, request: gr.Request) -> None:
        """End everything of a page that is closed."""
        self._waiting.end(str(request.session_hash))
        self.stop_answers(request)

    def take_profile(self, name: str) -> list[Any]:
        family, _, kind = name.partition(": ")
        sampling = _ASK if family == "ask" else PROFILES[family][kind]  # type: ignore[index]
        values = {**sampling.model_dump(), "think_budget": sampling.think_budget or 0, "seed": sampling.seed or SEED}
        return [values[field] for field in _FIELDS]

    def _answer_line(
        self, line: Line, conversation: Any, turns: list[dict[str, Any]], request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Answer one question after the other. After a stop, those that still wait go back into the box."""
        session = str(request.session_hash)
        identity = id_of(conversation) or new_id()
        try:
            while found := self._waiting.take(session, line):
                question, attempt, settings = found
                turns.append(new_turn(question, attempt))
                if not (yield from self._answer(identity, turns, line, request, *settings)):
                    if waited := self._waiting.end(session, line):
                        yield _given_back("\n".join(waited)), *[gr.skip()] * 4
                    return
        finally:
            self._waiting.end(session, line)

    def _answer(
        self, identity: str, turns: list[dict[str, Any]], line: Line, request: gr.Request,
        first: str, second: str, tell: bool, *sampling: Any,
    ) -> Generator[tuple[Any, ...], None, bool]:  # fmt: skip
        """Answer the last turn's question; return whether the next one is to be answered."""
        words = Words(request)
        models, last = [first, second] if second else [first], turns[-1]
        try:
            chosen = _sampling(sampling)
        except ConfigError as error:
            yield _given_back(last["question"]), gr.skip(), gr.skip(), gr.skip(), plain(words.problem(error))
            return False
        session = str(request.session_hash)
        handle = self._studio.sessions.open(session)
        told = [history(turns, side) for side in range(len(models))]
        kept = {"id": identity, "turns": turns}
        try:
            sides = side_shown(turns, 0, words), side_shown(turns, 1, words)
            yield gr.skip(), kept, *sides, plain("…", "said busy")
            name = f"ask {last['attempt']}" if last["attempt"] else "ask"
            pause = min(1.0, _SECONDS_A_SESSION * self._studio.sessions.active)
            answers = read_answers(
                self._studio.pool, models, told, chosen, handle, name=name, tell_format=tell, pause=pause
            )
            saved = time.monotonic()
            for state in answers:
                if not self._studio.sessions.holds(session, handle):
                    return False  # the conversation was ended meanwhile: nothing of it comes back
                last["answers"] = [each.as_dict() for each in state] + [None] * (2 - len(state))
                # Values that stay the same are told again: for each that is skipped, Gradio builds the component anew.
                shown = side_shown(turns, 0, words), side_shown(turns, 1, words)
                save: Any = gr.skip()
                if time.monotonic() - saved > _SAVE_SECONDS:
                    saved, save = time.monotonic(), kept
                yield gr.skip(), save, *shown, _status(state, self._studio.pool.loading, line, words)
            for answer in state:
                answer.verdict = self._verdict(last["question"], answer)
            last["answers"] = [each.as_dict() for each in state] + [None] * (2 - len(state))
            if self._studio.sessions.holds(session, handle):
                shown = side_shown(turns, 0, words), side_shown(turns, 1, words)
                rest = () if handle.stopped else line  # which goes back into the box then
                yield gr.skip(), kept, *shown, _status(state, None, rest, words)
            return not handle.stopped
        finally:
            handle.stop()
            self._studio.sessions.close(session, handle)

    def _verdict(self, question: str, answer: Answer) -> str:
        right = self._studio.known.is_right(question, answer.text) if answer.state == "done" else None
        return "" if right is None else "right" if right else "wrong"


def _given_back(text: str) -> dict[str, str]:
    """Return a text for the box, as something new each time: a change of it is what the page waits for."""
    return {"text": text, "id": new_id()}


def _chosen(conversation: Any, kept: Any) -> str | None:
    return next((id_of(each) for each in listed(kept) if id_of(each) == id_of(conversation)), None)


def _sampling(values: tuple[Any, ...]) -> Sampling:
    fields = {name: value for name, value in zip(_FIELDS, values, strict=True) if value is not None}
    return Sampling().changed(**{**fields, "think_budget": fields.get("think_budget") or None})


def _status(answers: list[Answer], loading: str | None, line: Sequence[Any], words: Words) -> str:
    parts = []
    for answer in answers:
        name = Path(answer.model).name or answer.model
        if answer.waiting and answer.state == "running":
            parts.append(words("waiting", model=name, place=answer.waiting))
        elif not answer.tokens and loading and answer.state == "running":
            parts.append(words("loading", name=loading))
        else:
            parts.append(words(_STATUS[answer.state], model=name, tokens=answer.tokens, seconds=answer.seconds))
    busy = any(answer.state == "running" for answer in answers) or bool(line)
    if line:
        parts.append(words("queued", count=len(line)))
    return plain(" · ".join(parts), "said busy" if busy else "said")
