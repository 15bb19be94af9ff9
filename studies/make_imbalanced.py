"""Write a copy of a dataset in which some classes are rare in training, for studies/imbalance.yaml.

    python studies/make_imbalanced.py chess chess-imbalanced --rare black-bishop white-bishop white-queen

Of the training images that show a rare class, a share is kept, drawn with a fixed seed. The others leave the split as a
whole: an image that loses only some boxes would teach that these objects are background. Other splits stay as they are.
Images are linked, not copied.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

from doublehead.common.errors import DoubleheadError
from doublehead.data.to_coco import write_coco


def make_rare(annotations: Path, rare: list[str], keep: float) -> Counter[str]:
    """Rewrite a COCO file without most of the images that show a rare class.

    Returns:
        In how many of the remaining images each class is.

    Raises:
        DoubleheadError: the file has no such class.
    """
    content = json.loads(annotations.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    for name in rare:
        if name not in names.values():
            raise DoubleheadError(f"{annotations}: has no class `{name}`, but {', '.join(names.values())}")
    with_rare = sorted({one["image_id"] for one in content["annotations"] if names[one["category_id"]] in rare})
    kept = random.Random(0).sample(with_rare, max(1, round(keep * len(with_rare))))
    dropped = set(with_rare) - set(kept)
    content["images"] = [image for image in content["images"] if image["id"] not in dropped]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in dropped]
    annotations.write_text(json.dumps(content), encoding="utf-8")
    shown = {(one["image_id"], names[one["category_id"]]) for one in content["annotations"]}
    return Counter({"images": len(content["images"])}) + Counter(name for _, name in shown)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="The dataset's folder or YAML.")
    parser.add_argument("output", type=Path, help="A new folder.")
    parser.add_argument("--rare", nargs="+", required=True, metavar="CLASS", help="Classes that become rare.")
    parser.add_argument("--keep", type=float, default=0.1, help="Share of the images with a rare class that is kept.")
    words = parser.parse_args()
    try:
        write_coco(words.data, words.output, link=True)
        left = make_rare(words.output / "annotations" / "instances_train.json", words.rare, words.keep)
    except DoubleheadError as error:
        sys.exit(f"error: {error}")
    print("\n".join(f"{number:5} {name}" for name, number in left.most_common()))


if __name__ == "__main__":
    main()
