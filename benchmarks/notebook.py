"""Execute S6_MNIST.ipynb in place: its printed output and progress bars appear in the terminal as they come.

The file is replaced only after every cell of a full run has passed. After a failure, and after a run that the
environment variable EPOCHS shortens, it stays as it was.
"""

import argparse
import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from checkpoint import write_whole  # noqa: E402
from utils import Config, config_from_environment  # noqa: E402

NOTEBOOK = ROOT / "S6_MNIST.ipynb"


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


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        config, full = config_from_environment(), Config()
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.reconfigure(errors="replace")  # a redirected Windows console may not know the bar's characters
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = LiveClient(notebook, timeout=None, kernel_name="python3", coalesce_streams=True, record_timing=False,
                        store_widget_state=False, resources={"metadata": {"path": NOTEBOOK.parent}},
                        extra_arguments=["--log-level=40"])  # errors only: new kernels warn of local connections
    try:
        client.execute()
    except (CellExecutionError, KeyboardInterrupt, DeadKernelError, AssertionError) as error:
        # Ctrl-C ends a run in one of these ways; only in the first, another exception may be the cause
        interrupted = getattr(error, "ename", "KeyboardInterrupt") == "KeyboardInterrupt"
        reason = "the run was interrupted or its kernel died" if interrupted else f"a cell failed:\n{error}"
        sys.exit(f"\n{NOTEBOOK.name} was left as it was, since {reason}")
    if config != full:
        print(f"{NOTEBOOK.name} was left as it was, since EPOCHS={config.epochs} shortened this run: unset it for the "
              f"full run of {full.epochs}, which is stored")
        return
    shrink_figures(notebook)
    write_whole(NOTEBOOK, lambda part: nbformat.write(notebook, part))
    print(f"{NOTEBOOK.name} now holds the outputs of this run")


if __name__ == "__main__":
    main()
