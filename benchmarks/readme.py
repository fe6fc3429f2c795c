"""Write the numbers of the records into README.md, where it marks them: python -m benchmarks.readme."""

import itertools
import json
import re
import statistics

from benchmarks import accuracy, photos, robustness, speed
from utils import ROOT

PAGE = ROOT / "README.md"
# a mark is a pair of comments, which GitHub does not show: <!-- final.mean -->99.60<!-- / -->
MARK = re.compile(r"<!-- ([\w.]+) -->(.*?)<!-- / -->")


def numbers() -> dict[str, str]:
    """Each number as the page shows it, by its name."""
    found, records = {}, accuracy.read_records()
    platforms = sorted({accuracy.platform(record) for record in records})
    for recipe in "final", "baseline":
        by_platform = [accuracy.select(records, recipe, on=platform) for platform in platforms]
        runs = max(by_platform, key=len)  # of the platform that has most seeds
        summary = accuracy.summarise(runs)
        found |= {f"{recipe}.n": f"{summary.n}", f"{recipe}.mean": f"{summary.mean:.2f}",
                  f"{recipe}.sd": f"{summary.sd:.2f}", f"{recipe}.low": f"{summary.minimum:.2f}",
                  f"{recipe}.high": f"{summary.maximum:.2f}", f"{recipe}.epochs": f"{len(runs[0]['accuracy'])}",
                  f"{recipe}.platform": runs[0]["precision"],
                  f"{recipe}.calibration": f"{statistics.mean(run['calibration_error'] for run in runs):.2f}"}
    for recipe, networks in json.loads(robustness.RESULTS.read_text(encoding="utf-8"))["networks"].items():
        recipe = recipe.split()[-1]  # looks, of "without other looks"
        runs = list(networks.values())
        by_network = [statistics.mean(robustness.mean_by_corruption([run]).values()) for run in runs]
        found |= {f"{recipe}.mnist_c": f"{statistics.mean(by_network):.1f}",
                  f"{recipe}.mnist_c_low": f"{min(by_network):.1f}", f"{recipe}.mnist_c_high": f"{max(by_network):.1f}",
                  f"{recipe}.worst": f"{min(robustness.mean_by_corruption(runs).values()):.0f}",
                  f"{recipe}.networks": f"{len(runs)}"}
        for measure, name in itertools.product(("sure", "sure and known"), runs[0]["sure"]):
            share = statistics.mean(run[measure][name] for run in runs)
            found[f"{recipe}.{measure.split()[-1]}_{name.split()[-1]}"] = f"{share:.1f}"
    for recipe in "final", "without outliers":
        runs = accuracy.select(records, recipe, split=True)
        for name in runs[0]["sure"]:
            share = statistics.mean(run["sure"][name] for run in runs)
            found[f"parts.{recipe.split()[-1]}_{name.split()[-1]}"] = f"{share:.0f}"
    record = json.loads(photos.RESULTS.read_text(encoding="utf-8"))
    real = record["real"]["kinds"]
    one, simple = real["all"]["predict_digit"], real["all"]["predict_simply"]
    several = real["several"]["predict_digits"]
    found |= {"photos.n": f"{one['pictures']}", "photos.right": f"{one['right']:.1f}",
              "photos.sure": f"{one['right_and_sure']:.1f}", "photos.simple": f"{simple['right']:.1f}",
              "photos.digits": f"{several['digits']}", "photos.several": f"{several['right']:.1f}"}
    for method in "predict_digit", "predict_simply":
        share = statistics.mean(record["simulated"]["kinds"][kind][method]["right"] for kind in photos.KINDS)
        found[f"simulated.{method}"] = f"{share:.1f}"
    pipelines = json.loads(speed.RESULTS.read_text(encoding="utf-8"))["pipelines"]["measured"]
    found["speed.ratio"] = f"{speed.ratio(pipelines['conventional'], pipelines['ours'])[0]:.1f}"
    return found


def fill(page: str, values: dict[str, str]) -> str:
    """The page with every marked number replaced; KeyError names a mark that has none."""
    return MARK.sub(lambda mark: f"<!-- {mark[1]} -->{values[mark[1]]}<!-- / -->", page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), numbers()), encoding="utf-8")
