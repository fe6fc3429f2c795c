"""The page docs/index.html holds the stored weights and, in a real browser, does what Python does."""

import base64
import io
import itertools
import json
import os
import select
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.demo import BLOCK, PAGE, page_data
from handwriting import classify, prepare_digit, stored_network
from utils import normalise

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]
DIGITS = [  # the strokes of each digit, as points on a sheet of 100×100
    ["50,15 28,28 24,55 36,82 55,86 74,68 76,40 66,20 50,15"], ["52,14 50,50 48,86"],
    ["28,32 40,16 62,17 68,34 54,56 28,84 50,82 74,84"], ["30,22 50,14 68,26 60,42 46,48 66,56 70,74 52,87 28,80"],
    ["36,16 30,40 28,54 50,54 74,52", "62,30 60,60 58,88"], ["70,16 50,17 36,18 33,45 52,42 70,54 68,76 48,86 28,80"],
    ["62,14 42,32 30,60 36,82 54,86 68,72 60,56 44,56 32,68"], ["26,20 50,19 72,18 60,45 46,88"],
    ["64,26 48,16 34,28 44,44 62,58 66,76 50,87 34,76 40,58 60,40 64,26"],
    ["66,32 52,18 34,28 36,46 54,50 66,34 66,50 62,70 56,88"]]


class Browser:
    """The page in a headless browser, which takes the commands of Chrome's DevTools protocol from a pipe."""

    def __init__(self, folder):
        (commands, self.commands), (self.replies, replies) = os.pipe(), os.pipe()
        pipes = f'exec "$0" "$@" 3<&{commands} 4>&{replies}'
        self.process = subprocess.Popen(["bash", "-c", pipes, BROWSER, f"--user-data-dir={folder}", *FLAGS],
                                        pass_fds=(commands, replies), stderr=subprocess.DEVNULL)
        os.close(commands)
        os.close(replies)
        self.numbers, self.received, self.events, self.session = itertools.count(), b"", [], {}
        tab = self.send("Target.createTarget", url="about:blank")
        self.session = self.send("Target.attachToTarget", **tab, flatten=True)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.navigate", url=PAGE.as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def send(self, method, **params):
        command = {"id": next(self.numbers), "method": method, "params": params, **self.session}
        os.write(self.commands, json.dumps(command).encode() + b"\0")
        while True:
            while b"\0" not in self.received:
                assert select.select([self.replies], [], [], 60)[0], f"no answer to {method} within a minute"
                self.received += (part := os.read(self.replies, 1 << 16))
                assert part, "the browser has ended"
            message, self.received = self.received.split(b"\0", 1)
            message = json.loads(message)
            if message.get("id") == command["id"]:
                return message["result"]
            self.events.append(message)

    def run(self, script):
        reply = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def answer(self):
        """What the page says after it has been drawn anew."""
        return self.run("new Promise(done => requestAnimationFrame(() => done(element('words').textContent)))")

    def draw(self, strokes):
        """Draw by the functions that the page's own events call."""
        self.run(f"""clear(); {json.dumps(strokes)}.forEach(points => {{
            points.forEach(([x, y], i) => i ? extend({{x, y}}) : begin({{x, y}})); end(); }})""")
        return self.answer()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not BROWSER or os.name == "nt":
        pytest.skip("no Chromium or Chrome is on the PATH, in which docs/index.html could be tested")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.send("Browser.close")
    browser.process.wait(30)


def drawing(digit, rng):
    """The points of a digit's strokes, turned, scaled, moved and shaken by random amounts."""
    angle, scale, shift = rng.uniform(-0.15, 0.15), rng.uniform(0.6, 1), rng.uniform(-8, 8, 2)
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    strokes = [np.array([point.split(",") for point in stroke.split()], dtype=float) for stroke in DIGITS[digit]]
    return [((points - 50) @ turn + 50 + shift + rng.normal(0, 1, points.shape)).tolist() for points in strokes]


def decode_image(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_page_holds_the_stored_weights():
    page, expected = PAGE.read_text(encoding="utf-8"), json.loads(json.dumps(page_data()))
    data, message = json.loads(BLOCK.search(page)[0]), "run 'python -m benchmarks.demo'"
    for content in (data, expected):  # the same picture may be compressed in different ways
        content["samples"] = [sample | {"png": decode_image(sample["png"]).tobytes()} for sample in content["samples"]]
    assert data == expected, message
    assert len(page.encode()) < 150_000


@torch.no_grad()
def test_logits_and_probabilities_are_those_of_python(browser, test_set):
    images = test_set[0][:500]
    logits, probabilities = map(torch.tensor, browser.run(f"""
        const bytes = atob("{base64.b64encode(images.numpy().tobytes()).decode()}"), results = [[], []];
        for (let n = 0; n < 500; n++) {{
            const pixels = Float32Array.from({{ length: 784 }}, (_, i) => bytes.charCodeAt(784 * n + i) / 255);
            const {{ logits }} = forward(pixels);
            results[0].push(Array.from(logits));
            results[1].push(toProbabilities(pixels, logits));
        }}
        results"""))
    expected = stored_network()(normalise(images.float() / 255))
    assert torch.allclose(logits, expected, rtol=0, atol=1e-3)
    expected = classify(list(images[:, 0].numpy() / np.float32(255)), None)
    assert torch.allclose(probabilities, expected, rtol=0, atol=1e-3)


def test_drawings_are_prepared_as_in_python_and_classified(browser):
    rng, correct = np.random.default_rng(0), 0
    for digit in list(range(10)) * 10:
        correct += browser.draw(drawing(digit, rng)).startswith(f"This is a {digit}")
        png, pixels = browser.run("[paper.toDataURL().split(',')[1], Array.from(currentDigit())]")
        assert abs(np.reshape(pixels, (28, 28)) - prepare_digit(decode_image(png)).digit).max() <= 1 / 255
    assert correct >= 97


@pytest.mark.parametrize(("width", "digits"), [(400, range(5)), (1280, range(5, 10))])
def test_digits_drawn_by_the_mouse(browser, width, digits):
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    assert browser.run("document.documentElement.scrollWidth") <= width
    for digit in digits:
        browser.run("clear(); scrollTo(0, 0)")
        left, top, side = browser.run("(box => [box.left, box.top, box.width])(canvas.getBoundingClientRect())")
        for points in drawing(digit, np.random.default_rng(digit)):
            kinds = ["Pressed", *["Moved"] * (len(points) - 1), "Released"]
            for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
                browser.send("Input.dispatchMouseEvent", type=f"mouse{kind}", x=left + x * side / 100,
                             y=top + y * side / 100, button="left", buttons=int(kind != "Released"), clickCount=1)
        assert browser.answer().startswith(f"This is a {digit}")


def test_what_is_no_digit_meets_with_doubt(browser):
    assert browser.draw([]).startswith("Draw a digit")
    scribble = np.random.default_rng(2).uniform(20, 80, (30, 2)).tolist()
    for strokes in ([[(50, 50)]], [[(50, 50), (53, 52)]], [scribble]):
        assert "This is a" not in browser.draw(strokes)
        assert browser.run("element('digit').textContent") == "?"
    strokes = [[(70, 15), (30, 15), (30, 85)], [(30, 50), (60, 50)]]  # F
    assert browser.draw(strokes).startswith("This looks like no digit")


def test_page_is_quiet(browser):
    """No message on the console, and no request but that for the page itself."""
    methods = [event["method"] for event in browser.events]
    assert not {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"} & set(methods)
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith("data:")] == [PAGE.as_uri()]
