"""Run S6_MNIST.ipynb, or the notebook that is named, in place: what it prints appears in the terminal as it comes.

The file is replaced only after every cell of a full run has passed. After a failure, and after a run that the
environment variable EPOCHS shortens, it stays as it was.
"""

import argparse
import base64
import io
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image

from utils import ROOT, Config, atomic_write, code_hash, get_config


class LiveClient(NotebookClient):
    """A client that also shows what the cells print."""

    def output(self, outs, msg, display_id, cell_index):
        if msg["msg_type"] == "stream":
            sys.stdout.write(msg["content"]["text"])
            sys.stdout.flush()
        return super().output(outs, msg, display_id, cell_index)


def shrink_figures(notebook: nbformat.NotebookNode) -> None:
    """Reduce the figures to 256 colours, which their lines and areas hardly need, so that the file stays below 1 MB."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    for output in (output for output in outputs if "image/png" in output.get("data", {})):
        image, small = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))), io.BytesIO()
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(small.getvalue()).decode()


def run(path: Path) -> None:
    """Run the notebook; SystemExit says why the file was left as it was."""
    config, full = get_config(), Config()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # the notebook names the code that it was stored with
        cell.source = re.sub(r'^CODE = "\w*"', f'CODE = "{code_hash()}"', cell.source, flags=re.MULTILINE)
        if re.search(r"^EPOCHS = (?!0\b)", cell.source, re.MULTILINE):
            sys.exit(f"{path.name} was left as it was, since its set-up sets EPOCHS: make it 0 for the full run")
    client = LiveClient(notebook, timeout=None, kernel_name="python3", coalesce_streams=True, record_timing=False,
                        store_widget_state=False, resources={"metadata": {"path": path.parent}},
                        extra_arguments=["--log-level=40"])  # errors only: new kernels warn of local connections
    try:
        client.execute()
    except (CellExecutionError, KeyboardInterrupt, DeadKernelError, AssertionError) as error:
        # Ctrl-C ends a run in one of these ways; only in the first, another exception may be the cause
        interrupted = getattr(error, "ename", "KeyboardInterrupt") == "KeyboardInterrupt"
        reason = "the run was interrupted or its kernel died" if interrupted else f"a cell failed:\n{error}"
        sys.exit(f"\n{path.name} was left as it was, since {reason}")
    if config != full:
        sys.exit(f"{path.name} was left as it was, since EPOCHS={config.epochs} shortened this run: unset it for the "
                 f"full run of {full.epochs}, which is stored")
    shrink_figures(notebook)
    atomic_write(path, lambda temporary: nbformat.write(notebook, temporary))
    print(f"{path.name} now holds the outputs of this run")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("notebook", nargs="?", type=Path, default=ROOT / "S6_MNIST.ipynb")
    sys.stdout.reconfigure(errors="replace")  # a redirected Windows console may not know the bar's characters
    try:
        run(parser.parse_args().notebook.resolve())
    except (ValueError, OSError) as error:  # a wrong EPOCHS, no such notebook, a full disk
        sys.exit(str(error))


if __name__ == "__main__":
    main()
