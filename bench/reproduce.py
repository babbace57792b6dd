"""The results of the article on convolutional autoencoders in TensorFlow, made again.

    python bench/reproduce.py --data-dir DIR

trains single-layer with the article's hyper-parameters (Adam, learning rate 1e-5, batches of 1,024
images, 150 epochs) on MNIST and CIFAR-10, with and without the L2 penalty, from several seeds, and
writes bench/results/reproduction.json, the table in docs/reproduction.md and the loss curves. A run
takes about a quarter of an hour on two cores; whatever was stopped goes on where it was, finished
runs are only read. The article's code scaled MNIST to [-0.5, 0.5] and had a linear decoder when the
article appeared; that is a setting of its own. `--finished` trains nothing and reads the runs that
are there; `--write-only` writes the document again from the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provenance import provenance

from cae_raw.files import atomic_write
from cae_raw.training.checkpoint import load as load_checkpoint
from cae_raw.training.config import TrainConfig
from cae_raw.training.run_dir import RunDir

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "reproduction.json"
DOCUMENT = ROOT / "docs" / "reproduction.md"
CURVES = ROOT / "docs" / "pictures" / "reproduction-curves.png"
BEGIN, END = "<!-- table: bench/reproduce.py -->", "<!-- end of table -->"

# half_mse as the article prints it: (data set, L2) to (validation, test). CIFAR-10's validation set
# is its test set, and only one figure is given.
ARTICLE = {
    ("mnist", 0.0): (0.00216, 0.00215),
    ("mnist", 1e-9): (0.00225, 0.00223),
    ("cifar10", 0.0): (0.02541, 0.02541),
    ("cifar10", 1e-9): (0.03058, 0.03058),
}


@dataclass(frozen=True)
class Setting:
    """One row of the table: what is trained, apart from the seed."""

    dataset: str
    l2: float
    name: str = "the article's text"
    input_range: tuple[float, float] | None = None
    decoder_activation: str | None = None

    def command(self, seed: int) -> list[str]:
        """The arguments of cae-raw, without where data and runs lie."""
        words = ["train", "--dataset", self.dataset, "--lr", "1e-5", "--batch-size", "1024"]
        words += ["--epochs", "150", "--seed", str(seed)]
        words += ["--l2-penalty", f"{self.l2:g}"] if self.l2 else []
        if self.input_range is not None:
            words += ["--input-range", *map(str, self.input_range)]
        if self.decoder_activation is not None:
            words += ["--decoder-activation", self.decoder_activation]
        return words

    def run(self, seed: int, runs_dir: Path) -> RunDir:
        """Where that command leaves its run."""
        config = TrainConfig(
            dataset=self.dataset,
            lr=1e-5,
            batch_size=1024,
            seed=seed,
            l2_penalty=self.l2,
            input_range=self.input_range,
            decoder_activation=self.decoder_activation,
        )
        return RunDir(runs_dir / config.run_name())


SETTINGS = [Setting(d, l2) for d in ("mnist", "cifar10") for l2 in (0.0, 1e-9)]
SETTINGS.append(Setting("mnist", 0.0, "its first code", (-0.5, 0.5), "none"))


def train(setting: Setting, seed: int, data_dir: Path | None, runs_dir: Path) -> dict[str, Any]:
    """Train one run, or read it if it is finished; its figures."""
    words = [*setting.command(seed), "--runs-dir", str(runs_dir), "--json"]
    words += [] if data_dir is None else ["--data-dir", str(data_dir)]
    command = [sys.executable, "-m", "cae_raw", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    outcome = json.loads(done.stdout)
    if not outcome["finished"]:
        raise SystemExit("stopped; the same command goes on")
    return {
        **asdict(setting),
        "seed": seed,
        "command": " ".join(["cae-raw", *setting.command(seed)]),
        "run": Path(outcome["run"]).name,
        "validation": outcome["validation"]["half_mse"],
        "test": outcome["test"]["half_mse"],
        "best_epoch": outcome["best_epoch"],
        "minutes": outcome["seconds"] / 60,
        "curve": curve(RunDir(Path(outcome["run"]))),
    }


def curve(run: RunDir) -> dict[str, list[float]]:
    """half_mse by epoch, four significant digits."""
    history = load_checkpoint(run.last).state["history"]
    return {
        split: [float(f"{row[f'{split}_half_mse']:.4g}") for row in history]
        for split in ("train", "validation")
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a line per setting, means over seeds and how far apart the seeds are."""
    lines = [
        "| data set, L2 | setting | seeds | validation half_mse | test half_mse "
        "| the article | minutes a run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["dataset"], run["l2"], run["name"]), []).append(run)
    for (dataset, l2, name), group in groups.items():
        validation, test = ARTICLE[dataset, l2]
        printed = f"{validation}" if validation == test else f"{validation} / {test}"
        lines.append(
            f"| {dataset}, {f'{l2:g}' if l2 else 'none'} | {name} "
            f"| {', '.join(str(run['seed']) for run in group)} "
            f"| {spread([run['validation'] for run in group])} "
            f"| {spread([run['test'] for run in group])} | {printed} "
            f"| {statistics.mean(run['minutes'] for run in group):.0f} |"
        )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """The mean, and from where to where the seeds go."""
    mean = f"{statistics.mean(values):.5f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.5f} to {max(values):.5f})"


def draw(runs: list[dict[str, Any]]) -> None:
    """Four curves as in the article, a panel per data set; other seeds are drawn thin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, dataset in zip(panels, ("mnist", "cifar10"), strict=True):
        of_l2 = (0.0, "tab:blue", "no penalty"), (1e-9, "tab:orange", "L2 1e-9")
        for l2, colour, label in of_l2:
            group = [r for r in runs if (r["dataset"], r["l2"]) == (dataset, l2)]
            group = [run for run in group if run["name"] == SETTINGS[0].name]
            for i, run in enumerate(group):
                for split, style in (("train", "--"), ("validation", "-")):
                    values = run["curve"][split]
                    axes.semilogy(
                        range(1, len(values) + 1), values, style, color=colour,
                        linewidth=1.6 if i == 0 else 0.6,
                        label=f"{label}, {split}" if i == 0 else None,
                    )  # fmt: skip
            if group:
                axes.axhline(ARTICLE[dataset, l2][0], color=colour, linestyle=":", linewidth=1)
        axes.set_title(f"{dataset}; dotted: the article's validation figure")
        axes.set_xlabel("epoch")
        axes.set_ylabel("half_mse")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    CURVES.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(CURVES, dpi=90)


def write(runs: list[dict[str, Any]]) -> None:
    """The document's table and the curves, from the results."""
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    atomic_write(DOCUMENT, f"{before}{BEGIN}\n{table(runs)}\n{END}{after}".encode())
    draw(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs-reproduction"))
    parser.add_argument("--datasets", nargs="+", default=["mnist", "cifar10"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--l2", nargs="+", type=float, default=[0.0, 1e-9])
    parser.add_argument(
        "--finished", action="store_true", help="read the runs that are there, train no other"
    )
    parser.add_argument("--write-only", action="store_true")
    arguments = parser.parse_args()

    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    if not arguments.write_only:
        for setting in SETTINGS:
            if setting.dataset not in arguments.datasets or setting.l2 not in arguments.l2:
                continue
            for seed in arguments.seeds:
                done = setting.run(seed, arguments.runs_dir).read_results("test") is not None
                if arguments.finished and not done:
                    continue
                new = train(setting, seed, arguments.data_dir, arguments.runs_dir)
                runs = [r for r in runs if r["command"] != new["command"]] + [new]
                runs.sort(key=lambda run: (run["dataset"], run["l2"], run["name"], run["seed"]))
                text = json.dumps({**provenance(), "runs": runs}, indent=1)
                atomic_write(RESULTS, (text + "\n").encode())
    write(runs)


if __name__ == "__main__":
    main()
