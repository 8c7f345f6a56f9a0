"""The page: its tabs, its looks, and the events of opening and closing it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from thinktune.studio.markdown import plain
from thinktune.studio.page_script import SCRIPT
from thinktune.studio.state import Studio
from thinktune.studio.tabs.batch import BatchTab
from thinktune.studio.tabs.chat import ChatTab
from thinktune.studio.tabs.rate import RateTab
from thinktune.studio.tabs.runs import RunsTab
from thinktune.studio.translations import Words, label

_SANS = ["system-ui", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
_CSS = """
.gradio-container { width: 100%; max-width: 1200px !important; margin: 0 auto !important; }
footer { display: none !important; }
.dark :is(#runs-legend, #runs-tokens) .container * { color: white !important; }
#rate-left-answer .icon-button-wrapper, #rate-right-answer .icon-button-wrapper { display: none; }
/* A completion stays within its message: a formula can be of any size, and be moved anywhere. */
.written { contain: paint; overflow-x: auto; overflow-wrap: anywhere; }
.source { display: none; }
.remark { font-style: italic; }
.said, .remark { white-space: pre-wrap; overflow-wrap: anywhere; }
"""

_FILES_KEPT = (3600, 24 * 3600)  # seconds: how often files are looked through, and from what age on they go


def build(studio: Studio) -> tuple[gr.Blocks, dict[str, Any]]:
    """Build the page; return it with the arguments of `launch` for its looks."""
    with gr.Blocks(title="thinktune", analytics_enabled=False, delete_cache=_FILES_KEPT) as demo:
        gr.Markdown(label("about"))
        models = gr.Markdown(elem_id="model-state", latex_delimiters=[])
        # Not within its tab: components of a tab that was not opened yet are not kept.
        rater = gr.BrowserState({}, storage_key="thinktune-rater", secret="thinktune")
        with gr.Tab(label("chat"), id="chat"):
            chat = ChatTab(studio)

        with gr.Tab(label("rate"), id="rate"):
            rate = RateTab(studio, rater)
        with gr.Tab(label("batch"), id="batch"):
            batch = BatchTab(studio)
        with gr.Tab(label("runs"), id="runs"):
            runs = RunsTab(studio)

        def state(request: gr.Request) -> Any:
            loading = studio.pool.loading
            return plain(Words(request)("loading", name=loading)) if loading else ""

        watch = gr.Timer(1.0)
        watch.tick(state, None, models, show_progress="hidden", queue=False, api_visibility="private")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        demo.load(studio.opened.set, None, None, **quiet)
        demo.load(chat.show, chat.conversation, [chat.left, chat.right, chat.first, chat.second], **quiet)
        demo.load(rate.show, rate.rater_kept, [rate.rater, rate.study, rate.models], **quiet)
        demo.load(batch.show, None, [batch.job, batch.model], **quiet)
        demo.load(runs.show, None, [runs.table, runs.chosen], **quiet)
        demo.unload(chat.stop_answers)
    demo.queue(default_concurrency_limit=None, max_size=200)
    theme = gr.themes.Default(font=_SANS, font_mono=["ui-monospace", "Consolas", "monospace"])
    return demo, {"theme": theme, "css": _CSS, "js": SCRIPT}
