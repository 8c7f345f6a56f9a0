"""The tab for talking with models: one, or two side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from thinktune.config import SEED, Ask, Sampling
from thinktune.errors import ConfigError
from thinktune.inference.profiles import PROFILES
from thinktune.studio.answers import Answer, read_answers
from thinktune.studio.formulas import LATEX
from thinktune.studio.markdown import messages, plain, without_half_tag
from thinktune.studio.state import Studio
from thinktune.studio.translations import Words, label

_ASK = Ask().sampling
_FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "think_budget", "seed")
_SECONDS_A_SESSION = 0.05  # between two updates of a page; with more sessions fewer, which leaves the engine the cores
_SAVE_SECONDS = 2.0  # between two times that an answer is kept while it is written, for a page that is reloaded then
_MOST_QUESTION = 100_000  # characters
_STATUS = {"running": "answering", "done": "answered", "stopped": "halted", "error": "broken"}
_SAVE = """(conversation) => {
    const blob = new Blob([JSON.stringify(conversation, null, 2)], {type: "application/json"});
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "conversation.json";
    link.click();
}"""


class ChatTab:
    """Builds the tab within the running `gr.Blocks`, and answers its events.

    A conversation is `{"turns": [{"question", "answers": [answer of the first model, of the second or None],
    "attempt"}]}`. It is kept in the browser: the server keeps no text of a person.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._build()

    def _build(self) -> None:
        names = self._studio.pool.names()
        self.conversation = gr.BrowserState({"turns": []}, storage_key="thinktune-chat", secret="thinktune")
        with gr.Row():
            # Above each other on a phone: names of models are long.
            self.first = gr.Dropdown(names, value=names[0], label=label("model"), elem_id="chat-model", min_width=260)
            self.second = gr.Dropdown(
                [(label("none"), ""), *names], value="", label=label("second_model"), elem_id="chat-second-model",
                min_width=260,
            )  # fmt: skip
        with gr.Row():
            self.left = self._chatbot("chat-left", visible=True)
            self.right = self._chatbot("chat-right", visible=False)
        self.status = gr.Markdown(elem_id="chat-status", latex_delimiters=[])
        self.question = gr.Textbox(
            label=label("question"), info=label("question_hint"), lines=1, max_lines=12, elem_id="chat-question",
            max_length=_MOST_QUESTION, autofocus=True,
        )  # fmt: skip
        with gr.Row():
            self.send = gr.Button(label("send"), variant="primary", elem_id="chat-send", min_width=130)
            self.stop = gr.Button(label("stop"), variant="stop", elem_id="chat-stop", min_width=130)
            self.again = gr.Button(label("again"), elem_id="chat-again", min_width=130)
            self.edit = gr.Button(label("edit"), elem_id="chat-edit", min_width=130)
            self.new = gr.Button(label("new"), elem_id="chat-new", min_width=130)
            self.export = gr.Button(label("export"), elem_id="chat-export", min_width=130)
        self.sampling = self._build_sampling()
        self._connect()

    def _chatbot(self, name: str, *, visible: bool) -> gr.Chatbot:
        return gr.Chatbot(
            elem_id=name, show_label=False, height="60vh", latex_delimiters=LATEX, sanitize_html=True, allow_tags=False,
            buttons=["copy"], visible=visible, min_width=280,
        )  # fmt: skip

    def _build_sampling(self) -> list[Any]:
        with gr.Accordion(label("sampling"), open=False, elem_id="chat-sampling"):
            with gr.Row():
                self.profile = gr.Dropdown(
                    ["ask", *(f"{name}: {kind}" for name, kinds in PROFILES.items() for kind in kinds)],
                    value="ask", label=label("profile"),
                )  # fmt: skip
                self.tell_format = gr.Checkbox(False, label=label("tell_format"))
            with gr.Row():
                controls = [
                    gr.Slider(0, 2, _ASK.temperature, step=0.05, label=label("temperature")),
                    gr.Slider(0.05, 1, _ASK.top_p, step=0.05, label=label("top_p")),
                    gr.Number(_ASK.top_k, precision=0, minimum=0, label=label("top_k")),
                    gr.Slider(0.5, 2, _ASK.repetition_penalty, step=0.05, label=label("repetition_penalty")),
                ]
            with gr.Row():
                controls += [
                    gr.Number(
                        _ASK.max_tokens, precision=0, minimum=1, label=label("max_tokens"), elem_id="chat-max-tokens"
                    ),
                    gr.Number(0, precision=0, minimum=0, label=label("think_budget"), elem_id="chat-think-budget"),
                    gr.Number(SEED, precision=0, label=label("seed")),
                ]
        return controls

    def _connect(self) -> None:
        asked = [self.conversation, self.first, self.second, self.tell_format, *self.sampling]
        shown = [self.question, self.conversation, self.left, self.right, self.status]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        own: dict[str, Any] = {**quiet, "concurrency_limit": None}
        self.question.submit(self.ask, [self.question, *asked], shown, **own)
        self.send.click(self.ask, [self.question, *asked], shown, **own)
        self.again.click(self.ask_again, asked, shown, **own)
        self.stop.click(self.stop_answers, None, None, queue=False, **quiet)
        self.edit.click(self.edit_question, self.conversation, shown, **own)
        self.new.click(self.forget, None, shown, **own)
        told = [self.conversation, self.left, self.right, self.status]
        self.left.clear(self.forget_left, [self.conversation, self.second], told, **own)
        self.right.clear(self.forget_right, [self.conversation, self.second], told, **own)
        self.export.click(None, self.conversation, None, js=_SAVE, api_visibility="private")
        self.second.change(lambda name: gr.update(visible=bool(name)), self.second, self.right, **own)
        self.profile.change(self.take_profile, self.profile, self.sampling, **own)

    def show(self, conversation: Any, request: gr.Request) -> tuple[Any, ...]:
        """Fill the tab when the page opens: the conversation so far, and the present models. Outputs: left, right, both
        lists of models."""
        turns = _turns(conversation)
        names = self._studio.pool.names()
        words = Words(request)
        answers = turns[-1]["answers"] if turns else [None, None]
        first, second = (answer and answer["model"] for answer in answers)
        # A choice that is not told is left as it is: the person may have been quicker.
        return (
            _side(turns, 0, words),
            gr.update(value=_side(turns, 1, words), visible=True) if second else gr.skip(),
            gr.update(choices=names, **({"value": first} if first in names else {})),
            gr.update(choices=[(words("none"), ""), *names], **({"value": second} if second in names else {})),
        )

    def ask(self, request: gr.Request, question: str, conversation: Any, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Answer a new question."""
        turns = _turns(conversation)
        if not question.strip():
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), Words(request)("no_question")
            return
        turns.append(
            {"question": question[:_MOST_QUESTION], "answers": [None, None], "gone": [False, False], "attempt": 0}
        )
        yield from self._answer(turns, request, *settings)

    def ask_again(self, request: gr.Request, conversation: Any, *settings: Any) -> Iterator[tuple[Any, ...]]:
        """Answer the last question anew, with other random numbers."""
        turns = _turns(conversation)
        if not turns:
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), Words(request)("no_question")
            return
        turns[-1] = {**turns[-1], "answers": [None, None], "gone": [False, False], "attempt": turns[-1]["attempt"] + 1}
        yield from self._answer(turns, request, *settings)

    def stop_answers(self, request: gr.Request) -> None:
        self._studio.sessions.stop(str(request.session_hash))

    def edit_question(self, conversation: Any, request: gr.Request) -> tuple[Any, ...]:
        """Take the last question back into the box, and forget its answers, also those in progress."""
        self._studio.sessions.drop(str(request.session_hash))
        turns = _turns(conversation)
        question = turns.pop()["question"] if turns else ""
        words = Words(request)
        return question, {"turns": turns}, _side(turns, 0, words), _side(turns, 1, words), ""

    def forget(self, request: gr.Request) -> tuple[Any, ...]:
        """Forget the whole conversation, and stop the answers in progress."""
        self._studio.sessions.drop(str(request.session_hash))
        return "", {"turns": []}, [], [], ""

    def forget_left(self, conversation: Any, second: str, request: gr.Request) -> tuple[Any, ...]:
        return self._forget_side(conversation, 0, second, request)

    def forget_right(self, conversation: Any, second: str, request: gr.Request) -> tuple[Any, ...]:
        return self._forget_side(conversation, 1, second, request)

    def _forget_side(self, conversation: Any, side: int, second: str, request: gr.Request) -> tuple[Any, ...]:
        """Forget one model's side of the conversation; the other's stays, if there is one."""
        self._studio.sessions.drop(str(request.session_hash))
        words = Words(request)
        turns = []
        for turn in _turns(conversation):
            answers, gone = list(turn["answers"]), list(turn["gone"])
            answers[side], gone[side] = None, True
            if second and not all(gone):
                turns.append({**turn, "answers": answers, "gone": gone})
        return {"turns": turns}, _side(turns, 0, words), _side(turns, 1, words), ""

    def take_profile(self, name: str) -> list[Any]:
        family, _, kind = name.partition(": ")
        sampling = _ASK if family == "ask" else PROFILES[family][kind]  # type: ignore[index]
        values = {**sampling.model_dump(), "think_budget": sampling.think_budget or 0, "seed": sampling.seed or SEED}
        return [values[field] for field in _FIELDS]

    def _answer(
        self, turns: list[dict[str, Any]], request: gr.Request, first: str, second: str, tell: bool, *sampling: Any
    ) -> Iterator[tuple[Any, ...]]:
        words = Words(request)
        models = [first, second] if second else [first]
        try:
            chosen = _sampling(sampling)
        except ConfigError as error:
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), plain(str(error))
            return
        last = turns[-1]
        session = str(request.session_hash)
        handle = self._studio.sessions.open(session)
        history = [_history(turns, side) for side in range(len(models))]
        try:
            yield "", {"turns": turns}, _side(turns, 0, words), _side(turns, 1, words), ""
            name = f"ask {last['attempt']}" if last["attempt"] else "ask"
            pause = min(1.0, _SECONDS_A_SESSION * self._studio.sessions.active)
            answers = read_answers(
                self._studio.pool, models, history, chosen, handle, name=name, tell_format=tell, pause=pause
            )
            saved = time.monotonic()
            for state in answers:
                if not self._studio.sessions.holds(session, handle):
                    return  # the conversation was ended meanwhile: nothing of it comes back
                last["answers"] = [each.as_dict() for each in state] + [None] * (2 - len(state))
                # Values that stay the same are told again: for each that is skipped, Gradio builds the component anew.
                told = _side(turns, 0, words), _side(turns, 1, words), _status(state, self._studio.pool.loading, words)
                kept: Any = gr.skip()
                if time.monotonic() - saved > _SAVE_SECONDS:
                    saved, kept = time.monotonic(), {"turns": turns}
                yield gr.skip(), kept, *told
            if self._studio.sessions.holds(session, handle):
                yield gr.skip(), {"turns": turns}, *told
        finally:
            handle.stop()
            self._studio.sessions.close(session, handle)


def _turns(conversation: Any) -> list[dict[str, Any]]:
    """Read the turns that a browser has kept; they may hold anything."""
    turns = conversation.get("turns") if isinstance(conversation, dict) else None
    return [_turn(turn) for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    answers = turn.get("answers")
    found = [_kept(answer) for answer in answers[:2]] if isinstance(answers, list) else []
    attempt, gone = turn.get("attempt"), turn.get("gone")
    return {
        "question": str(turn.get("question", "")),
        "answers": [*found, None, None][:2],
        "gone": [each is True for each in gone[:2]] if isinstance(gone, list) and len(gone) > 1 else [False, False],
        "attempt": attempt if isinstance(attempt, int) else 0,
    }


def _kept(answer: Any) -> dict[str, Any] | None:
    if not isinstance(answer, dict):
        return None
    blank = Answer("").as_dict()
    kept = {name: type(value)(answer.get(name, value)) for name, value in blank.items()}
    return {**kept, "state": "stopped" if kept["state"] == "running" else kept["state"]}


def _history(turns: list[dict[str, Any]], side: int) -> list[dict[str, str]]:
    """Return the conversation with one model, thoughts included, as it stands in training rows of several turns."""
    said = []
    for turn in turns[:-1]:
        answer = turn["answers"][side] or turn["answers"][0]
        text = _marked_stub(answer) if answer and not turn["gone"][side] else ""
        if text:
            said += [{"role": "user", "content": turn["question"]}, {"role": "assistant", "content": text}]
    return [*said, {"role": "user", "content": turns[-1]["question"]}]


def _marked_stub(answer: dict[str, Any]) -> str:
    """Return an answer as the model is told it: one that was cut off ends in dots, and not in half a tag."""
    if answer["state"] == "done":
        return str(answer["text"])
    text = without_half_tag(answer["text"]).rstrip()
    return f"{text} […]" if text else ""


def _side(turns: list[dict[str, Any]], side: int, words: Words) -> list[dict[str, Any]]:
    shown = [turn for turn in turns if not turn["gone"][side]]
    return [message for turn in shown for message in messages(turn["question"], turn["answers"][side], words)]


def _sampling(values: tuple[Any, ...]) -> Sampling:
    fields = {name: value for name, value in zip(_FIELDS, values, strict=True) if value is not None}
    return Sampling().changed(**{**fields, "think_budget": fields.get("think_budget") or None})


def _status(answers: list[Answer], loading: str | None, words: Words) -> str:
    lines = []
    for answer in answers:
        if answer.waiting and answer.state == "running":
            lines.append(words("waiting", model=answer.model, place=answer.waiting))
        elif not answer.tokens and loading and answer.state == "running":
            lines.append(words("loading", name=loading))
        else:
            lines.append(words(_STATUS[answer.state], model=answer.model, tokens=answer.tokens, seconds=answer.seconds))
    return plain(" · ".join(lines))
