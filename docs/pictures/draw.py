"""Draw the pictures of these pages: ``python docs/pictures/draw.py [--out DIR] [--records DIR]``.

The same versions give the same bytes. Pictures of records are drawn from those in ``docs/records`` and those that ship,
or in the folder given; where there are none, the picture stays as it is.
"""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from style import save

from refattn.experiments.records import read_records
from refattn.experiments.sparsek.shipped import FOLDER

HERE = Path(__file__).parent
RECORDS = HERE.parent / "records", FOLDER
PICTURES = (
    "block_transform",
    "conv_basis",
    "sparsek_intervals",
    "sparsek_perplexity",
    "error_against_k",
    "maps",
    "the_conv_figure",
    "time_against_n",
    "ours_against_peers",
    "loss_curves",
    "from_scratch",
    "from_scratch_losses",
    "from_scratch_text",
    "from_scratch_text_losses",
    "conv_from_scratch",
)


def draw_all(folder: Path, records: Sequence[Path]) -> list[Path]:
    """Draw every picture there is something for into a folder; return their paths."""
    drawn = []
    for name in PICTURES:
        module, path = import_module(name), folder / f"{name.replace('_', '-')}.png"
        if not hasattr(module, "RECORDS"):
            save(module.draw(), path)
        elif files := [file for one in records if (file := one / f"{module.RECORDS}.jsonl").exists()]:
            save(module.draw(read_records(files[0]).rows()), path)
        else:
            continue
        drawn.append(path)
    return drawn


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--records", type=Path, nargs="+", default=RECORDS)
    options = parser.parse_args()
    print(*draw_all(options.out, options.records), sep="\n")
