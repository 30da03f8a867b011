"""Memory images: finding kexec modules in them, saying what is in one, drawing and comparing it.

    with Image("memory.img") as image:
        found = image.find_module()
        print(describe(image, found))

`Image` opens all formats, `describe` gives what `xenlive inspect --json` prints, `diff` compares
two. Drawings are made of descriptions.
"""

from __future__ import annotations

from xenlive.dump.describe import describe, describe_image
from xenlive.dump.diff import Change, Side, diff
from xenlive.dump.image import FoundModule, Image
from xenlive.dump.picture import draw_module
from xenlive.dump.svg import draw_svg

__all__ = [
    "Change",
    "FoundModule",
    "Image",
    "Side",
    "describe",
    "describe_image",
    "diff",
    "draw_module",
    "draw_svg",
]
