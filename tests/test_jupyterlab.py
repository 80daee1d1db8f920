"""The explorers in a real JupyterLab, in a headless Chromium: a control is moved and the picture changes.

Screenshots are also left in the folder that VTAMIQ_SCREENSHOTS names, if it is set.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest

from tests.small import TINY
from vtamiq.images.reading import write_png
from vtamiq.model.network import VTAMIQ

if importlib.util.find_spec("websocket") is None:
    pytest.skip("no websocket-client here: pip install websocket-client", allow_module_level=True)
from tests.chromium import Chromium, find_chromium, wait_for

ROOT = Path(__file__).parents[1]
CELLS = {
    "sampling": "from vtamiq.lab.explore import *\nexplore_sampling(photograph='coffee', distortion='colorblock')",
    "attention": "from vtamiq import VTAMIQ\nmodel = VTAMIQ.from_pretrained('model')\n"
    "explore_attention(model, photograph='coffee', method='attention', draws=2, trained='random weights')",
    "score": "explore_score(model, photograph='chelsea', repeats=2, trained='random weights')",
}
SETTINGS = {  # nothing is fetched, nothing pops up, and cells out of sight stay in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no Chromium here, so the explorers are not tried in JupyterLab: apt-get install chromium",
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Chromium]:
    """The notebook with all three explorers, run in JupyterLab."""
    folder = tmp_path_factory.mktemp("lab")
    config, runtime, work = (folder / name for name in ("config", "runtime", "work"))
    for name, settings in SETTINGS.items():
        path = config / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    work.mkdir()
    VTAMIQ(TINY).save_pretrained(work / "model")
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.values()]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # else JupyterLab asks for one
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), work / "explorers.ipynb")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    environment |= {"JUPYTER_CONFIG_DIR": str(config), "JUPYTER_RUNTIME_DIR": str(runtime), "PYTHONPATH": str(ROOT)}
    options = ["--no-browser", "--allow-root", "--ServerApp.port=0", "--IdentityProvider.token=letmein"]
    options += [f"--ServerApp.root_dir={work}", "--ServerApp.ip=127.0.0.1"]
    with (folder / "log").open("w") as log:
        lab = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, cwd=work, stdout=log, stderr=log
        )
    try:
        (found,) = wait_for(lambda: list(runtime.glob("jpserver-*.json")), "JupyterLab")
        url = wait_for(lambda: found.read_text(), "JupyterLab") and json.loads(found.read_text())["url"]
        with Chromium(folder / "profile", 1280, 800) as chromium:
            chromium.call("Page.navigate", url=f"{url}doc/tree/explorers.ipynb?token=letmein")
            prompt = "document.querySelector('.jp-Notebook .jp-InputPrompt')"
            wait_for(lambda: chromium.evaluate(f"!!{prompt}"), "the notebook")
            chromium.click(prompt)  # the status bar shows the kernel of what has the focus
            wait_for(lambda: chromium.evaluate("document.body.innerText.includes('| Idle')"), "a kernel")
            for item in ("Run", "Run All Cells"):
                labels = "[...document.querySelectorAll('.lm-MenuBar-itemLabel, .lm-Menu-itemLabel')]"
                chromium.click(f"{labels}.find(e => e.innerText === '{item}')")
            shown = "document.querySelectorAll('.vtamiq-explorer').length"
            wait_for(lambda: chromium.evaluate(shown) == len(CELLS), "the explorers")
            yield chromium
    finally:
        lab.terminate()
        lab.wait(30)


def explorer(name: str) -> str:
    return f"document.querySelectorAll('.vtamiq-explorer')[{list(CELLS).index(name)}]"


def pictures(page: Chromium, name: str) -> list[str]:
    """The bytes of the four pictures as the browser has them, as text."""
    read = (
        f"Promise.all([...{explorer(name)}.querySelectorAll('img')].map(async i => "
        "Array.from(new Uint8Array(await (await fetch(i.src)).arrayBuffer())).join()))"
    )
    return page.evaluate(read)


def line(page: Chromium, name: str) -> str:
    return page.evaluate(f"{explorer(name)}.querySelector('.vtamiq-line').innerText")


def handle(name: str, label: str) -> str:
    """The handle of the slider with that label."""
    labelled = (
        f"[...{explorer(name)}.querySelectorAll('.widget-inline-hbox')].find(e => e.innerText.startsWith('{label}'))"
    )
    return f"{labelled}.querySelector('.noUi-handle')"


def changed(page: Chromium, name: str, before: list[str]) -> list[bool]:
    """Which of the four pictures are others than before, once one is."""
    new = wait_for(lambda: (now := pictures(page, name)) != before and now, f"another picture of {name}")
    return [one != other for one, other in zip(before, new, strict=True)]


def keep_screenshot(page: Chromium, name: str, path: Path) -> None:
    page.evaluate(f"{explorer(name)}.scrollIntoView()")
    page.screenshot(path)
    if os.environ.get("VTAMIQ_SCREENSHOTS"):
        shutil.copy(path, os.environ["VTAMIQ_SCREENSHOTS"])


def nothing_wrong(page: Chromium) -> None:
    bad = "'.vtamiq-error, [data-mime-type=\"application/vnd.jupyter.stderr\"], [data-mime-type*=error]'"
    assert page.evaluate(f"[...document.querySelectorAll({bad})].map(e => e.innerText)") == []


def test_a_slider_moves_the_patches(page, tmp_path):
    before, said = pictures(page, "sampling"), line(page, "sampling")
    assert all(before)
    assert said.startswith("512 patches")
    page.click(handle("sampling", "patches"))
    page.press("ArrowLeft")
    assert changed(page, "sampling", before) == [False, False, False, True]
    assert line(page, "sampling").startswith("256 patches")
    before = pictures(page, "sampling")
    page.click(handle("sampling", "difference"))
    page.press("End")
    assert changed(page, "sampling", before)[:2] == [False, False]
    nothing_wrong(page)
    keep_screenshot(page, "sampling", tmp_path / "sampling.png")


def test_many_quick_moves_end_at_the_last(page):
    page.click(handle("sampling", "patches"))
    for key in ["ArrowRight", "ArrowLeft"] * 15 + ["End"]:
        page.press(key)
    wait_for(lambda: line(page, "sampling").startswith("8,192 patches"), "the last move")
    for key in ["ArrowLeft"] * 9 + ["Home"]:
        page.press(key)
    wait_for(lambda: line(page, "sampling").startswith("16 patches"), "the last move")
    nothing_wrong(page)


def test_all_weights_zero_is_said_and_gone_with_the_next_move(page, tmp_path):
    labels = ("difference", "centre", "uniform")
    for label in labels:
        page.click(handle("sampling", label))
        page.press("Home")
    error = f"{explorer('sampling')}.querySelector('.vtamiq-error')?.innerText"
    assert "must have a positive, finite sum" in wait_for(lambda: page.evaluate(error), "the error")
    keep_screenshot(page, "sampling", tmp_path / "error.png")
    page.press("End")
    wait_for(lambda: not page.evaluate(error), "the end of the error")
    nothing_wrong(page)


def test_head_of_attention(page, tmp_path):
    before, said = pictures(page, "attention"), line(page, "attention")
    page.click(handle("attention", "head"))
    page.press("ArrowRight")
    assert changed(page, "attention", before) == [False, False, True, True]
    assert line(page, "attention").split(";")[0] == said.split(";")[0]  # the score is the same
    nothing_wrong(page)
    keep_screenshot(page, "attention", tmp_path / "attention.png")


def test_a_slow_move_says_so_and_shifts_nothing(page, tmp_path):
    here, method = explorer("attention"), f"[...{explorer('attention')}.querySelectorAll('select')][2]"
    page.evaluate(
        "window.seen = []; new MutationObserver(() => "
        f"seen.push([{here}.innerText.includes('computing'), {here}.querySelector('img').offsetTop])"
        f").observe({here}.querySelector('.vtamiq-says'), {{childList: true, subtree: true}}); null"
    )
    before, top = pictures(page, "attention"), page.evaluate(f"{here}.querySelector('img').offsetTop")
    page.evaluate(f"{method}.value = 'occlusion'; {method}.dispatchEvent(new Event('change', {{bubbles: true}}))")
    assert changed(page, "attention", before)[:2] == [False, False]
    said, places = zip(*page.evaluate("seen"), strict=True)
    assert (said[0], said[-1]) == (True, False)
    assert set(places) == {top}
    nothing_wrong(page)
    keep_screenshot(page, "attention", tmp_path / "occlusion.png")


def test_two_files_are_scored(page, tmp_path):
    rng = np.random.default_rng(0)
    reference = np.kron(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), np.ones((20, 20, 1), np.uint8))
    paths = {name: tmp_path / f"{name}.png" for name in ("reference", "distorted")}
    write_png(paths["reference"], reference)
    write_png(paths["distorted"], 255 - reference)
    before = pictures(page, "score")
    button = f"[...{explorer('score')}.querySelectorAll('button')].find(e => e.innerText.includes('%s'))"
    page.click(button % "your files")
    wait_for(
        lambda: "Choose the reference" in page.evaluate(f"{explorer('score')}.innerText"), "the question for files"
    )
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    for name, path in paths.items():
        page.click(button % name)
        node = page.event("Page.fileChooserOpened")["backendNodeId"]
        page.call("DOM.setFileInputFiles", files=[str(path)], backendNodeId=node)
    assert changed(page, "score", before) == [True] * 4
    assert line(page, "score").startswith("q = ")
    nothing_wrong(page)
    keep_screenshot(page, "score", tmp_path / "score.png")


def test_nothing_is_cut_off_or_scrolls_sideways_in_a_narrow_window(page, tmp_path):
    page.call("Emulation.setDeviceMetricsOverride", width=1100, height=800, deviceScaleFactor=1, mobile=False)
    parts = "'.jp-OutputArea-output, .vtamiq-explorer, .vtamiq-explorer > *, .vtamiq-title, .vtamiq-line, .vtamiq-hint'"
    wide = f"[...document.querySelectorAll({parts})].filter(e => e.scrollWidth > e.clientWidth + 1)"
    wait_for(lambda: page.evaluate("innerWidth") == 1100, "the narrow window")
    for name in CELLS:
        keep_screenshot(page, name, tmp_path / f"narrow_{name}.png")
    assert page.evaluate(f"{wide}.map(e => e.className + e.innerText)") == []
