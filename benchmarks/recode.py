"""Code a folder of images as JPEG once more: what does one more coding cost a network's accuracy?

python benchmarks/recode.py data/cifar10-jpeg "data/CIFAR-10 (JPEG copy), coded again at quality 75" --quality 75
"""

import argparse
from pathlib import Path

from PIL import Image


def recode(source: Path, target: Path, quality: int) -> int:
    """Write every image of `source` into `target`, JPEG-coded with colour at half the resolution (4:2:0).

    Returns:
        How many images there were.
    """
    images = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for path in images:
        new = (target / path.relative_to(source)).with_suffix(".jpg")
        new.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").save(new, quality=quality, subsampling="4:2:0")
    return len(images)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a folder of images: train/<class>/* and test/<class>/*")
    parser.add_argument("target", type=Path, help="where the coded images go; must not exist")
    parser.add_argument("--quality", type=int, default=75, help="JPEG quality, 1 to 95")
    options = parser.parse_args()
    if not options.source.is_dir():
        parser.error(f"{options.source}: no such folder")
    if options.target.exists():
        parser.error(f"{options.target} exists: name another folder")
    if not 1 <= options.quality <= 95:
        parser.error(f"--quality {options.quality}: 1 to 95 is needed")
    print(f"{recode(options.source, options.target, options.quality):,} images coded at quality {options.quality}")


if __name__ == "__main__":
    main()
