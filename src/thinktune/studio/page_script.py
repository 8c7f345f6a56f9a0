"""The page's own script: the keys of the rating tab, and the copy buttons."""

from __future__ import annotations

SCRIPT = """() => {
    const verdicts = {"1": "left", "2": "right", "3": "both-good", "4": "both-bad",
        ArrowLeft: "left", ArrowRight: "right"};
    const wide = (element) => element && element !== document.body && element !== document.documentElement
        && (element.scrollWidth > element.clientWidth + 1 || wide(element.parentElement));
    const shown = () => document.getElementById("rate-progress")?.innerText;
    let last = -Infinity, rated = null;
    document.addEventListener("keydown", (event) => {
        const writing = event.target.closest("input, textarea, select, [contenteditable], [role=tab], [role=slider]");
        const button = verdicts[event.key] && document.getElementById("rate-" + verdicts[event.key]);
        if (writing || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
        if (!button || !button.offsetParent) return;
        if (event.key.startsWith("Arrow") && wide(event.target)) return;
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
"""Up and down scroll; left and right rate, but not from within elements that scroll sideways."""
