"""What the chat does in the browser by itself, before the server has heard of a click, or without it."""

SAVE = """(conversation) => {
    const blob = new Blob([JSON.stringify(conversation, null, 2)], {type: "application/json"});
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "conversation.json";
    link.click();
}"""
"""Downloads the conversation."""
TAKE = """(question, ...rest) => {
    const box = document.querySelector("#chat-question textarea");
    if (question.trim() && box.value === question) {
        box.value = "";
        box.dispatchEvent(new Event("input", {bubbles: true}));
    }
    return [question, ...rest];
}"""
"""Empties the box at once, by the page itself: an answer of the server would take along what is typed meanwhile."""
GIVE_BACK = """({text}) => {
    const box = document.querySelector("#chat-question textarea");
    box.value = box.value.trim() ? text + "\\n" + box.value : text;
    box.dispatchEvent(new Event("input", {bubbles: true}));
}"""
"""Puts a text before what is in the box by now."""
BEGIN_ANEW = """() => [{turns: []}, [], [], "", null]"""
"""Empties the page before the server has heard of it: a question that is sent meanwhile is the new conversation's."""
