"""A folder image whose busiest modules are machine code: the same source, compiled by mypyc.

    folder/
    ├── __main__.py
    ├── <number>__mypyc.cpython-….so      the code of all of them
    └── xenlive/
        ├── xenstore/server.py            what a traceback shows
        └── xenstore/server.cpython-….so  a few lines that point into it

mypyc translates modules that mypy has typed to C, and the system's C compiler does the rest
(docs/decisions/0011-compiled-images.md). Python takes a module's shared object if there is one for
this interpreter, else its source: an image that is taken to another interpreter is slower, no more.

**Invariants.** The sources are the installed ones, as they are. mypyc's ways (its command, its
environment, what it leaves where) are known in this file only.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from xenlive.builder.images import build_folder
from xenlive.errors import BuildError

#: What a request goes through, and a state stream; calls among them are calls in C.
MODULES = (
    "errors.py",
    *("stubdom/serve.py", "xenstore/server.py", "xenstore/connection.py", "xenstore/requests.py"),
    *("xenstore/state.py", "xenstore/store.py", "xenstore/transaction.py", "xenstore/watches.py"),
    *("xenstore/paths.py", "xenstore/perms.py", "xenstore/accounts.py", "xenstore/limits.py"),
    *(
        "xenstore/stream_encode.py",
        "xenstore/stream_decode.py",
    ),  # what an update's clients wait for
)

_LAST_WORDS = 3  # lines of a compiler that gave up


def missing() -> str:
    """What there is to do before anything can be compiled here; empty if nothing."""
    if importlib.util.find_spec("mypyc") is None or importlib.util.find_spec("setuptools") is None:
        return "compiling needs mypyc: pip install 'xenlive[compiled]'"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc").split()[0], "gcc")):
        return "compiling needs a C compiler (Debian: apt install gcc libc6-dev)"
    return ""


def build_compiled(target: Path, version: str) -> Path:
    """Makes the folder `target`, an image like `build_folder`'s with `MODULES` compiled.

    FileExistsError if it is there already, ConfigError for a version that is none, BuildError if it
    can't be compiled here; then nothing is left.
    """
    lacking = missing()
    if lacking:
        raise BuildError(lacking)
    build_folder(target, version)
    try:
        with tempfile.TemporaryDirectory(prefix="xenlive-build-") as folder:
            _compile(target, Path(folder))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def _compile(image: Path, work: Path) -> None:
    """Runs mypyc in `work` on a copy of `image`'s sources, and puts what it made into `image`."""
    shutil.copytree(image / "xenlive", work / "xenlive")
    environment = {
        **os.environ,
        "MYPYC_OPT_LEVEL": "3",
        "MYPYC_DEBUG_LEVEL": "0",
        "LDFLAGS": "-Wl,-s",
        "MYPY_CACHE_DIR": str(work / "types"),
    }
    environment.pop("MYPYPATH", None)
    done = subprocess.run(
        [sys.executable, "-m", "mypyc", *(f"xenlive/{name}" for name in MODULES)],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    made = [path for path in work.rglob("*.so") if "build" not in path.relative_to(work).parts]
    if done.returncode or len(made) != len(MODULES) + 1:
        said = " / ".join(done.stdout.strip().splitlines()[-_LAST_WORDS:])
        raise BuildError(f"mypyc gave up ({done.returncode}): {said}")
    for path in made:
        shutil.copy(path, image / path.relative_to(work))
