"""JupyterLab in Chromium with the extension and moved rentals: what a person sees, presses and is told."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.base.handlers import FileFindHandler

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

playwright_api = pytest.importorskip("playwright.async_api", reason="Playwright is not installed")
expect = playwright_api.expect

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
BUILT = Path(__file__).parents[2] / "jupyter_depin" / "labextension"
PATIENCE_MS = 60_000
NOTEBOOK = {
    "cells": [],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}

Open = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def jp_server_config(jp_server_config: dict[str, Any]) -> dict[str, Any]:
    jp_server_config["ServerApp"]["jpserver_extensions"]["jupyterlab"] = True
    return jp_server_config


@pytest.fixture
def assets(jp_data_dir: Path, jp_config_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built front end where JupyterLab looks for it, and no question about news."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    if not (BUILT / "package.json").is_file():
        pytest.skip("the front end is not built: pip install -e .")
    # Jupyter Server remembers for the whole process where it found a static file; each test has its own folder.
    monkeypatch.setattr(FileFindHandler, "_static_paths", {})
    (jp_data_dir / "labextensions" / "@jupyter-depin").mkdir(parents=True)
    (jp_data_dir / "labextensions" / "@jupyter-depin" / "lab").symlink_to(BUILT, target_is_directory=True)
    (jp_config_dir / "labconfig").mkdir(parents=True)
    (jp_config_dir / "labconfig" / "page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )


@pytest.fixture
def lab(assets, jp_serverapp, jp_root_dir, jp_http_port, jp_base_url, jp_fetch) -> Open:
    """Opens a notebook in JupyterLab and waits for its kernel; gives the page and the kernel's id."""

    async def start_kernel() -> str:
        session = {"path": "rented.ipynb", "name": "", "type": "notebook", "kernel": {"name": "python3"}}
        reply = await jp_fetch("api", "sessions", method="POST", body=json.dumps(session))
        return json.loads(reply.body)["kernel"]["id"]

    @asynccontextmanager
    async def open_lab() -> AsyncIterator[tuple[Any, str]]:
        (jp_root_dir / "rented.ipynb").write_text(json.dumps(NOTEBOOK))
        kernel = await start_kernel()
        async with playwright_api.async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            )
            page = await browser.new_page(viewport={"width": 1100, "height": 700})
            page.set_default_timeout(PATIENCE_MS)
            expect.set_options(timeout=PATIENCE_MS)
            token = jp_serverapp.identity_provider.token
            url = f"http://localhost:{jp_http_port}{jp_base_url}lab/tree/rented.ipynb?token={token}"
            try:
                await page.goto(url)
                await page.locator(".jp-NotebookPanel .jp-Notebook-cell").first.wait_for()
                yield page, kernel
            finally:
                await browser.close()
                await jp_fetch("api", "kernels", kernel, method="DELETE")

    return open_lab


async def test_a_rental_from_start_to_receipt(lab, rentals, tmp_path):
    async with lab() as (page, kernel):
        meter = page.locator("button.jp-Depin-meter")

        rentals.add(kernel_id=kernel, state="starting", spent=0, served_ns=0)
        await expect(meter).to_have_text("◔CPU demo · starting · not charged yet")

        rentals.report(state="running", spent=8_300, served_ns=83 * 10**9)
        await expect(meter).to_have_attribute("data-depin-spent", "8300")
        await expect(meter).to_contain_text("CPU demo · 0.36 DEMO/h · 00:01:2")
        await expect(meter).to_contain_text("· 0.0083 DEMO")
        await page.screenshot(path=tmp_path / "running.png")

        await meter.click()
        details = page.get_by_role("dialog", name="Rented kernel")
        await expect(details).to_contain_text("At most0.18 DEMO")
        await expect(details).to_contain_text("direct, 38 ms")
        await page.screenshot(path=tmp_path / "details.png")

        await details.get_by_role("button", name="Stop and settle").click()
        question = page.get_by_role("dialog").filter(has_text="its variables are lost")
        await expect(question).to_contain_text("So far it cost 0.0083 DEMO")
        await page.screenshot(path=tmp_path / "question.png")

        # The meter goes on while the person thinks; the receipt is about the last report.
        rentals.report(spent=8_400, served_ns=84 * 10**9)
        await question.get_by_role("button", name="Stop and settle").click()
        receipt = page.get_by_role("dialog").filter(has_text="Receipt")
        await expect(receipt).to_contain_text("You paid 0.0084 DEMO.")
        await expect(meter).to_have_attribute("data-depin-paid", "8400")
        await page.screenshot(path=tmp_path / "receipt.png")
        await receipt.get_by_role("button", name="Close").click()
        await expect(meter).to_have_text("■CPU demo · ended · stopped · paid 0.0084 DEMO")


async def test_a_cut_link_is_told_and_survives_a_reload(lab, rentals, tmp_path):
    async with lab() as (page, kernel):
        rentals.add(kernel_id=kernel, state="reconnecting")
        meter = page.locator("button.jp-Depin-meter")
        await expect(meter).to_contain_text("reconnecting")
        await expect(meter).to_contain_text("still running")
        await page.screenshot(path=tmp_path / "reconnecting.png")
        await page.reload()
        await expect(meter).to_have_attribute("data-depin-state", "reconnecting")


async def test_the_details_open_and_close_by_keyboard(lab, rentals):
    async with lab() as (page, kernel):
        rentals.add(kernel_id=kernel)
        meter = page.locator("button.jp-Depin-meter")
        await meter.focus()
        await page.keyboard.press("Enter")
        details = page.get_by_role("dialog", name="Rented kernel")
        await expect(details).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(details).to_have_count(0)
        await expect(meter).to_be_focused()


async def test_rentals_of_other_notebooks_are_counted(lab, rentals, tmp_path):
    async with lab() as (page, _):
        rentals.add(kernel_id="elsewhere")
        meter = page.locator("button.jp-Depin-meter")
        await expect(meter).to_contain_text("CPU demo")
        rentals.add(id="cd" * 32, kernel_id="elsewhere too", title="Other demo")
        await expect(meter).to_have_text("●2 rentals")
        await meter.click()
        await expect(page.get_by_role("button", name="Stop and settle")).to_have_count(2)
        await page.screenshot(path=tmp_path / "several.png")
