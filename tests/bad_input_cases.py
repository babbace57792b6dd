"""Bad input and what each prints: the rows behind test_bad_input.py and the table in README.md.

`python tests/bad_input_cases.py` prints that table.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cli_runner import picture
from lmdb_cases import key, pixels, record, write
from PIL import Image

from cae_raw.files import TEMPORARY

RUN = "runs/single-layer/shapes_adam_lr=0.001_b=16_f=2"
MNIST = ("train-images", "train-labels", "t10k-images", "t10k-labels")


class Row(NamedTuple):
    """One thing that a difficult user tries.

    tried: words for the table; empty where the command says it.
    words: the command without `cae-raw`; `--device cpu` and small sizes are added by the test.
    line: what stands after `cae-raw: error: `; three dots stand for any text.
    status: the exit status.
    """

    tried: str
    words: str
    line: str
    status: int = 2
    prepare: Callable[[], object] = lambda: None


def cut(path: str, share: float = 0.5) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: int(len(data) * share)])


def flip_a_bit(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[-7] ^= 4
    Path(path).write_bytes(data)


def two_runs() -> None:
    shutil.copytree(RUN, "runs/single-layer/another")


def web_pages() -> None:
    Path("data").mkdir()
    for name, rank in zip(MNIST, (3, 1, 3, 1), strict=True):
        Path(f"data/{name}-idx{rank}-ubyte").write_text("<!DOCTYPE html><html></html>")


def large_image() -> None:
    Image.new("1", (20_000, 20_000)).save("map.png")


def database(*records: bytes) -> Callable[[], object]:
    """Makes photos.lmdb of these records."""
    return lambda: write(Path("photos.lmdb"), ((key(i), r) for i, r in enumerate(records)))


def good_records(n: int = 20) -> list[bytes]:
    return [record(image) for image in pixels(n, (3, 16, 16))]


def truncated_database() -> None:
    database(*good_records())()
    cut("photos.lmdb/data.mdb")


def bad_record(**fields: object) -> Callable[[], object]:
    """A database whose first record has these fields instead of good ones."""
    (image,) = pixels(1, (3, 16, 16))
    return database(record(image, **fields), *good_records())


def unfinished_database() -> None:
    database(*good_records())()
    Path("photos.lmdb").rename(f".photos.lmdb.0123{TEMPORARY}")


LMDB = "train --dataset lmdb --data-dir photos.lmdb"
RECORD = "photos.lmdb: record '00000000_images/0.jpg'"

TABLE = (
    # --- options
    Row("", "train --lr nan", "--lr must be above 0 and finite, not nan"),
    Row("", "train --lr fast", "Invalid value for '--lr': ...; see `cae-raw train --help`"),
    Row("", "train --bach-size 64", "No such option: --bach-size ...; see `cae-raw train --help`"),
    Row("", "train --batch-size 0", "--batch-size must be at least 1, not 0"),
    Row("", "train --filters 1000000", "--filters must be at most 65536, not 1000000"),
    Row("", "train --betas 0.9 1", "--betas must be at least 0 and below 1, not 1.0"),
    Row(
        "",
        "train --momentum 0.9",
        "--momentum needs --optimizer sgd to have an effect: add that, or omit --momentum",
    ),
    Row(
        "",
        "train --comment ../../elsewhere",
        "--comment '../../elsewhere' becomes part of a folder's name: use letters, digits and "
        "_ . , + = - only",
    ),
    Row("", "train --device tpu", "unknown device 'tpu': choose auto, cpu, cuda or cuda:N"),
    Row(
        "`--runs-dir` is a file",
        "train --runs-dir photo.png",
        "cannot write to photo.png/single-layer/shapes_adam_lr=0.001_b=16_f=2: Not a directory",
    ),
    Row(
        "an empty variable in a script",
        'train --runs-dir ""',
        "Invalid value for '--runs-dir': a path cannot be empty; see `cae-raw train --help`",
    ),
    # --- data
    Row(
        "",
        "train --dataset imagenet",
        "unknown data set 'imagenet': choose one of cifar10, folder, lmdb, mnist, shapes",
    ),
    Row(
        "a folder of photos, but no `--dataset`",
        "train --data-dir photos",
        "shapes are drawn, not read from --data-dir: for images of your own add --dataset folder "
        "--size PIXELS, or omit --data-dir",
    ),
    Row(
        "",
        "train --dataset folder --data-dir photos",
        "the data set folder needs --size, the side of its images in pixels",
        prepare=lambda: Path("photos").mkdir(),
    ),
    Row(
        "a folder without images",
        "train --dataset folder --data-dir photos --size 32",
        "no images below photos: looked for files ...",
        prepare=lambda: Path("photos").mkdir(),
    ),
    Row(
        "no files, no network",
        "train --dataset mnist --data-dir data",
        "cannot download train-images-idx3-ubyte.gz: https://...; https://.... Put the file in a "
        "folder and name it with --data-dir, or use --dataset shapes, which needs no files. "
        "Looked in: data, ...",
        prepare=lambda: Path("data").mkdir(),
    ),
    Row(
        "web pages under the names of the data files",
        "train --dataset mnist --data-dir data",
        "data/train-images-idx3-ubyte is no IDX file of 3-dimensional bytes (it is a web page): it "
        "begins with 3c21444f instead of 00000803; replace it by an intact copy, or delete it to "
        "have it downloaded",
        prepare=web_pages,
    ),
    Row(
        "a text file",
        "train --dataset lmdb --data-dir notes.txt",
        "notes.txt is not an LMDB",
        prepare=lambda: Path("notes.txt").write_text("hello\n" * 1000),
    ),
    Row(
        "`data.mdb` cut in half",
        LMDB,
        "photos.lmdb/data.mdb is truncated: ... of at least ... bytes are there; make it again, or "
        "replace it by an intact copy",
        prepare=truncated_database,
    ),
    Row(
        "a database without records",
        LMDB,
        "photos.lmdb is an LMDB without records: nothing can be read from it",
        prepare=database(),
    ),
    Row(
        "a database that `cae-raw data convert` is still writing",
        LMDB,
        "there is no photos.lmdb: cae-raw data convert has not finished it",
        prepare=unfinished_database,
    ),
    Row(
        "a record of something else",
        LMDB,
        f"{RECORD} is not a Datum",
        prepare=database(b"hello", *good_records()),
    ),
    Row(
        "a record whose size is not that of its data",
        LMDB,
        f"{RECORD} has 768 bytes of data, but its size is 3x16x17",
        prepare=bad_record(width=17),
    ),
    Row(
        "a record of negative height",
        LMDB,
        f"{RECORD} has the size 3x-16x16, which no image has",
        prepare=bad_record(height=-16),
    ),
    Row(
        "a record marked as a JPEG that holds none",
        LMDB,
        f"{RECORD} is not an image that Pillow can read",
        prepare=bad_record(encoded=True),
    ),
    Row(
        "images too small for the model",
        "train --dataset lmdb --data-dir photos.lmdb --model deep",
        "images of 8x16 are too small for the model deep, which pools them twice: the nearest size "
        "that fits is 12x16",
        prepare=database(*(record(image) for image in pixels(20, (3, 8, 16)))),
    ),
    # --- runs
    Row(
        "a bit of the last checkpoint flipped",
        "train",
        f"{RUN}/last.safetensors is damaged (its checksum differs): use another, or --restart the "
        "run",
        prepare=lambda: flip_a_bit(f"{RUN}/last.safetensors"),
    ),
    Row(
        "no run yet",
        "evaluate --runs-dir elsewhere",
        "no run under elsewhere: train one with `cae-raw train`, or name one",
    ),
    Row("", "evaluate my-run", "there is no run my-run: train one, or name the folder of another"),
    Row("", "evaluate runs", f"runs is no run but holds some: name one, as {RUN}"),
    Row("", "evaluate --split train", "unknown split 'train': choose one of test, validation"),
    Row(
        "a run stopped in its first epoch",
        f"evaluate {RUN}",
        f"{RUN} holds no best.safetensors: train it for an epoch at least",
        prepare=lambda: Path(RUN, "best.safetensors").unlink(),
    ),
    Row(
        "the best checkpoint cut in half",
        f"evaluate {RUN}",
        f"{RUN}/best.safetensors is damaged or no checkpoint of cae-raw: use another, or "
        "--restart the run",
        prepare=lambda: cut(f"{RUN}/best.safetensors"),
    ),
    # --- looking at a run
    Row(
        "a run stopped in its first epoch",
        f"show {RUN}",
        f"{RUN} holds no best.safetensors: train it for an epoch at least",
        prepare=lambda: Path(RUN, "best.safetensors").unlink(),
    ),
    Row(
        "`--out` is a file",
        "show --out photo.png",
        "cannot make the folder photo.png: File exists; name another with --out",
    ),
    Row("", "show --only filters", "unknown picture 'filters': choose one of code, curves, ..."),
    Row("", "show --only masks", "single-layer has no masks to show: omit --only"),
    Row("", "show --class zebra", "unknown class 'zebra': choose one of ..."),
    Row(
        "`train` in a run's folder is a file",
        "train --epochs 2",
        f"cannot write {RUN}/train: File exists; make room for event files, or train with "
        "--no-tensorboard",
        prepare=lambda: (
            shutil.rmtree(f"{RUN}/train"),
            Path(f"{RUN}/train").write_text("notes"),
        ),
    ),
    # --- comparing runs
    Row(
        "one run only",
        f"compare {RUN}",
        f"{RUN} is one run only: name others to compare it with, or look at it with `cae-raw show`",
    ),
    Row(
        "a run stopped in its first epoch",
        f"compare {RUN} {RUN}",
        f"{RUN} holds no best.safetensors: train it for an epoch at least",
        prepare=lambda: Path(RUN, "best.safetensors").unlink(),
    ),
    Row(
        "a folder without runs",
        "report photos",
        "photos is no run and holds none: name the folder of a run",
        prepare=lambda: Path("photos").mkdir(),
    ),
    Row("", "report --out runs", "--out runs is a folder: name a file, as runs/report.html"),
    Row(
        "",
        "report --out no/report.html",
        "cannot write no/report.html: No such file or directory",
    ),
    # --- images
    Row(
        "a text file",
        "reconstruct notes.txt",
        "notes.txt is not an image that Pillow can read",
        1,
        lambda: Path("notes.txt").write_text("hello"),
    ),
    Row(
        "half an image among whole ones: those are done",
        "reconstruct broken.png photo.png",
        "broken.png cannot be decoded: ...",
        1,
        lambda: cut(str(picture(Path("broken.png"), 40, 40, 3))),
    ),
    Row(
        "an image of 20,000 x 20,000 pixels",
        "reconstruct map.png",
        "map.png is too large: at most 178956970 pixels are decoded",
        1,
        large_image,
    ),
    Row("", "reconstruct missing.png", "cannot read missing.png: No such file or directory", 1),
    Row(
        "",
        "reconstruct photo.png --run a --checkpoint b",
        "--run and --checkpoint both name a model: give one of them",
    ),
    Row(
        "an image for a checkpoint",
        "reconstruct photo.png --checkpoint photo.png",
        "photo.png is damaged or no checkpoint of cae-raw: use another, or --restart the run",
    ),
    Row(
        "`--out` is a file",
        "reconstruct photo.png --out photo.png",
        "cannot make the folder photo.png: File exists",
    ),
    Row(
        "",
        "reconstruct photo.png --tile",
        "--tile is for models of one image size, but single-layer takes images of any size as they "
        "are: omit --tile",
    ),
    # --- codes
    Row(
        "",
        "encode photo.png --out codes.txt",
        "--out codes.txt: give it a name that ends in .npy, .npz, .csv",
    ),
    Row(
        "images of two sizes",
        "encode photo.png small.png --out codes.npy",
        "small.png has 5x6 pixels, photo.png 10x12: codes of different sizes do not fit one array; "
        "add --pooled or --size PIXELS",
        prepare=lambda: picture(Path("small.png"), 6, 5, 3),
    ),
    Row(
        "an array of pickled objects",
        "decode codes.npy",
        "codes.npy is damaged or no .npy file of numbers: make it again with `cae-raw encode`",
        prepare=lambda: np.save("codes.npy", np.array([{}]), allow_pickle=True),
    ),
    Row(
        "codes of another model",
        "decode codes.npy",
        "codes.npy holds codes of 1568, but those of the model single-layer are ...xHxW: name the "
        "model that made them with --run or --checkpoint",
        prepare=lambda: np.save("codes.npy", np.zeros((1, 1568), np.float32)),
    ),
    Row(
        "a code that is not a number",
        "decode codes.npy",
        "codes.npy: code 0 (from 0) is not finite in float32",
        prepare=lambda: np.save("codes.npy", np.full((1, 1568), np.nan)),
    ),
    # --- classes
    Row(
        "images without classes",
        "classify --dataset folder --data-dir photos --size 8",
        "the images of folder have no labels: a classifier needs a data set with classes, such as "
        "mnist, cifar10, or a folder with a sub-folder per class",
        prepare=lambda: [picture(Path(f"photos/{i}.png"), 8, 8, 3) for i in range(9)],
    ),
    Row(
        "",
        "score --dataset shapes --odd squares",
        "unknown class 'squares': choose one of checks, circles, clouds, crosses, ...",
    ),
    Row(
        "",
        "score photo.png --quantile 0.9",
        "--quantile needs a clean set: add --clean or --clean-split",
    ),
)

# More of the same kind, which the README does not list.
MORE = (
    *(
        Row("", f"train {option} {value}", f"{option} must be ..., not ...")
        for option in ("--lr", "--eps", "--save-every-seconds", "--l2-penalty", "--lr-decay-factor")
        for value in ("-1", "inf", "1e400", "nan")
    ),
    *(
        Row("", f"train {option} {value}", f"{option} must be ..., not ...")
        for option in ("--batch-size", "--epochs", "--filters", "--limit-train", "--threads")
        for value in ("0", "-3", "9" * 400)
    ),
    *(
        Row("", f"train {option} {value!r}", f"Invalid value for '{option}': ...")
        for option in ("--epochs", "--seed", "--lr-decay-epochs", "--size")
        for value in ("", "1.5", "ten", "0x10", "nan", "9" * 5000)
    ),
    *(
        Row("", f"train --betas {values}", "--betas must be at least 0 and below 1, not ...")
        for values in ("-0.1 0.9", "0.9 nan", "inf 0.9")
    ),
    Row("", "train --seed -1", "--seed must be at least 0, not -1"),
    Row("", f"train --seed {'9' * 400}", "--seed must be at most 9223372036854775807, not 999..."),
    Row("", "train --lr 1e300", "--lr must be at most 1e+30, not 1e+300"),
    Row("", "train --l2-penalty 1e39", "--l2-penalty must be at most 1e+30, not 1e+39"),
    Row("", "train --lr-decay-epochs -1", "--lr-decay-epochs must be at least 0, not -1"),
    Row("", "train --optimizer sgd --momentum 1", "--momentum must be at least 0 and below 1, ..."),
    Row("", "train --optimizer sgd --betas 0 0", "--betas needs --optimizer adam ..."),
    Row("", "train --optimizer sgd --eps 1", "--eps needs --optimizer adam ..."),
    Row("", "train --l2-decoder", "--l2-decoder needs --l2-penalty to have an effect: ..."),
    Row("", "train --lr-decay-factor 0.5", "--lr-decay-factor needs --lr-decay-epochs ..."),
    Row(
        "",
        "train --size 8",
        "--size needs --dataset folder (or lmdb --resize) to have an effect: ...",
    ),
    Row("", "train --optimizer ''", "unknown optimizer '': choose one of adam, sgd"),
    Row("", "train --model deeper", "unknown model 'deeper': choose one of ..."),
    Row("", "train --dataset ''", "unknown data set '': choose one of ..."),
    Row("", "train --device ''", "unknown device '': choose ..."),
    Row("", "train --device cuda:", "unknown device 'cuda:': choose ..."),
    Row("", "train --device cuda:-1", "unknown device 'cuda:-1': choose ..."),
    Row("", f"train --comment {'a' * 300}", "the run's name is longer than 200 bytes: ..."),
    Row("", "train --comment 'a\nb'", "--comment 'a\\nb' becomes part of a folder's name: ..."),
    Row("", "train --comment .hidden", "--comment '.hidden' becomes part of a folder's name: ..."),
    Row("", "train --seed", "Option '--seed' requires an argument; ..."),
    Row("", "train surplus", "Got unexpected extra argument...; see `cae-raw train --help`"),
    Row("", "--quiet", "No such option: --quiet; see `cae-raw --help`"),
    Row("", "trian", "No such command 'trian'...; see `cae-raw --help`"),
    *(
        Row("", f"train --dataset {name} --data-dir photo.png {size}", "--data-dir photo.png: ...")
        for name, size in (("mnist", ""), ("cifar10", ""), ("folder", "--size 8"))
    ),
    Row("", "train --dataset folder --size 8", "the data set folder needs --data-dir, ..."),
    Row("", "train --dataset folder --data-dir . --size 1000000", "--size must be at most 2048..."),
    Row("", "train --dataset folder --data-dir . --size 0", "--size must be at least 1, not 0"),
    Row("", "train --dataset folder --data-dir '' --size 8", "Invalid value for '--data-dir': ..."),
    Row("", "train --dataset folder --data-dir no --size 8", "--data-dir no: No such file or ..."),
    Row(
        "",
        "train --dataset folder --data-dir 'li\nne' --size 8",
        "--data-dir li\\nne: No such file or directory; name a folder that can be read",
    ),
    Row(
        "",
        LMDB,
        f"{RECORD} has 768 bytes of data, but its size is 3x2147483647x2147483647",
        prepare=bad_record(height=2**31 - 1, width=2**31 - 1),
    ),
    Row("", LMDB, f"{RECORD} has 2 channels, but ...", prepare=bad_record(channels=2, height=24)),
    Row("", LMDB, f"{RECORD} is marked as ...", prepare=bad_record(encoded=True, data=b"")),
    Row("", LMDB, f"{RECORD} has 0 bytes ...", prepare=bad_record(data=b"")),
    Row("", LMDB, "there is no photos.lmdb"),
    Row(
        "",
        LMDB,
        "photos.lmdb is a folder without data.mdb: name the folder of an LMDB",
        prepare=lambda: Path("photos.lmdb").mkdir(),
    ),
    Row(
        "",
        LMDB,
        "photos.lmdb/data.mdb is not an LMDB, or the beginning of one only",
        prepare=lambda: (database(b"x")(), cut("photos.lmdb/data.mdb", 0.001)),
    ),
    Row("", "train --dataset lmdb", "the data set lmdb needs --data-dir, the folder of the ..."),
    Row(
        "",
        f"{LMDB} --val .",
        "... is a folder without data.mdb: name the folder of an LMDB",
        prepare=database(*good_records()),
    ),
    Row(
        "",
        LMDB,
        "photos.lmdb has 1 records, too few to hold some back for validation: ...",
        prepare=database(*good_records(1)),
    ),
    Row("", "train --sparsity -1", "--sparsity must be at least 0, not -1.0"),
    Row("", "train --input-range 1 0", "--input-range needs two finite bounds, low before ..."),
    Row("", "train --input-range 0", "Option '--input-range' requires 2 arguments...; see ..."),
    Row(
        "",
        "train --input-range -2 2",
        "the decoder's tanh cannot reach all of -2 to 2: choose an input range within -1 to 1, or "
        "the decoder activation none",
    ),
    Row(
        "",
        "train --decoder-activation relu",
        "unknown decoder activation 'relu': choose one of none, tanh",
    ),
    Row(
        "",
        "train --model deep --decoder-activation tanh",
        "--decoder-activation needs --model single-layer to have an effect: add that, or omit ...",
    ),
    Row(
        "",
        "train --classes ''",
        "--classes names no class: give one or more, with commas between them",
    ),
    Row(
        "",
        "train --classes rings,cows",
        "unknown class 'cows': choose one of ...",
    ),
    Row(
        "",
        "train --dataset folder --data-dir photos --size 8 --no-cache --classes cats",
        "the images of folder have no labels to choose classes by: omit --classes",
        prepare=lambda: [picture(Path(f"photos/{i}.png"), 8, 8, 3) for i in range(9)],
    ),
    Row("", "train --no-cache", "--no-cache needs --dataset folder to have an effect: ..."),
    Row(
        "",
        "train --dataset folder --data-dir photos --size 8 --model deep",
        "images of 8x8 are too small ...: the nearest size that fits is 12x12",
    ),
    Row(
        "",
        "train --dataset folder --data-dir photos --size 256 --model deep-same --code-size 65536",
        "a code of 65536 numbers for images of 256x256 takes 12,884,901,888 weights, of which "
        "536,870,912 are allowed: use a code of 2730 or images of 55x55, the nearest that fit",
    ),
    Row(
        "",
        "train --dataset cifar10 --data-dir data",
        "data/cifar-10-binary.tar.gz is damaged or no tar archive: ...",
        prepare=lambda: picture(Path("data/photo.png"), 9, 9).rename("data/cifar-10-binary.tar.gz"),
    ),
    Row(
        "",
        "train",
        f"{RUN}/last.safetensors is damaged ...",
        prepare=lambda: cut(f"{RUN}/last.safetensors", 0),
    ),
    Row(
        "",
        "train",
        f"cannot read the checkpoint {RUN}/last.safetensors: Is a directory",
        prepare=lambda: (
            Path(RUN, "last.safetensors").unlink(),
            Path(RUN, "last.safetensors").mkdir(),
        ),
    ),
    Row("", "evaluate ''", "Invalid value for 'RUN': a path cannot be empty; ..."),
    Row("", "evaluate --threads 0", "--threads must be at least 1, not 0"),
    Row("", "evaluate --runs-dir photo.png", "no run under photo.png: ..."),
    Row("", f"evaluate {RUN}/best.safetensors", f"{RUN}/best.safetensors is a file: name the ..."),
    Row("", f"evaluate {RUN} --data-dir .", "shapes are drawn, not read from --data-dir: ..."),
    Row("", f"evaluate {RUN} {RUN}", "Got unexpected extra argument...; see `cae-raw evaluate ..."),
    Row("", "show none", "there is no run none: train one, or name the folder of another"),
    Row(
        "", f"show {RUN} --checkpoint a", "RUN and --checkpoint both name a model: give one of ..."
    ),
    Row("", "show --checkpoint none", "cannot read the checkpoint none: No such file or directory"),
    Row("", "show --image none.png", "cannot read none.png: No such file or directory"),
    Row("", "show --image photo.png --index 1", "--image and --index both name an image: give ..."),
    Row("", "show --index 20", "--index 20: the test split of shapes has fewer images; ..."),
    Row("", "show --index -1", "--index must be from 0 to 2147483647, not -1"),
    Row("", "show --split all", "unknown split 'all': choose one of test, train, validation"),
    Row("", "show --data-dir .", "shapes are drawn, not read from --data-dir: ..."),
    Row("", "show --threads 0", "--threads must be at least 1, not 0"),
    Row("", "compare", "Missing argument 'RUN...'; see `cae-raw compare --help`"),
    Row("", "compare none", "there is no run none: train one, or name the folder of another"),
    Row("", "compare photo.png", "photo.png is a file: name the folder of a run, such as ."),
    Row("", f"compare {RUN} ''", "Invalid value for 'RUN...': a path cannot be empty; ..."),
    *(
        Row("", f"{words} --out {place}", "cannot ... photo.png...", prepare=two_runs)
        for words, place in (("compare runs", "photo.png"), ("report", "photo.png/a.html"))
    ),
    Row("", "compare runs --csv no/a.csv", "cannot write no/a.csv: ...", prepare=two_runs),
    Row("", "compare runs --data-dir .", "shapes are drawn, not ...", prepare=two_runs),
    Row("", "compare runs --class zebra", "unknown class 'zebra': ...", prepare=two_runs),
    Row("", "compare runs --index 20", "--index 20: the test split of ...", prepare=two_runs),
    Row("", "report --index -1", "--index must be from 0 to 2147483647, not -1"),
    Row("", "report --split all", "unknown split 'all': choose one of test, train, validation"),
    Row("", "report --class zebra", "unknown class 'zebra': choose one of ..."),
    Row("", "report --data-dir .", "shapes are drawn, not read from --data-dir: ..."),
    Row("", "report --threads 0", "--threads must be at least 1, not 0"),
    Row("", "report --runs-dir none", "no run under none: train one with `cae-raw train`, or ..."),
    Row(
        "",
        "report",
        f"{RUN}/metrics.csv is damaged: delete it, the run itself does not need it",
        prepare=lambda: Path(RUN, "metrics.csv").write_text("epoch,step\n1,x\n"),
    ),
    Row("", "train --images-every -1", "--images-every must be at least 0, not -1"),
    Row("", f"train --images-every {'9' * 400}", "--images-every must be at most 2147483647, ..."),
    Row("", "train --no-tensorboard --images-every 2", "--images-every has no effect with ..."),
    Row("", "reconstruct", "name image files, or take those of a data set with --dataset or ..."),
    Row("", "reconstruct --count 0", "--count must be from 1 to 2147483647, not 0"),
    Row("", "reconstruct --count 1 --split all", "unknown split 'all': choose one of test, ..."),
    Row("", "reconstruct photo.png --split test", "--split needs --dataset or --count to have ..."),
    Row("", "encode photo.png", "Missing option '--out'; see `cae-raw encode --help`"),
    Row("", "encode --out c.npy", "name image files or folders, or else a data set with --dataset"),
    Row("", "encode photo.png --out no/c.npz", "cannot write no/c.npz: No such file or directory"),
    Row("", "encode photo.png --out c.npy --size 0", "--size must be from 1 to 2048, not 0"),
    Row("", "encode photo.png --out c.csv", "codes of 2x14x12 do not fit a .csv: add --pooled..."),
    Row("", "decode", "Missing argument 'CODES'; see `cae-raw decode --help`"),
    Row("", "decode no.npy", "cannot read no.npy: No such file or directory"),
    Row("", "decode photo.png", "photo.png: codes are read from files that end in .npy or .npz"),
    Row("", "info --model deep --size 8", "images of 8x8 are too small for the model deep, ..."),
    Row("", "bench --model deeper", "unknown model 'deeper': choose one of ..."),
    Row("", "bench --batch 0", "--batch must be from 1 to 65536, not 0"),
    Row("", "bench --batch many", "Invalid value for '--batch': ..."),
    Row("", "bench --size 0", "--size must be from 1 to 2048, not 0"),
    Row("", "bench --model deep --size 8", "images of 8x8 are too small for the model deep, ..."),
    Row("", "bench --channels 2", "--channels must be 1 or 3, not 2"),
    Row("", "bench --threads 0", "--threads must be at least 1, not 0"),
    Row("", "bench --device tpu", "unknown device 'tpu': choose ..."),
    Row("", "bench --out chart.jpg", "--out chart.jpg: give it a name that ends in .png"),
    Row("", "bench --out no/chart.png", "cannot write no/chart.png: there is no folder no"),
    Row("", "info --filters 8", "--filters needs --model to have an effect: add that, or omit ..."),
    Row("", "reconstruct ''", "Invalid value for 'IMAGE': a path cannot be empty; ..."),
    Row("", "reconstruct photo.png --out ''", "Invalid value for '--out': a path cannot be ..."),
    Row("", "reconstruct photo.png --run ''", "Invalid value for '--run': a path cannot be ..."),
    Row("", "reconstruct photo.png --run no", "there is no run no: ..."),
    Row("", "reconstruct photo.png --run photo.png", "photo.png is a file: name the folder ..."),
    Row("", "reconstruct photo.png --checkpoint no", "cannot read the checkpoint no: No such ..."),
    Row("", "reconstruct photo.png --threads -1", "--threads must be at least 1, not -1"),
    Row("", "reconstruct photo.png --out photo.png/a", "cannot make the folder photo.png/a: ..."),
    Row(
        "",
        "reconstruct empty.png",
        "empty.png is not an image that Pillow can read (it is empty)",
        1,
        lambda: Path("empty.png").touch(),
    ),
    Row(
        "",
        "reconstruct page.png",
        "page.png is not an image that Pillow can read (it is a web page)",
        1,
        lambda: Path("page.png").write_text("<html>404</html>"),
    ),
    Row(
        "",
        "reconstruct photos",
        "no images in the folder photos: name image files",
        1,
        lambda: Path("photos").mkdir(),
    ),
    *(
        Row("", f"classify {option} {value}", f"{option} must be ..., not {value}")
        for option, value in (
            ("--epochs", 0),
            ("--batch-size", 0),
            ("--lr", "nan"),
            ("--lr", "-1.0"),
            ("--pool", -1),
            ("--limit-train", 0),
            ("--l2-penalty", "inf"),
            ("--seed", -1),
            ("--threads", 0),
        )
    ),
    Row("", "classify --dataset imagenet", "unknown data set 'imagenet': choose one of ..."),
    Row("", "classify --run no", "there is no run no: train one, or name the folder of another"),
    Row("", "classify --run a --checkpoint b", "--run and --checkpoint both name a model: ..."),
    Row("", "classify --out photo.png", "cannot make the folder photo.png: File exists"),
    Row("", "classify --lr 1e300 --batch-size 4", "training diverged: the loss is ..."),
    Row(
        "",
        f"classify --run {RUN}",
        f"{RUN} holds no best.safetensors: train it for an epoch at least",
        prepare=lambda: Path(RUN, "best.safetensors").unlink(),
    ),
    Row(
        "",
        "classify --dataset folder --data-dir photos --size 8",
        "all training images of folder have one label: there is nothing to tell apart",
        prepare=lambda: [picture(Path(f"photos/a/{i}.png"), 8, 8, 3) for i in range(9)],
    ),
    Row("", "score", "name image files or folders, or else a data set with --dataset"),
    Row("", "score photo.png --dataset shapes", "name image files or folders, or else ..."),
    Row("", "score photo.png --clean-split validation", "--clean-split needs --dataset to have..."),
    Row("", "score --dataset shapes --clean-split all", "unknown split 'all': choose one of ..."),
    Row("", "score --dataset shapes --clean-split test --clean a", "--clean and --clean-split ..."),
    Row("", "score photo.png --clean photo.png --quantile 0", "--quantile must be above 0 and ..."),
    Row(
        "", "score photo.png --clean photo.png --quantile nan", "--quantile must be above 0 and..."
    ),
    Row("", "score photo.png --top 101", "--top must be from 0 to 100, not 101"),
    Row("", "score photo.png --odd 1", "--odd needs images with classes: ..."),
    Row("", "score --dataset shapes --odd ''", "--odd names no class: give one or more, ..."),
    Row("", "score --dataset shapes --split train --odd 99", "unknown class '99': choose ..."),
    Row("", "score missing.png", "cannot read missing.png: No such file or directory", 1),
    Row("", "score photo.png --out photo.png", "cannot make the folder photo.png: File exists"),
    Row("", "score photo.png --csv no/table.csv", "cannot write no/table.csv: No such file ..."),
    Row("", "score photo.png --run no", "there is no run no: ..."),
    Row("", "info --runs-dir ''", "Invalid value for '--runs-dir': a path cannot be empty; ..."),
    Row("", "info surplus", "Got unexpected extra argument...; see `cae-raw info --help`"),
)


def as_code(text: str) -> str:
    text = text.replace("b=16_f=2", "b=128")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def rows() -> list[str]:
    """The table's rows in Markdown, with the name that a run has by default."""
    return [
        f"| {row.tried + ': ' if row.tried else ''}{as_code('cae-raw ' + row.words)} "
        f"| {as_code(row.line)} |"
        for row in TABLE
    ]


if __name__ == "__main__":
    print("| what was tried | what it prints after `cae-raw: error:` |")
    print("|---|---|")
    print("\n".join(rows()))
