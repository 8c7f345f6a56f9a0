"""A browser on the studio's page."""

from __future__ import annotations

from typing import Any

SECONDS = 300_000  # milliseconds that anything may take on a machine that is busy with other things


def open_tab(browser: Any, url: str, **settings: Any) -> Any:
    page = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1200, "height": 900}, **settings}).new_page()
    page.set_default_timeout(SECONDS)
    page.goto(url)
    page.wait_for_selector("#chat-send")
    return page


def go(page: Any, number: int) -> None:
    """To the n-th tab."""
    page.get_by_role("tab").nth(number).click()


def choose(page: Any, dropdown: str, option: str) -> None:
    page.click(f"{dropdown} input")
    page.get_by_role("option", name=option, exact=True).click()


def wait_for_text(page: Any, selector: str, text: str) -> None:
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)", arg=[selector, text]
    )
