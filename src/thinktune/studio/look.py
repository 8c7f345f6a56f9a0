"""The page's looks: paper and ink, one green; light and dark. Sizes and places are in `look.css`."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import gradio as gr

_SANS = ["Inter", "system-ui", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
_MONO = ["JetBrains Mono", "ui-monospace", "Consolas", "monospace"]
_PINE = gr.themes.Color(
    "#edf7f2", "#d5ecdf", "#aed9c3", "#7fc1a3", "#4ea582", "#2d8a67", "#17694b", "#12553d", "#0f4431", "#0c3727",
    "#072219", name="pine",
)  # fmt: skip
_PAPER = gr.themes.Color(
    "#fbfaf6", "#f5f2ea", "#e9e4d8", "#d8d1c1", "#a9a08d", "#756d5d", "#5a5347", "#443f36", "#2b2822", "#1e1c18",
    "#141310", name="paper",
)  # fmt: skip


def theme() -> Any:
    """Return the theme of the page."""
    light_and_dark = {
        "body_background_fill": ("#f7f4ec", "#141310"),
        "body_text_color": ("#1f2421", "#ece8dd"),
        "body_text_color_subdued": ("#5a5347", "#b3ab9a"),
        "background_fill_primary": ("#fffdf8", "#1e1c18"),
        "background_fill_secondary": ("#f5f2ea", "#262420"),
        "block_background_fill": ("#fffdf8", "#1e1c18"),
        "block_border_color": ("#e0d9c9", "#39352d"),
        "block_label_text_color": ("#5a5347", "#b3ab9a"),
        "block_title_text_color": ("#5a5347", "#b3ab9a"),
        "block_info_text_color": ("#5a5347", "#b3ab9a"),
        "border_color_primary": ("#e0d9c9", "#39352d"),
        "input_background_fill": ("#ffffff", "#171612"),
        "input_border_color": ("#cfc7b5", "#4a453b"),
        "input_placeholder_color": ("#6b6353", "#a59d8c"),
        "button_primary_background_fill": ("#17694b", "#7fc1a3"),
        "button_primary_background_fill_hover": ("#12553d", "#aed9c3"),
        "button_primary_text_color": ("#ffffff", "#0b1f17"),
        "button_secondary_background_fill": ("#efeadd", "#2f2c26"),
        "button_secondary_background_fill_hover": ("#e4ddcb", "#3c3830"),
        "button_secondary_text_color": ("#2b2822", "#ece8dd"),
        "button_cancel_background_fill": ("#a3341f", "#e8907c"),
        "button_cancel_background_fill_hover": ("#86291a", "#f1ad9d"),
        "button_cancel_text_color": ("#ffffff", "#2a0d06"),
        "color_accent_soft": ("#e3efe7", "#1d332a"),
        "border_color_accent_subdued": ("#aed9c3", "#2b4a3d"),
        "link_text_color": ("#12553d", "#7fc1a3"),
        "table_even_background_fill": ("#fffdf8", "#1e1c18"),
        "table_odd_background_fill": ("#f9f6ee", "#23211c"),
        "table_border_color": ("#e0d9c9", "#39352d"),
        "checkbox_label_background_fill": ("#fffdf8", "#1e1c18"),
        "checkbox_label_background_fill_selected": ("#e3efe7", "#1d332a"),
        "checkbox_label_text_color_selected": ("#0f4431", "#d5ecdf"),
        "checkbox_background_color_selected": ("#17694b", "#2d8a67"),
    }
    values = {name: light for name, (light, _) in light_and_dark.items()}
    values |= {f"{name}_dark": dark for name, (_, dark) in light_and_dark.items()}
    base = gr.themes.Base(
        primary_hue=_PINE, secondary_hue=_PINE, neutral_hue=_PAPER, font=_SANS, font_mono=_MONO, radius_size="md",
        spacing_size="md",
    )  # fmt: skip
    return base.set(
        block_border_width="1px", block_shadow="none", button_primary_shadow="none", button_secondary_shadow="none",
        input_border_width="1px", block_label_text_weight="500", block_title_text_weight="500",
        button_large_text_weight="600", button_medium_text_weight="500", **values,
    )  # fmt: skip


def css() -> str:
    return (files("thinktune.studio") / "look.css").read_text(encoding="utf-8")
