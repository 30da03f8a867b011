"""The installed xenlive as an image: what a hosted domain process is entered with."""

import os
import sys

# Two folders up from here is the one that holds the package; the image itself holds no modules.
sys.path[0] = os.path.abspath(__file__).rsplit(os.sep, 3)[0]

from xenlive.image.kernel import main  # noqa: E402

main(sys.argv)
