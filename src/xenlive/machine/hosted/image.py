"""What an image is on the hosted machine, and how a process is entered with one.

An image is anything that Python runs: a folder with `__main__.py`, a zipapp, a script; without a
name it is the installed xenlive itself (its folder `image/`). The process gets

    python -I -S -c ENTRY IMAGE CHANNEL START_INFO FALLBACK FALLBACK_START_INFO REASON LOADED KEPT

and the image finds in `sys.argv`: itself, the descriptor of the hypercall channel, the physical
address of its `hvm_start_info`, and the reason if it is entered as somebody's fallback. `-I -S`
keeps the environment and site-packages out: they cost more time than all of the kernel.

`ENTRY` is the processor's part of kexec. It runs the image, and as long as the new kernel has not
said that it took over (`commit_entry`), whatever ends it (an exception, an exit, a hang) enters
the fallback image on the same descriptors instead: the old kernel comes back and `REASON` says
why. Beyond it are only the death of the process itself, and a kernel that sets out to prevent it:
by closing descriptors it was handed, or by overwriting the start info of its fallback.

Like any kexec, this one loads the next kernel before it stops the running one: the image is first
run with `--preflight` in place of the channel, says what it is in one line, and `ENTRY` writes the
code of all modules that this took into `LOADED`, the descriptor of a memfd. After kexec they come
from there: Python searching for sixty files would be waited for by every client. The kernel keeps
its memfd as long as it runs: it is what comes back, as `KEPT`, whatever has become of the files.

Modules of an image that are machine code (`builder/compiled.py`) travel as the bytes of their
shared objects. The loader wants files: each is given one in memory, under a name that no other had,
as it takes the same name for the same library.
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

#: Seconds an image has to say what it is and to be loaded.
TRIAL_TIMEOUT_S = 10

PREFLIGHT = "--preflight"

#: Where the block for a kernel goes: a hosted kernel occupies no guest memory, so this is right
#: where its image would end, at the usual load address.
LOAD_END = PhysAddr(0x100000)

# Kept as text: the old kernel must be able to enter a new one after its own files are gone.
ENTRY = f"""
import _imp, marshal, posix, sys
image, channel, start_info, fallback, fallback_start_info, reason, loaded, kept = sys.argv[1:9]
committed = False
main, code, modules = image, None, {{}}
execv, path = posix.execv, sys.executable
come_back = [path, "-I", "-S", "-c", sys.orig_argv[4], fallback, channel, fallback_start_info]

class Loaded:
    shared_objects = 0
    @staticmethod
    def find_spec(name, path, target=None):
        if name not in modules:
            return None
        origin, is_package, _ = modules[name]
        spec = type(sys.__spec__)(name, Loaded, origin=origin, is_package=is_package)
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations.append(origin.rpartition("/")[0])
        return spec
    @staticmethod
    def create_module(spec):
        origin, _, code = modules[spec.name]
        if type(code) is not bytes:
            return None
        Loaded.shared_objects += 1
        fd = posix.memfd_create(spec.name, posix.MFD_CLOEXEC)
        write_all(fd, code)
        spec.origin = "/proc/self/fd" + "/" * Loaded.shared_objects + str(fd)
        try:
            return _imp.create_dynamic(spec)
        finally:
            spec.origin = origin
            posix.close(fd)
    @staticmethod
    def exec_module(module):
        code = modules[module.__name__][2]
        if type(code) is bytes:
            _imp.exec_dynamic(module)
        else:
            exec(code, module.__dict__)

def write_all(fd, data):
    while data:
        data = data[posix.write(fd, data):]

class NoSignOfLife(BaseException):
    "Not an Exception: a kernel that hangs must not be able to go on by habit."

def late(*_):
    raise NoSignOfLife("for {ENTRY_TIMEOUT_S} s")

def tell(error):
    try:
        why = f"{{type(error).__name__}}: {{error}}"
    except BaseException:
        why = "an error that can't be told"
    words = why.encode("ascii", "backslashreplace").decode()
    return "".join([c if c.isprintable() else " " for c in words])[:500]

def find_main():
    if posix.stat(image).st_mode & 0o170000 == 0o040000:
        path = image + "/__main__.py"
    else:
        import zipimport
        try:
            return image, zipimport.zipimporter(image).get_code("__main__")
        except zipimport.ZipImportError:
            path = image
    with open(path, "rb") as file:
        return path, compile(file.read(), path, "exec")

def save_modules(fd):
    kinds = ("SourceFileLoader", "SourcelessFileLoader", "zipimporter")
    for name, module in sys.modules.items():
        spec = getattr(module, "__spec__", None)
        if spec is not None and type(spec.loader).__name__ in kinds:
            origin = spec.origin or module.__file__
            is_package = spec.submodule_search_locations is not None
            modules[name] = origin, is_package, spec.loader.get_code(name)
        elif spec is not None and type(spec.loader).__name__ == "ExtensionFileLoader":
            if spec.origin.startswith(sys.path[0] + "/"):
                modules[name] = spec.origin, False, spec.loader.get_data(spec.origin)
    write_all(fd, marshal.dumps((main, code, modules)))

import _signal
if fallback:
    # Again and again: one that was swallowed is followed by the next.
    _signal.signal(_signal.SIGALRM, late)
    _signal.setitimer(_signal.ITIMER_REAL, {ENTRY_TIMEOUT_S}, 1)
elif channel == "{PREFLIGHT}":
    _signal.alarm({TRIAL_TIMEOUT_S} + 1)
try:
    sys.argv = [image, channel, start_info, reason]
    sys.path.insert(0, image)
    if loaded and channel != "{PREFLIGHT}":
        size = posix.fstat(int(loaded)).st_size
        main, code, modules = marshal.loads(posix.pread(int(loaded), size, 0))
        sys.meta_path.insert(0, Loaded)
    else:
        main, code = find_main()
    exec(code, {{"__name__": "__main__", "__file__": main, "__builtins__": __builtins__}})
    if fallback and not committed:
        raise RuntimeError("it ended without taking over")
    if loaded and channel == "{PREFLIGHT}":
        save_modules(int(loaded))
except BaseException as error:
    if committed:
        raise
    if not fallback:
        # Nobody to come back: the reason, in one line, is all there is to leave.
        why = tell(error).removeprefix("SystemExit: ")
        if why:
            print(why, file=sys.stderr)
        raise SystemExit(1) from None
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    execv(path, [*come_back, "", "", tell(error), kept, ""])
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
    loaded: int | str = "",
    kept: int | str = "",
) -> list[str]:
    """The command that enters `image` as the file's head describes; addresses travel in hex."""
    return [
        *(sys.executable, "-I", "-S", "-c", ENTRY, image, str(channel), f"{start_info:#x}"),
        *(fallback, f"{fallback_start_info:#x}", reason, str(loaded), str(kept)),
    ]


def preflight_command(image: str, loaded: int) -> list[str]:
    """The command that makes `image` say what it is, and writes its modules to `loaded`."""
    return entry_command(image, PREFLIGHT, loaded=loaded)


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


def running_code() -> int:
    """The memfd that holds the running kernel's code, made now if it was entered from files."""
    main: Any = sys.modules["__main__"]
    if main.loaded:
        return int(main.loaded)
    fd = os.memfd_create("xenlive-image", os.MFD_CLOEXEC)
    try:
        main.save_modules(fd)
    except BaseException:
        os.close(fd)
        raise
    main.loaded = str(fd)
    return fd


def handed_code() -> list[int]:
    """The descriptors of memfds with code that this kernel was entered with."""
    main: Any = sys.modules["__main__"]
    return [int(fd) for fd in (main.loaded, main.kept) if fd]


def drop_fallback_code() -> None:
    """Gives back the code of the kernel before, which can't come back any more."""
    main: Any = sys.modules["__main__"]
    if main.kept:
        os.close(int(main.kept))
        main.kept = ""


def commit_entry() -> None:
    """Says that this kernel took over: from now on its end is the domain's end, no fallback."""
    main: Any = sys.modules["__main__"]
    if getattr(main, "fallback", ""):
        main._signal.setitimer(main._signal.ITIMER_REAL, 0)
    main.committed = True
