"""Files that are whole or not there at all, and the state of a training in one of them, to go on from."""

import io
from collections.abc import Callable
from pathlib import Path

import torch


def write_whole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary file that then takes the place of `path`: a failure leaves the old file whole."""
    path = Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        raise OSError(f"{path} was not written ({error}): free some space or make its folder writable") from error
    finally:
        part.unlink(missing_ok=True)


def random_stream(device: torch.device):
    """The module that gets and sets the state of the stream which Dropout on this device draws from."""
    return torch if device.type == "cpu" else torch.get_device_module(device)


def save_checkpoint(path: str | Path, parts: list, recipe: dict, device: torch.device, history: list[dict]) -> None:
    """Write all that the rest of a run depends on: the state of its parts, its recipe and the stream behind Dropout.

    The parts are what has a `state_dict`: networks, optimizers, schedules.
    """
    state = {"parts": [part.state_dict() for part in parts], "recipe": recipe, "history": history,
             "random": random_stream(device).get_rng_state()}
    write_whole(path, lambda part: torch.save(state, part))


def load_checkpoint(path: str | Path, parts: list, recipe: dict, device: torch.device) -> list[dict]:
    """Restore what `save_checkpoint` wrote and return its history, which is empty without a file.

    A damaged file is renamed, and said to be. ValueError names one that is of another recipe or network, or of
    something else.
    """
    path = Path(path)
    if not path.exists():
        return []
    content = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)  # never runs code from the file
    except Exception as error:  # whatever damage does to the reading of a file
        damaged = path.replace(path.with_name(f"{path.name}.damaged"))
        print(f"{path} is damaged ({type(error).__name__}) and now named {damaged.name}: training starts afresh")
        return []
    try:
        saved = state["recipe"]
        if changed := [name for name in {**saved, **recipe} if saved.get(name) != recipe.get(name)]:
            raise ValueError(", ".join(f"{name} was {saved.get(name)} and is {recipe.get(name)}" for name in changed))
        for part, values in zip(parts, state["parts"], strict=True):
            part.load_state_dict(values)
        random_stream(device).set_rng_state(state["random"])
        return state["history"]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])  # PyTorch names every single weight
        raise ValueError(f"{path} is no checkpoint of this recipe and network ({reason}): name another file as the "
                         "checkpoint, or remove this one if you do not need it") from error
