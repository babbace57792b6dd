"""The data set `lmdb`: one database to train on and, where there is one, another to validate on."""

from __future__ import annotations

from pathlib import Path

from cae_raw.data.base import DataOptions, Dataset
from cae_raw.data.lmdb_stream import LmdbSplit
from cae_raw.errors import InputError

# Without a database to validate on, this share of the records at the end is kept for it.
HELD_BACK = 0.1
MOST_HELD_BACK = 5000


def load_lmdb(options: DataOptions) -> Dataset:
    """Open the databases; images are read when they are needed.

    Validation images are those of `options.validation_dir`, else the last tenth of the records, at
    most 5,000; they are also the test images.

    Raises:
        InputError: if a database is missing or damaged, or the two hold images of other shapes.
    """
    if options.data_dir is None:
        raise InputError("the data set lmdb needs --data-dir, the folder of the database")

    def split(path: Path) -> LmdbSplit:
        def tell(done: int, total: int) -> None:
            if options.progress is not None:
                options.progress(f"indexing {path.name}", done, total)

        return LmdbSplit(path, options.channel_order, options.resize, tell)

    train = split(options.data_dir)
    notes: tuple[str, ...] = ()
    if options.validation_dir is not None:
        validation = split(options.validation_dir)
        if validation.image_shape != train.image_shape:
            raise InputError(
                f"{options.validation_dir} holds images of {validation.image_shape}, "
                f"{options.data_dir} of {train.image_shape}: give both one size with --resize"
            )
    else:
        total = len(train)
        kept = min(MOST_HELD_BACK, round(HELD_BACK * total))
        if not 0 < kept < total:
            raise InputError(
                f"{options.data_dir} has {total} records, too few to hold some back for "
                "validation: name another database with --val"
            )
        train, validation = train.part(0, total - kept), train.part(total - kept, total)
        notes = (
            f"the last {kept:,} records are kept for validation; --val names a database for it",
        )
    name = "lmdb-" + options.data_dir.name.removesuffix(".lmdb")
    return Dataset(name, train, validation, validation, notes=notes)
