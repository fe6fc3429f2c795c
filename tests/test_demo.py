"""The page docs/index.html, in a real browser and by real events, does what Python does."""

import base64
import json
import shutil
import subprocess

import pytest
import torch
import websocket

from benchmarks.demo import PAGE, write_page
from mnist import normalise
from model import layer_table
from utils import ROOT, load_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--remote-debugging-port=0"]
DRAWINGS = [  # a digit and its strokes, as points on a sheet of 100×100
    (0, "50,15 28,28 24,55 36,82 55,86 74,68 76,40 66,20 50,15"), (7, "26,20 72,18 60,45 46,88", "40,52 72,50"),
    (8, "64,26 48,16 34,28 44,44 62,58 66,76 50,87 34,76 40,58 60,40 64,26"), (1, "38,30 56,14 55,50 54,86"),
    (5, "36,18 33,45 52,42 70,54 68,76 48,86 28,80", "36,18 70,16"), (7, "26,20 50,19 72,18 60,45 46,88"),
    (3, "30,22 50,14 68,26 60,42 46,48 66,56 70,74 52,87 28,80"), (1, "52,14 50,50 48,86"),
    (2, "28,32 40,16 62,17 68,34 54,56 28,84 74,84"), (4, "36,16 30,40 28,54 50,54 74,52", "62,30 58,88"),
    (6, "62,14 42,32 30,60 36,82 54,86 68,72 60,56 44,56 32,68"), (9, "66,32 52,18 34,28 36,46 54,50 66,34 60,88")]
pytestmark = pytest.mark.skipif(BROWSER is None, reason="neither Chromium nor Chrome is on the PATH")


class Browser:
    def __init__(self, folder):
        """The page in a headless browser, which takes the commands of Chrome's DevTools protocol."""
        command = [BROWSER, f"--user-data-dir={folder}", *FLAGS]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        address = next(line.split()[-1] for line in self.process.stderr if "ws://" in line)
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.number, self.events, self.session = 0, [], {}
        tab = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=tab, flatten=True)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.page = folder / "page.html"
        write_page(self.page)
        self.send("Page.navigate", url=self.page.as_uri())

    def send(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params, **self.session}))
        while (message := json.loads(self.socket.recv())).get("id") != self.number:
            self.events.append(message)
        return message["result"]

    def run(self, expression):
        """The value of an expression after the page has been drawn anew."""
        wait = "do await new Promise(requestAnimationFrame); while (document.readyState !== 'complete')"
        script = f"(async () => {{ {wait}; return {expression}; }})()"
        reply = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def places(self, target, points):
        """Where in the window points of an element lie, which are in percent of its width and height."""
        box = self.run(f"({target}.scrollIntoView({{block: 'center'}}), {target}.getBoundingClientRect().toJSON())")
        return [{"x": box["x"] + x * box["width"] / 100, "y": box["y"] + y * box["height"] / 100} for x, y in points]

    def mouse(self, kind, place):
        self.send("Input.dispatchMouseEvent", type=f"mouse{kind}", button="left", buttons=1, clickCount=1, **place)

    def key(self, key, presses=1, **params):
        for press in range(presses):
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, autoRepeat=press > 0, **params)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **params)

    def draw(self, strokes):
        """Draw with the mouse on an empty sheet; the answer."""
        self.key("Escape")
        for stroke in strokes:
            places = self.places("sheet", [map(float, point.split(",")) for point in stroke.split()])
            for kind, at in [("Pressed", places[0]), *(("Moved", place) for place in places), ("Released", places[-1])]:
                self.mouse(kind, at)
        return self.run("element('digits').textContent")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("page"))
    yield browser
    browser.send("Browser.close")
    browser.process.wait(30)


def test_page_holds_the_weights_of_git(browser):
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "S6_MNIST.pt"], cwd=ROOT).returncode:
        pytest.skip("S6_MNIST.pt is not that of git")
    assert browser.page.read_bytes() == PAGE.read_bytes(), "run 'python -m benchmarks.demo'"


@torch.no_grad()
def test_logits_are_those_of_pytorch(browser, test_set):
    images = test_set[0][:300].float() / 255
    texts = [base64.b64encode(image.numpy().tobytes()).decode() for image in images]
    logits = browser.run(f"{texts}.map(text => forward(new Float32Array(decode(text).buffer)).logits)")
    expected = load_run(ROOT / "S6_MNIST.pt")[0](normalise(images))
    assert torch.allclose(torch.tensor(logits), expected, rtol=0, atol=1e-3)


def test_digits_drawn_by_the_mouse(browser):
    right = 0
    for width, drawings in ((400, DRAWINGS[::2]), (1280, DRAWINGS[1::2])):
        browser.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        assert browser.run("document.documentElement.scrollWidth") <= width
        right += sum(browser.draw(strokes) == str(digit) for digit, *strokes in drawings)
    assert right >= 11
    assert browser.draw(["60,30 80,30 70,70", "25,30 23,70"]) == "17"


def test_one_pointer_draws(browser):
    browser.key("Escape")
    for kind, *points in (("Start", (30, 20)), ("Start", (30, 20), (80, 80)), ("Move", (30, 50), (60, 90)),
                          ("Move", (30, 80)), ("End",)):
        fingers = [place | {"id": number} for number, place in enumerate(browser.places("sheet", points))]
        browser.send("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=fingers)
    assert browser.run("strokes.length === 1 && strokes[0].every(({x}) => Math.abs(x - 30) < 1)")


def test_keys_draw_and_a_held_key_is_one_press(browser):
    browser.run("[clear(), sheet.focus()]")
    for key, presses in ((" ", 4), ("ArrowDown", 15), (" ", 1), (" ", 1)):
        browser.key(key, presses)
    browser.key("Z", presses=3, modifiers=2)  # Ctrl+Z with Caps Lock
    assert browser.run("[strokes.length, element('digits').textContent]") == [1, "1"]


def test_a_cell_sees_its_receptive_field_and_nothing_else(browser):
    fields = {row.output[-1]: row.receptive_field for row in layer_table(load_run(ROOT / "S6_MNIST.pt")[0])[:-1]}
    browser.mouse("Moved", *browser.places("views.transition[3]", [(99, 30)]))
    assert browser.run("[cell.map, cell.x, cell.y]") == [3, 10, 3]
    for number, size in enumerate((26, 22, 11, 5, 5)):
        browser.run(f"document.querySelectorAll('.maps')[{number}].focus()")
        browser.key("ArrowLeft")
        middle = f"receptiveField({{...cell, x: {size // 2}, y: {size // 2}}})"  # at the edge it is cut off
        assert browser.run(f"[{middle}.width, {middle}.height]") == [fields[size]] * 2
        assert browser.run("""(({x, y, width, height}) => {
            const isSeen = (i) => i >= 28 * y && i < 28 * (y + height) && i % 28 >= x && i % 28 < x + width;
            const others = shown.pixels.map((value, i) => isSeen(i) ? value : 1 - value);
            const responseOf = ({[cell.stage]: maps}) => maps.values[indexOf(maps, cell.map, cell.y, cell.x)];
            return responseOf(forward(others)) === responseOf(shown.result); })(receptiveField(cell))""")


def test_page_is_quiet(browser):
    methods = [event["method"] for event in browser.events]
    assert not {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"} & set(methods)
    assert methods.count("Network.requestWillBeSent") == 1  # for the page itself
