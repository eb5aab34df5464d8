"""Make the font of tags that are not ASCII: `python -m devtools.font DejaVuSans.ttf`.

The font is a part of DejaVu Sans 2.37 (https://dejavu-fonts.github.io, Debian's fonts-dejavu-core): the letters of
Latin, Greek and Cyrillic, without hinting and OpenType features, so that it takes a seventh of the bytes.
"""

from __future__ import annotations

import sys

from fontTools import subset

from segment.output.font import FILE, RANGES


def main() -> None:
    """Write segment/output/fonts/DejaVuSans-part.ttf."""
    ranges = ",".join(f"U+{ord(first):04X}-{ord(last):04X}" for first, last in RANGES)
    options = ["--no-hinting", "--layout-features=", "--name-IDs=0,1,2,13,14", f"--unicodes={ranges}"]
    subset.main([sys.argv[1], f"--output-file={FILE}", *options])


if __name__ == "__main__":
    main()
