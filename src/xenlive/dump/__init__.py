"""Memory images: finding a kexec module in one, saying what is in it, drawing it."""

from __future__ import annotations

from xenlive.dump.describe import describe, describe_image
from xenlive.dump.image import FoundModule, Image
from xenlive.dump.picture import draw_module

__all__ = ["FoundModule", "Image", "describe", "describe_image", "draw_module"]
