"""Run S6_MNIST.ipynb, or the notebook that is named, in place, and show what it prints as it comes.

The file is replaced if every cell has passed and the environment variable EPOCHS, which shortens a run, is not set.
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


def finish_figures(notebook: nbformat.NotebookNode) -> None:
    """Reduce the figures to 256 colours, and give each the caption in the Markdown cell below as alternative text."""
    below = ""
    for cell in reversed(notebook.cells):
        if cell.cell_type == "markdown":
            below = cell.source
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                image = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")
                small = io.BytesIO()
                image.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
                output.data["image/png"] = base64.b64encode(small.getvalue()).decode()
                caption = re.search(r"^\*(.*?)\*", below, re.DOTALL)
                output.metadata["image/png"] = {"alt": " ".join(caption[1].split()) if caption else ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", nargs="?", type=Path, default=ROOT / "S6_MNIST.ipynb")
    path = parser.parse_args().notebook.resolve()
    notebook = nbformat.read(path, as_version=4)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.touch()  # a folder that cannot be written should show before the training
    sys.stdout.reconfigure(errors="replace")  # a redirected Windows console may not know the bar's characters
    client = LiveClient(notebook, timeout=None, kernel_name="python3", coalesce_streams=True, record_timing=False,
                        store_widget_state=False, resources={"metadata": {"path": path.parent}})
    try:
        client.execute()
        if "EPOCHS" not in os.environ:
            finish_figures(notebook)
            nbformat.write(notebook, unfinished)
            unfinished.replace(path)
    except CellExecutionError as error:
        sys.exit(f"\n{path.name} was left as it was, since a cell failed: {error.ename}: {error.evalue}")
    except (KeyboardInterrupt, DeadKernelError):
        sys.exit(f"\n{path.name} was left as it was, since the run was interrupted or its kernel died")
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
