"""The page: its tabs, its looks, and the events of opening and closing it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from thinktune.studio.events import QUIET, STREAMED, fill
from thinktune.studio.follow_script import SCRIPT as FOLLOW
from thinktune.studio.follower import Follower
from thinktune.studio.following import Version
from thinktune.studio.look import css, theme
from thinktune.studio.markdown import plain
from thinktune.studio.page_script import SCRIPT
from thinktune.studio.state import Studio
from thinktune.studio.tabs.batch import BatchTab
from thinktune.studio.tabs.chat import ChatTab
from thinktune.studio.tabs.rate import RateTab
from thinktune.studio.tabs.runs import RunsTab
from thinktune.studio.tabs.training_form import TrainingForm
from thinktune.studio.translations import Words, label

_FILES_KEPT = (3600, 24 * 3600)  # seconds: how often files are looked through, and from what age on they go


def build(studio: Studio) -> tuple[gr.Blocks, dict[str, Any]]:
    """Build the page; return it with the arguments of `launch` for its looks."""
    with gr.Blocks(title="thinktune", analytics_enabled=False, delete_cache=_FILES_KEPT) as demo:
        with gr.Row(elem_id="head"):
            gr.HTML("<h1>think<span>tune</span></h1>", elem_id="brand")
            gr.Markdown(label("about"), elem_id="about")
            models = gr.HTML(elem_id="model-state")
            loading = Follower("model", alone=True)
            nudge = gr.Button("", elem_id="nudge", elem_classes="mark")
        # Not within its tab: components of a tab that was not opened yet are not kept.
        rater = gr.BrowserState({}, storage_key="thinktune-rater", secret="thinktune")
        with gr.Tabs(selected="chat") as tabs:
            with gr.Tab(label("chat"), id="chat"):
                chat = ChatTab(studio)
            with gr.Tab(label("rate"), id="rate"):
                rate = RateTab(studio, rater)
            with gr.Tab(label("question_file"), id="batch"):
                batch = BatchTab(studio)
            with gr.Tab(label("runs"), id="runs"):
                runs = RunsTab(studio)
            with gr.Tab(label("train"), id="train") as train:
                form = TrainingForm(studio)

        def state(request: gr.Request, shown: str) -> Any:
            name = studio.pool.loading or ""
            return loading.told([plain(Words(request)("loading", name=name)) if name else ""], "", name, shown)

        studio.following.add("model", lambda _: Version(studio.pool.loading or "", bool(studio.pool.loading)))
        loading.follow(state, [], [models])
        nudge.click(lambda: None, None, None, trigger_mode="multiple", **STREAMED)
        demo.load(studio.opened.set, None, None, **QUIET)
        demo.load(chat.show, [chat.conversation, chat.kept], chat.filled, **QUIET)
        fill(
            demo.load, lambda _, kept: rate.show(kept), [rate.rater_kept], [rate.rater],
            [rate.study, rate.models, rate.explained], **QUIET,
        )  # fmt: skip
        demo.load(batch.show, None, [batch.job, batch.models], **QUIET)
        batch.rate.click(batch.rate_rows, batch.view, [batch.remark, rate.study, rate.explained, tabs], **QUIET)
        demo.load(runs.show, None, [runs.table, runs.chosen, runs.run, tabs], **QUIET)
        page = runs.page
        page.chat.click(page.chat_models, runs.run, [tabs, chat.first, chat.second], **QUIET)
        if studio.may_train:
            fill(demo.load, form.show, [], [form.name], [form.config, form.source], **QUIET)
            train.select(form.plan_nearby, form.inputs, form.memory, **QUIET)
            form.started(runs.open, tabs, runs.opened)
            fill(page.again.click, form.begin_with, [runs.run], form.filled, [form.source, form.config, tabs], **QUIET)
        demo.unload(chat.leave)
    demo.queue(default_concurrency_limit=None, max_size=200)
    return demo, {"theme": theme(), "css": css(), "js": f"() => {{ ({SCRIPT})(); ({FOLLOW})(); }}"}
