"""The part of the page's script that talks with the server: it sends events until they are answered (`once`), and asks
for the versions of what is shown (`following`)."""

from __future__ import annotations

import json

from thinktune.studio.following import ADDRESS
from thinktune.studio.once import HEADER
from thinktune.studio.translations import TEXTS

_SCRIPT = """() => {
    // An event whose answer does not arrive is sent again; the server carries it out once.
    const send = window.fetch, gone = [502, 503, 504];
    window.fetch = async (address, options) => {
        if (options?.method !== "POST" || !String(address).includes("/run/")) return send(address, options);
        const headers = new Headers(options.headers);
        headers.set("__ONCE__", [...crypto.getRandomValues(new Uint32Array(4))].join("-"));
        for (let left = 60; ; left -= 1) {
            try {
                const answer = await send(address, {...options, headers, signal: AbortSignal.timeout(30000)});
                if (!left || !gone.includes(answer.status)) return answer;
            } catch (error) {
                if (!left) throw error;
            }
            await new Promise((done) => setTimeout(done, 1000));
        }
    };
    const soon = 1000, seldom = 10000, eagerness = 15000, patience = 4000;  // milliseconds
    const refreshed = {};
    let timer, asking = false, unheard = 0, eager = performance.now() + eagerness;
    const now = () => performance.now();
    const notice = () => {
        let said = document.getElementById("unheard");
        if (unheard < 3) return said?.remove();
        if (said) return;
        said = Object.assign(document.createElement("div"), {id: "unheard", role: "status"});
        said.textContent = __UNHEARD__[navigator.language.toLowerCase().startsWith("zh") ? 1 : 0];
        document.body.append(said);
    };
    // A refresh that is on its way is waited for, ever longer: it may have been lost.
    const refresh = (kind, shown) => {
        const last = refreshed[kind], again = last?.shown === shown;
        if (again && now() < last.until) return;
        const pause = again ? Math.min(2 * last.pause, 60000) : patience;
        refreshed[kind] = {shown, pause, until: now() + pause};
        document.getElementById(kind + "-refresh")?.click();
    };
    const look = async () => {
        clearTimeout(timer);
        if (document.hidden || asking) return;
        asking = true;
        let wait = now() < eager ? soon : seldom;
        try {
            const seen = [...document.querySelectorAll("[data-follows]")].filter((each) => each.offsetParent);
            const named = ({follows, of}) => window.followed?.[follows] ?? of;
            if (seen.length) {
                const query = new URLSearchParams(seen.map(({dataset}) => [dataset.follows, named(dataset)]));
                const answer = await fetch("__ADDRESS__?" + query, {signal: AbortSignal.timeout(15000)});
                if (!answer.ok) throw Error(answer.status);
                const {versions, moves} = await answer.json();
                for (const each of seen) {
                    const {follows, of, version} = each.dataset, newest = versions[follows];
                    if (newest === undefined || (newest === version && named(each.dataset) === of)) continue;
                    refresh(follows, named(each.dataset) + " " + each.outerHTML);
                    wait = soon;
                }
                if (moves) wait = soon;
            }
            unheard = 0;
        } catch {
            unheard += 1;
            wait = soon;
        }
        asking = false;
        notice();
        timer = setTimeout(look, wait);
    };
    const hurry = () => {
        eager = now() + eagerness;
        clearTimeout(timer);
        timer = setTimeout(look, soon / 4);
    };
    const own = (event) => event.isTrusted && hurry();  // not what this script clicks on
    for (const kind of ["click", "change", "drop"]) document.addEventListener(kind, own, true);
    document.addEventListener("keydown", (event) => event.key === "Enter" && own(event), true);
    document.addEventListener("visibilitychange", hurry);
    for (const kind of ["online", "popstate", "focus"]) window.addEventListener(kind, hurry);
    // An answer that comes bit by bit needs Gradio's stream: whatever is asked for opens one that was closed too early.
    setInterval(() => {
        const busy = [...document.querySelectorAll(".busy")].some((each) => each.offsetParent);
        if (!document.hidden && (busy || now() < eager)) document.getElementById("nudge")?.click();
    }, 5000);
    look();
}"""
SCRIPT = (
    _SCRIPT.replace("__ADDRESS__", ADDRESS.lstrip("/"))
    .replace("__ONCE__", HEADER)
    .replace("__UNHEARD__", json.dumps(TEXTS["unheard"], ensure_ascii=False))
)
