"""The page: its tabs, its looks, and the events of opening and closing it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from thinktune.studio.events import fill
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
            models = gr.Markdown(elem_id="model-state", latex_delimiters=[])
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

        def state(request: gr.Request) -> Any:
            loading = studio.pool.loading
            return plain(Words(request)("loading", name=loading)) if loading else ""

        watch = gr.Timer(1.0)
        watch.tick(state, None, models, show_progress="hidden", queue=False, api_visibility="private")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        demo.load(studio.opened.set, None, None, **quiet)
        demo.load(chat.show, [chat.conversation, chat.kept], chat.filled, **quiet)
        fill(
            demo.load, lambda _, kept: rate.show(kept), [rate.rater_kept], [rate.rater],
            [rate.study, rate.models, rate.explained], **quiet,
        )  # fmt: skip
        demo.load(batch.show, None, [batch.job, batch.models], **quiet)
        batch.rate.click(batch.rate_rows, batch.view, [batch.remark, rate.study, rate.explained, tabs], **quiet)
        demo.load(runs.show, None, [runs.table, runs.chosen, runs.run, tabs], **quiet)
        page = runs.page
        page.chat.click(page.chat_models, runs.run, [tabs, chat.first, chat.second], **quiet)
        if studio.may_train:
            fill(demo.load, form.show, [], [form.name], [form.config, form.source], **quiet)
            train.select(form.plan_nearby, form.inputs, form.memory, **quiet)
            form.started(runs.open, tabs, runs.opened)
            fill(page.again.click, form.begin_with, [runs.run], form.filled, [form.source, form.config, tabs], **quiet)
        demo.unload(chat.leave)
    demo.queue(default_concurrency_limit=None, max_size=200)
    return demo, {"theme": theme(), "css": css(), "js": SCRIPT}
