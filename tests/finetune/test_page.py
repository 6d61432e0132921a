"""The page in a browser: from pictures to a classifier that has learned."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_images import picture

from fewshot_blo.evaluation.evaluate import embed
from fewshot_blo.finetune import Source, load_classifier, read_labelled, save_classifier
from fewshot_blo.finetune.calibration import Scale
from fewshot_blo.finetune.candidates import BALANCED
from fewshot_blo.finetune.classifier import fit_classifier

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("playwright", reason="playwright, which drives the browser, is not installed")

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
BROWSER = next((name for name in BROWSERS if Path(name).is_file()), "")
OWN = "small_images:network"
expect.set_options(timeout=20_000)
pytestmark = pytest.mark.skipif(not BROWSER, reason=f"there is no browser {' or '.join(BROWSERS)}")


@pytest.fixture
def classifier(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """The file of a classifier that another process can build."""
    data = read_labelled(make_folder(5, 4, 5), 16)
    backbone = Source(OWN).load()
    features = embed(BALANCED.problem(backbone, data.images.shape[1:]).network, data.images)
    made = fit_classifier(BALANCED, backbone, Source(OWN), data, features, Scale(0.2))
    save_classifier(made, tmp_path / "c.pt")
    return tmp_path / "c.pt"


@pytest.fixture
def server(classifier: Path) -> Iterator[str]:
    """The address of the command; ends it as Ctrl-C does."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    words = ["-m", "fewshot_blo", "serve", str(classifier), f"--own={OWN}", "--port=0"]
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as process:
        assert process.stdout is not None
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
            line = process.stdout.readline()
            assert line, said
            said += line
        yield found[0]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
        assert rest == "ended\n"
        assert process.returncode == 0


@pytest.fixture
def page(server: str) -> Iterator[Page]:
    """The page, which must leave no error on the console."""
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page(accept_downloads=True)
        opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
        opened.goto(server)
        yield opened
        browser.close()
    assert said == []


def drop(page: Page, *files: tuple[str, bytes]) -> None:
    """Drops files on the page as a person does from a folder."""
    content: list[Any] = [[name, list(data)] for name, data in files]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, data] of files) {
                transfer.items.add(new File([new Uint8Array(data)], name, {type: "image/png"}));
            }
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


@pytest.mark.slow
def test_from_pictures_to_a_classifier_that_has_learned(page: Page, tmp_path: Path) -> None:
    expect(page.locator("#file")).to_have_text("c.pt")
    expect(page.locator("#classes li")).to_have_text(["blue & <b>5", "groß 緑4", "red5"])
    sent = {}
    mixed = Image.blend(picture(0, 80), picture(1, 80), 0.55)
    for name, image in (("<b>0.png", picture(0, 80)), ("1.png", mixed), ("2.png", picture(2, 80))):
        image.save(tmp_path / "x.png")
        sent[name] = (tmp_path / "x.png").read_bytes()
    drop(page, *sent.items(), ("bad.png", b"text"))
    cards = page.locator(".card")
    expect(cards).to_have_count(4)
    expect(cards.locator(".label")).to_have_text(
        ["red", re.compile("red|groß 緑"), "blue & <b>", "…"]
    )
    expect(cards.locator(".name")).to_have_text([*sent, "bad.png"])
    expect(cards.nth(3).locator(".error")).to_contain_text("bad.png cannot be decoded")
    assert cards.nth(3).locator(".correct").is_hidden()
    expect(cards.nth(0).locator(".bars li")).to_have_count(3)
    expect(cards.nth(0).locator(".near li")).to_have_count(4)
    loaded = "images => images.every(image => image.complete && image.naturalWidth > 0)"
    near = cards.nth(0).locator(".near img")
    near.last.scroll_into_view_if_needed()
    expect(near.last).to_have_js_property("complete", True)
    assert near.evaluate_all(loaded)

    # A label is corrected with the keyboard alone.
    cards.nth(1).locator(".correct input").focus()
    right = "red" if cards.nth(1).locator(".label").inner_text() != "red" else "groß 緑"
    page.keyboard.type(right)
    page.keyboard.press("Enter")
    expect(page.locator("#file")).to_have_text("c-2.pt")
    expect(cards.nth(1).locator(".label")).to_have_text(right)
    expect(page.locator("#log li")).to_contain_text(
        [f"c-2.pt: class '{right}' learned from 1 image."]
    )

    # One picture makes a class, and several do.
    cards.nth(2).locator(".correct input").fill("<i>new")
    cards.nth(2).locator(".correct button").click()
    expect(page.locator("#file")).to_have_text("c-3.pt")
    for number in range(3):
        picture(1, 90 + number).convert("L").save(tmp_path / f"grey{number}.png")
    page.locator("#new-name").fill("grey 日本")
    page.locator("#new-pictures").set_input_files(sorted(tmp_path.glob("grey*.png")))
    expect(page.locator("#new-previews img")).to_have_count(3)
    page.get_by_role("button", name="Add class").click()
    expect(page.locator("#file")).to_have_text("c-4.pt")
    expect(page.locator("#classes li").last).to_have_text("grey 日本3")

    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download classifier").click()
    waiting.value.save_as(tmp_path / "down.pt")
    assert waiting.value.suggested_filename == "c-4.pt"
    learned = load_classifier(tmp_path / "down.pt", own=OWN)
    assert learned.class_names == ("blue & <b>", "groß 緑", "red", "<i>new", "grey 日本")

    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#file")).to_have_text("c-3.pt")
    assert sorted(path.name for path in tmp_path.glob("c*.pt")) == [
        *(f"c-{number}.pt" for number in (2, 3, 4)),
        "c.pt",
    ]
    page.get_by_role("button", name="Remove all pictures").click()
    expect(cards).to_have_count(0)
