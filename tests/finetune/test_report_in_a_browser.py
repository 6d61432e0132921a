"""The report in Chromium: nothing scrolls sideways, and the policy lets its own style through."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_reports import HOSTILE, PROTOTYPES, answered, images_of, written

from fewshot_blo.finetune import Classifier
from fewshot_blo.finetune.selection import select

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HARNESS = """<!doctype html><body><script>
const found = [];
function measure(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  const outside = [...page.querySelectorAll(".tip")].filter(tip => {
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    tip.style.display = "";
    return box.left < 0 || box.right > root.clientWidth;
  });
  found.push({width: root.clientWidth, scroll: root.scrollWidth, outside: outside.length,
    scripts: page.scripts.length, left: frame.contentWindow.getComputedStyle(
      page.querySelector(".dot")).position});
  document.title = JSON.stringify(found);
}
for (const width of [400, 1400]) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.onload = () => measure(frame);
  frame.src = "report.html"; document.body.append(frame);
}
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the report with")
@pytest.mark.slow
@pytest.mark.parametrize("classes", [3, 40])
def test_nothing_scrolls_sideways(
    classes: int, fit_one: Callable[..., Classifier], tmp_path: Path
) -> None:
    long = tuple(f"{number} {'wide' * 20} {HOSTILE[number % 5]}" for number in range(classes))
    data = images_of(1, *[4] * (classes - 1), names=long)
    data = replace(data, left_out=("x" * 300,))
    written(tmp_path, fit_one(PROTOTYPES, data, 1.0), data, select([answered(data)]))
    (tmp_path / "harness.html").write_text(HARNESS, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
    command = [str(CHROMIUM), *options, "--dump-dom", (tmp_path / "harness.html").as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", result.stdout)
    assert title, result.stdout[-2000:] + result.stderr[-2000:]
    found = json.loads(title.group(1))
    # A scroll bar may take some of the width.
    narrow, wide = sorted(frame["width"] for frame in found)
    assert 380 <= narrow <= 400
    assert 1380 <= wide <= 1400
    for frame in found:
        assert frame["scroll"] == frame["width"]
        assert frame["outside"] == 0
        assert frame["scripts"] == 0
        assert frame["left"] == "absolute"
