"""The page's own script: questions before something is thrown away, names of icons, keys of rating, copy buttons."""

from __future__ import annotations

import json

from thinktune.studio.translations import TEXTS


def in_browser(key: str) -> str:
    """Return a function for the page that says a text at once, before the server is heard of."""
    english, chinese = (json.dumps(f'<div class="said" role="status">{text}</div>') for text in TEXTS[key])
    return f'() => navigator.language.toLowerCase().startsWith("zh") ? {chinese} : {english}'


_ASKED = {
    "chat-delete": "ask_delete",
    "chat-left": "ask_empty",
    "chat-right": "ask_empty",
    "rate-delete": "ask_delete_study",
}
"""Texts of the questions before a click: on a button of that id, or on the trash of a side."""

_NAMES = {
    "chatbot conversation": "对话",
    "Dataframe": "表格",
    "Empty value": "空",
    "Reset to default value": "恢复默认值",
    "number input for ": "输入数值：",
    "range slider for ": "滑块：",
}
"""Names that Gradio gives to parts of the page, for those who listen to it; it has them in English only."""

_SCRIPT = """() => {
    const asked = __ASKED__, chinese = navigator.language.toLowerCase().startsWith("zh") ? 1 : 0;
    document.addEventListener("click", (event) => {
        const button = event.target.closest("#chat-left .top-panel button, #chat-right .top-panel button, button[id]");
        const texts = button && asked[button.id || button.closest("#chat-left, #chat-right")?.id];
        if (!texts || confirm(texts[chinese])) return;
        event.stopImmediatePropagation();
        event.preventDefault();
    }, true);
    document.addEventListener("pointerover", (event) => {
        const button = event.target.closest?.("button.icon");
        if (button && !button.title) button.title = button.textContent.trim();
    });
    const verdicts = {"1": "left", "2": "right", "3": "both-good", "4": "both-bad"};
    const shown = () => document.getElementById("rate-progress")?.innerText;
    let last = -Infinity, rated = null;
    document.addEventListener("keydown", (event) => {
        const writing = event.target.closest("input, textarea, select, [contenteditable], [role=tab], [role=slider]");
        const button = verdicts[event.key] && document.getElementById("rate-" + verdicts[event.key]);
        if (writing || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
        if (!button || !button.offsetParent) return;
        event.preventDefault();
        if (event.timeStamp - last < 600) return;  // nobody has read the next pair
        button.click();
    });
    // A second verdict while the pair is still there, or with the same double click, would be one on the next pair.
    document.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (!Object.values(verdicts).some((verdict) => button?.id === "rate-" + verdict)) {
            if (button) rated = null;  // undo, or another study
        } else if (event.detail > 1 || (rated === shown() && event.timeStamp - last < 10000)) {
            event.stopImmediatePropagation();
            event.preventDefault();
        } else {
            rated = shown();
            last = event.timeStamp;
        }
    }, true);
    document.addEventListener("click", (event) => {
        const icon = event.target.closest("#chat-left .message-buttons button, #chat-right .message-buttons button");
        if (!icon) return;
        const chat = icon.closest("#chat-left, #chat-right");
        const groups = [...chat.querySelectorAll(".message-buttons")];
        const before = groups[groups.indexOf(icon.closest(".message-buttons")) - 1];
        const precedes = (one, other) => one.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING;
        const texts = [...chat.querySelectorAll(".source")]
            .filter((each) => precedes(each, icon) && !(before && precedes(each, before)))
            .map((each) => each.textContent);
        if (!texts.length) return;
        event.stopImmediatePropagation();
        event.preventDefault();
        const text = texts.join("\\n\\n");
        if (navigator.clipboard) {
            navigator.clipboard.writeText(text);
            return;
        }
        const area = document.createElement("textarea");  // a page that is not of this machine, without TLS
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }, true);
    // What Gradio leaves without a name, or out of the keyboard's reach: scrolling parts, empty boxes, folded thoughts.
    const names = chinese ? __NAMES__ : {};
    const mend = () => {
        // Of a curve, the browser would read out every point; its title is above it.
        for (const each of document.querySelectorAll("[aria-label='Vega visualization']")) each.ariaHidden = true;
        for (const each of document.querySelectorAll(".placeholder-content[role]")) each.removeAttribute("role");
        // What is written on it names it better.
        for (const each of document.querySelectorAll("button.upload-container[aria-label]")) {
            if (each.innerText.trim()) each.removeAttribute("aria-label");
        }
        for (const [name, ours] of Object.entries(names)) {
            for (const each of document.querySelectorAll(`[aria-label^="${name}"]`)) {
                each.ariaLabel = each.ariaLabel.replace(name, ours);
            }
        }
        for (const each of document.querySelectorAll(".bubble-wrap")) each.tabIndex = 0;
        for (const each of document.querySelectorAll(".empty[aria-label]")) each.setAttribute("role", "img");
        for (const button of document.querySelectorAll(".message .title .arrow > button")) {
            const title = button.closest(".title"), name = title.innerText.trim();
            title.removeAttribute("role");
            title.removeAttribute("tabindex");
            if (button.ariaLabel !== name) button.ariaLabel = name;
        }
    };
    new MutationObserver(mend).observe(document.body, {subtree: true, childList: true});
    // Gradio names a message by its source, which is HTML here: who listens to the page gets the text instead.
    const named = "[data-testid=user], [data-testid=bot]";
    new MutationObserver((changes) => {
        for (const {target} of changes) {
            for (const each of target.matches?.(named) ? [target] : target.querySelectorAll?.(named) ?? []) {
                if (each.ariaLabel?.includes("<div")) each.ariaLabel = each.ariaLabel.split(":")[0];
            }
        }
    }).observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ["aria-label"]});
}"""
SCRIPT = _SCRIPT.replace(
    "__ASKED__", json.dumps({where: TEXTS[text] for where, text in _ASKED.items()}, ensure_ascii=False)
).replace("__NAMES__", json.dumps(_NAMES, ensure_ascii=False))
