"""Finds and loads Unicorn's C library, and says what to do where there is none.

Only the library is wanted, which is a file of the installed package. To import the package would
take longer than to boot a small kernel, and so would asking the packages' metadata for its version,
which the library knows itself.

**Invariants.** What is loaded is the release that `cpustate.py` knows the insides of.
"""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xenlive.machine.emulated.processor import capi
from xenlive.machine.emulated.processor.exits import EmulatorError

VERSION = "2.1.4"
_NAMES = {"darwin": "libunicorn.2.dylib", "win32": "unicorn.dll"}
_NAME = "libunicorn.so.2"


def load_library() -> Any:
    """Unicorn's C library, with the arguments of the calls made here; EmulatorError without one."""
    path = _find_library()
    try:
        # A handle of our own: argument types belong to one.
        library = ctypes.CDLL(str(path)) if path else None
    except OSError as error:
        raise EmulatorError(f"Unicorn can't be loaded: {error}") from None
    if library is None:
        raise EmulatorError("emulated machines need Unicorn: pip install 'xenlive[emulator]'")
    found = _version(library)
    if found != VERSION:
        raise EmulatorError(f"Unicorn is {found}, but {VERSION} is needed")
    capi.declare(library)
    return library


def _find_library() -> Path | None:
    try:
        package = find_spec("unicorn")
    except ValueError:  # somebody took its place
        return None
    folders = (package.submodule_search_locations or ()) if package else ()
    name = _NAMES.get(sys.platform, _NAME)
    paths = (Path(folder) / "lib" / name for folder in folders)
    return next((path for path in paths if path.exists()), None)


def _version(library: ctypes.CDLL) -> str:
    """`uc_version`: a byte each, the highest first, and one that a release has no need of."""
    packed = library.uc_version(None, None) & 0xFFFFFFFF
    return ".".join(str(packed >> shift & 0xFF) for shift in (24, 16, 8))
