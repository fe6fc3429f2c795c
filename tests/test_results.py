"""What the README says is what the records hold."""

import statistics

import pytest
import torch

from benchmarks import accuracy, photos, robustness, speed
from utils import ROOT, TARGET, Config, Loader, check_assignment, code_hash, evaluate, load_run


@pytest.fixture(scope="module")
def stored():
    return load_run(ROOT / "S6_MNIST.pt")


def test_stored_weights_are_those_of_the_recipe_and_this_code(stored, test_set):
    model, config, run = stored
    assert config == Config()
    assert run["code"] == code_hash()
    loss, percent = evaluate(model, Loader(*test_set, config, torch.device("cpu"), train=False))
    assert percent == pytest.approx(run["history"][-1]["val_accuracy"], abs=0.02)  # another device rounds differently
    assert loss == pytest.approx(run["history"][-1]["val_loss"], rel=1e-2)
    assert all(passed for *_, passed in check_assignment(model, run["history"]))


def expected_lines(stored):
    """The sentences and rows of the README that hold numbers, made from the records."""
    _, config, run = stored
    last = run["history"][-1]["val_accuracy"]
    yield f"| validation accuracy, last epoch | at least {TARGET} % | **{last:.2f} %** in the run stored here |"
    for row in run["history"]:
        yield (f"epoch {row['epoch']:2}/{config.epochs} | training: loss {row['train_loss']:.4f}, accuracy "
               f"{row['train_accuracy']:.2f} % | validation: loss {row['val_loss']:.4f}, accuracy "
               f"{row['val_accuracy']:.2f} % | {row['seconds']:4.1f} s")
    yield f"Made on {run['environment']['device']}, {run['precision']} in training, seed {config.seed}."
    records = accuracy.read_records()
    where = "CPU, bfloat16"
    final = accuracy.summarise(accuracy.select(records, "final", 60_000, where))
    yield (f"The mean test accuracy of {final.n} seeds is **{final.mean:.2f} %**, after the last of {config.epochs} "
           "epochs.")
    for name in "final", "baseline", "two epochs", "one epoch":
        runs = accuracy.select(records, name, 60_000, where)
        n, mean, sd, low, high = accuracy.summarise(runs)
        epochs = runs[0]["settings"]["epochs"]
        yield f"| {name} | {epochs} | {n} | {mean:.3f} ± {sd:.3f} | {low:.2f} to {high:.2f} |"
    n, mean, sd, *_ = accuracy.summarise(accuracy.select(records, "final", 60_000, "CUDA, bfloat16"))
    yield f"On a GPU, {n} seeds of *final* end at {mean:.3f} ± {sd:.3f} %."
    parts = {name: accuracy.summarise(accuracy.select(records, name, 50_000)) for name in accuracy.PARTS}
    least = min(part.n for part in parts.values())
    worth = parts["final"].mean - parts["without BatchNorm"].mean
    yield (f"Dots are runs (at least {least} seeds each), diamonds means with standard errors. BatchNorm is worth "
           f"{worth:.2f} points; no other difference is significant here. Augmentation pays under distortion.")
    results = robustness.read_results()
    networks = {recipe: list(runs.values()) for recipe, runs in results["networks"].items()}
    final, baseline = ({(name, strength): statistics.mean(run["distortions"][i] for run in networks[recipe])
                        for i, (name, strength) in enumerate(results["cases"])} for recipe in ("final", "baseline"))
    noise, contrast = ("noise (standard deviation)", 0.3), ("contrast (factor)", 0.3)
    other = [statistics.mean(run["load_digits"] for run in networks[recipe]) for recipe in ("final", "baseline")]
    yield (f"Final recipe (baseline): {final[noise]:.1f} % ({baseline[noise]:.1f}) with noise of 0.3, "
           f"{final[contrast]:.1f} % ({baseline[contrast]:.1f}) at three tenths of the contrast, {other[0]:.1f} % "
           f"({other[1]:.1f}) on other people's handwriting.")
    cpu, gpu = speed.read_results(), speed.read_results(speed.RESULTS.with_name("h100-speed.json"))
    ratios = [speed.ratio(*(speed.epoch_seconds(part["pipelines"][name]) for name in ("conventional", "ours")))[0]
              for part in (cpu, gpu)]
    slow, slow_gpu, helped = (
        speed.seconds_to_accuracy(part, name) / speed.seconds_to_accuracy(part, "two epochs")
        for part, name in ((cpu, "conventional"), (gpu, "conventional"), (gpu, "conventional, workers")))
    mean_of_two = accuracy.summarise(accuracy.select(records, "two epochs", 60_000, where)).mean
    workers = speed.ratio(*(speed.epoch_seconds(gpu["workers"][name]) for name in ("without", "with")))[0]
    yield (f"An epoch is {ratios[0]:.1f} times as fast on a CPU, {ratios[1]:.1f} times on a GPU "
           f"({gpu['workers']['workers']} workers make the conventional loader {workers:.1f} times as fast). Two "
           f"epochs, {mean_of_two:.2f} % on average, end {slow:.0f} times as soon as a conventional run is at 99.4 % "
           f"on a CPU, {slow_gpu:.0f} times on a GPU ({helped:.0f} times with the workers).")
    kinds = photos.read_results()["kinds"]
    right = [statistics.mean(kinds[kind][method]["right"] for kind in photos.KINDS)
             for method in ("predict_digit", "simple")]
    yield (f"In {len(photos.KINDS)} kinds of light, pen and paper, simulated with test digits that the network knows, "
           f"{right[0]:.1f} % of the photos are classified correctly; with a simple preparation {right[1]:.1f} %.")


def test_numbers_of_the_readme_are_those_of_the_records(stored):
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").replace("\u00a0", " ").split())
    wrong = [line for line in expected_lines(stored) if " ".join(line.split()) not in text]
    assert wrong == [], "the README should say:\n" + "\n".join(wrong)
