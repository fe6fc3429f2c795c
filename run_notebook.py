"""Run S6_MNIST.ipynb, or the notebook that is named, in place, and show what it prints as it comes.

The file is replaced only after a full run, in which every cell has passed: not after a failure, nor after a run that
the environment variable EPOCHS shortens.
"""

import argparse
import asyncio
import base64
import io
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image

from utils import ROOT


class LiveClient(NotebookClient):
    """A client that also shows what the cells print, and that Ctrl-C ends by KeyboardInterrupt."""

    async def async_start_new_kernel(self, **kwargs):
        with suppress(NotImplementedError):  # on Windows
            asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)  # whose handler would end in tracebacks
        await super().async_start_new_kernel(stderr=subprocess.DEVNULL, **kwargs)  # the kernel's own last words

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().output(outs, msg, display_id, cell_index)


def shrink(png: str) -> str:
    """A figure with 256 colours, which its lines and areas hardly need, so that the notebook stays below 1 MB."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def finish_figures(notebook: nbformat.NotebookNode) -> None:
    """Make the figures small, and give each the caption in the Markdown cell below as its alternative text."""
    below = ""
    for cell in reversed(notebook.cells):
        if cell.cell_type == "markdown":
            below = cell.source
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = shrink(output.data["image/png"])
                caption = below.partition("*")[2].partition("*")[0] if below.startswith("*") else ""
                caption = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", " ".join(caption.split()))  # links as their texts
                output.metadata["image/png"] = {"alt": caption}


def run(path: Path) -> None:
    """Run the notebook; SystemExit says why the file was left as it was."""
    notebook = nbformat.read(path, as_version=4)
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        sys.exit(f"{path} cannot be written: make the file and its folder writable")
    client = LiveClient(notebook, timeout=None, kernel_name="python3", coalesce_streams=True, record_timing=False,
                        store_widget_state=False, resources={"metadata": {"path": path.parent}})
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"\n{path.name} was left as it was, since a cell failed: {error.ename}: {error.evalue}")
    except (KeyboardInterrupt, DeadKernelError):
        sys.exit(f"\n{path.name} was left as it was, since the run was interrupted or its kernel died")
    if "EPOCHS" in os.environ:
        print(f"{path.name} was left as it was, since EPOCHS shortened this run")
        return
    finish_figures(notebook)
    unfinished = path.with_name(f".{path.name}.part")
    nbformat.write(notebook, unfinished)
    unfinished.replace(path)
    print(f"{path.name} now holds the outputs of this run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", nargs="?", type=Path, default=ROOT / "S6_MNIST.ipynb")
    sys.stdout.reconfigure(errors="replace")  # a redirected Windows console may not know the bar's characters
    run(parser.parse_args().notebook.resolve())


if __name__ == "__main__":
    main()
