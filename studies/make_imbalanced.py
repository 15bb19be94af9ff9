"""Write a copy of a dataset in which some classes are rare in training, for studies/imbalance.yaml.

    python studies/make_imbalanced.py chess chess-imbalanced --rare black-bishop white-bishop white-queen

Of the training images that show a rare class, a share is kept, drawn with a fixed seed. The others leave the split as a
whole: an image that loses only some boxes would teach that these objects are background. Other splits stay as they are.
Images are linked, not copied.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from doublehead.common.errors import DoubleheadError
from doublehead.data.dataset import open_dataset
from doublehead.data.records import Split
from doublehead.data.to_coco import write_splits


def make_rare(split: Split, rare: Sequence[str], keep: float) -> Split:
    """The split without most of the images that show a rare class.

    Raises:
        DoubleheadError: there is no such class.
    """
    names = split.categories.names
    for name in rare:
        if name not in names:
            raise DoubleheadError(f"{name}: the data has no such class, but {', '.join(names)}")
    labels = {names.index(name) + 1 for name in rare}
    with_rare = sorted(record.image_id for record in split.records if labels & set(record.labels.tolist()))
    kept = random.Random(0).sample(with_rare, max(1, round(keep * len(with_rare))))
    dropped = set(with_rare) - set(kept)
    return replace(split, records=[record for record in split.records if record.image_id not in dropped])


def images_by_class(split: Split) -> Counter[str]:
    """In how many images each class is, and how many images there are."""
    shown = Counter(split.categories.names[label - 1] for one in split.records for label in set(one.labels.tolist()))
    return Counter({"images": len(split.records)}) + shown


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="The dataset's folder or YAML.")
    parser.add_argument("output", type=Path, help="A new folder.")
    parser.add_argument("--rare", nargs="+", required=True, metavar="CLASS", help="Classes that become rare.")
    parser.add_argument("--keep", type=float, default=0.1, help="Share of the images with a rare class that is kept.")
    words = parser.parse_args()
    try:
        dataset = open_dataset(words.data)
        splits = {name: dataset.read(name) for name in dataset.distinct}
        splits["train"] = make_rare(splits["train"], words.rare, words.keep)
        write_splits(list(splits.values()), words.output, link=True)
    except DoubleheadError as error:
        sys.exit(f"error: {error}")
    print("\n".join(f"{number:5} {name}" for name, number in images_by_class(splits["train"]).most_common()))


if __name__ == "__main__":
    main()
