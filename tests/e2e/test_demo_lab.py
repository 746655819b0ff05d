"""The demo with Lab (`jupyter_depin.demo.lab`), in a real browser: launcher, rented kernel, output, meter, stop, receipt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket

import anyio
import anyio.to_thread
import psutil
import pytest
from tornado.httpclient import AsyncHTTPClient

from tests.e2e.conftest import TOKEN, assert_all_gone, family

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

playwright_api = pytest.importorskip("playwright.async_api", reason="Playwright is not installed")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_MS = 90_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def lab_is_up(port: int) -> None:
    client = AsyncHTTPClient()
    with anyio.fail_after(120):
        while True:
            try:
                await client.fetch(f"http://127.0.0.1:{port}/api/status?token={TOKEN}")
                return
            except OSError:
                await anyio.sleep(0.2)


async def rented_kernel(port: int) -> tuple[str, dict]:
    """Start a rented kernel as a front end does; returns its id and its rental, once it runs."""
    client = AsyncHTTPClient()
    base, headers = f"http://127.0.0.1:{port}", {"Authorization": f"token {TOKEN}"}
    body = json.dumps({"name": "depin-rented"})
    with anyio.fail_after(90):
        reply = await client.fetch(
            f"{base}/api/kernels", method="POST", body=body, headers=headers, request_timeout=90
        )
        rentals = await client.fetch(f"{base}/jupyter-depin/api/rentals", headers=headers)
    return json.loads(reply.body)["id"], json.loads(rentals.body)["rentals"][0]


async def test_ctrl_c_settles_what_runs(start_demo, tmp_path):
    port = free_port()
    with start_demo("--no-browser", "--port", str(port)) as demo:
        await lab_is_up(port)
        kernel, rental = await rented_kernel(port)
        assert (rental["kernel_id"], rental["state"]) == (kernel, "running")
        everything = family(psutil.Process(demo.pid))
        assert len(everything) >= 5  # demo, chain, agent, sandboxed kernel, Lab
        demo.send_signal(signal.SIGINT)
        printed, _ = await anyio.to_thread.run_sync(demo.communicate)
        assert demo.returncode == 0
        assert "the chain agrees" in printed
        assert_all_gone(everything)
    said = (tmp_path / "demo.err").read_text()
    assert "Traceback" not in said
    assert "Fatal" not in said


async def test_a_lab_that_fails_is_no_success(run_demo, demo_environment, tmp_path):
    # A file where Jupyter wants a folder.
    (tmp_path / "home").touch()
    done = await anyio.to_thread.run_sync(run_demo, "--no-browser")
    assert done.returncode == 1


async def test_a_killed_demo_leaves_nothing_running(start_demo, tmp_path):
    port = free_port()
    with start_demo("--no-browser", "--port", str(port)) as demo:
        await lab_is_up(port)
        await rented_kernel(port)
        everything = family(psutil.Process(demo.pid))
        demo.kill()
        await anyio.to_thread.run_sync(demo.wait)
        assert_all_gone(everything)


async def test_launcher_rented_kernel_meter_stop_receipt(start_demo, tmp_path):
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    expect = playwright_api.expect
    expect.set_options(timeout=PATIENCE_MS)
    port = free_port()
    with start_demo("--no-browser", "--port", str(port)) as demo:
        await lab_is_up(port)
        async with playwright_api.async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            )
            page = await browser.new_page(viewport={"width": 1200, "height": 760})
            page.set_default_timeout(PATIENCE_MS)
            await page.goto(f"http://127.0.0.1:{port}/lab?token={TOKEN}&reset")
            await page.screenshot(path=tmp_path / "0-lab.png")
            card = page.locator(".jp-LauncherCard[title*='Rented kernel'][data-category='Notebook']")
            await card.first.click()
            meter = page.locator("button.jp-Depin-meter")
            await expect(meter).to_have_attribute("data-depin-state", "running")
            cell = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell").first
            # A new notebook moves the focus about until it is drawn.
            await expect(page.get_by_role("button", name="Rented kernel (depin) | Idle")).to_be_visible()
            await cell.locator(".cm-content").click()
            await page.keyboard.insert_text("print('hello from', 6 * 7)")
            await expect(cell.locator(".cm-content")).to_have_text("print('hello from', 6 * 7)")
            await page.keyboard.press("Shift+Enter")
            await expect(cell.locator(".jp-OutputArea-output")).to_contain_text("hello from 42")
            await page.screenshot(path=tmp_path / "1-running.png")
            # The meter counts: a first voucher after a tick of 5 s, a second one after the next.
            await expect(meter).not_to_have_attribute("data-depin-spent", "0")
            first = await meter.get_attribute("data-depin-spent")
            await expect(meter).not_to_have_attribute("data-depin-spent", first)
            await page.screenshot(path=tmp_path / "2-counted.png")
            await meter.click()
            await page.screenshot(path=tmp_path / "3-details.png")
            await page.get_by_role("button", name="Stop and settle").first.click()
            await page.get_by_role("dialog").last.get_by_role("button", name="Stop and settle").click()
            receipt = page.get_by_role("dialog").filter(has_text="You paid")
            await expect(receipt).to_be_visible()
            await page.screenshot(path=tmp_path / "4-receipt.png")
            paid = await meter.get_attribute("data-depin-spent")
            assert int(paid) > int(first)
            text = await receipt.inner_text()
            assert f"{int(paid) / 1e6:f}".rstrip("0") in text
            await receipt.get_by_role("button").last.click()
            await page.screenshot(path=tmp_path / "5-after.png")
            await browser.close()
        everything = family(psutil.Process(demo.pid))
        demo.send_signal(signal.SIGINT)
        printed, _ = await anyio.to_thread.run_sync(demo.communicate)
        assert demo.returncode == 0
        assert f"Paid                  {int(paid) / 1e6:f}".rstrip("0") in printed
        assert "the chain agrees" in printed
        assert_all_gone(everything)
        assert not list(tmp_path.glob("depin-demo-*"))
    assert "Traceback" not in (tmp_path / "demo.err").read_text(), json.dumps(
        (tmp_path / "demo.err").read_text()
    )
