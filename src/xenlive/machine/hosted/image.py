"""What an image is on the hosted machine, and how a process is entered with one.

An image is anything that Python runs: a folder with `__main__.py`, a zipapp, a script; without a
name it is the installed xenlive itself (its folder `image/`). The process gets

    python -I -S -c ENTRY IMAGE CHANNEL START_INFO FALLBACK FALLBACK_START_INFO REASON

and the image finds in `sys.argv`: itself, the descriptor of the hypercall channel, the physical
address of its `hvm_start_info`, and the reason if it is entered as somebody's fallback. `-I -S`
keeps the environment and site-packages out: they cost more time than all of the kernel.

`ENTRY` is the processor's part of kexec. It runs the image, and as long as the new kernel has not
said that it took over (`commit_entry`), whatever ends it (an exception, an exit, a hang) enters
the fallback image on the same descriptors instead: the old kernel comes back and `REASON` says
why. Only the death of the process itself is beyond it.

`--preflight` in place of the channel makes an image say what it is, in one line, without touching
anything; a process that does not is no kernel of ours.
"""

from __future__ import annotations

import os
import sys

from xenlive.errors import UpdateError
from xenlive.memory.address import PhysAddr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Seconds a new kernel has to take over before the old one is entered again.
ENTRY_TIMEOUT_S = 30

PREFLIGHT = "--preflight"

#: Where the block for a kernel goes: a hosted kernel occupies no guest memory, so this is right
#: where its image would end, at the usual load address.
LOAD_END = PhysAddr(0x100000)

# Kept as text: the old kernel must be able to enter a new one after its own files are gone.
ENTRY = f"""
import posix, sys
image, channel, start_info, fallback, fallback_start_info, reason = sys.argv[1:7]
committed = False
if fallback:
    import _signal
    def late(*_):
        raise TimeoutError("no sign of life for {ENTRY_TIMEOUT_S} s")
    _signal.signal(_signal.SIGALRM, late)
    _signal.alarm({ENTRY_TIMEOUT_S})
try:
    sys.argv = [image, channel, start_info, reason]
    sys.path.insert(0, image)
    main, code = image, None
    if posix.stat(image).st_mode & 0o170000 == 0o040000:
        main += "/__main__.py"
    else:
        import zipimport
        try:
            code = zipimport.zipimporter(image).get_code("__main__")
        except zipimport.ZipImportError:
            pass
    if code is None:
        with open(main, "rb") as file:
            code = compile(file.read(), main, "exec")
    exec(code, {{"__name__": "__main__", "__file__": main, "__builtins__": __builtins__}})
    if fallback and not committed:
        raise RuntimeError("it ended without taking over")
except BaseException as error:
    if committed or not fallback:
        raise
    _signal.alarm(0)
    why = f"{{type(error).__name__}}: {{error}}".replace("\\n", " ").replace("\\0", " ")[:500]
    posix.execv(sys.executable, [sys.executable, "-I", "-S", "-c", sys.orig_argv[4],
        fallback, channel, fallback_start_info, "", "", why])
"""


def installed_image() -> str:
    """The image that stands for the installed xenlive: a folder with `__main__.py`."""
    return os.path.join(os.path.abspath(__file__).rsplit(os.sep, 3)[0], "image")


def entry_command(
    image: str,
    channel: int | str,
    start_info: PhysAddr | int = 0,
    fallback: str = "",
    fallback_start_info: PhysAddr | int = 0,
    reason: str = "",
) -> list[str]:
    """The command that enters `image` as the file's head describes; addresses travel in hex."""
    return [
        *(sys.executable, "-I", "-S", "-c", ENTRY, image, str(channel), f"{start_info:#x}"),
        *(fallback, f"{fallback_start_info:#x}", reason),
    ]


def preflight_command(image: str) -> list[str]:
    """The command that makes `image` say what it is on standard output."""
    return entry_command(image, PREFLIGHT)


def validate_image(image: str) -> None:
    """Refuses what can't be an image, in the C daemon's words; UpdateError("image", …).

    A file must be executable as the C daemon asks, but for a zip archive: Python runs it anyway.
    """
    if not image.startswith("/") or not os.access(image, os.R_OK):
        raise UpdateError("image", "File not accessible.")
    if os.path.isdir(image):
        if not os.access(os.path.join(image, "__main__.py"), os.R_OK):
            raise UpdateError("image", f"No __main__.py in folder {image}.")
        return
    if not os.path.isfile(image):
        raise UpdateError("image", "File not accessible.")
    if not os.access(image, os.X_OK) and not _is_zip(image):
        raise UpdateError("image", "File not executable.")


def _is_zip(path: str) -> bool:
    import zipimport

    try:
        zipimport.zipimporter(path)
    except zipimport.ZipImportError:
        return False
    return True


def commit_entry() -> None:
    """Says that this kernel took over: from now on its end is the domain's end, no fallback."""
    main: Any = sys.modules["__main__"]
    if getattr(main, "fallback", ""):
        main._signal.alarm(0)
    main.committed = True
