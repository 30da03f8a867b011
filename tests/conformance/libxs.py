"""libxenstore, Debian's C client library, as ctypes sees it: what most of Xen's tools are built on.

Specification: `xenstore.h`. Each function that fails raises OSError with the library's errno.

**Invariants.** What the library allocates is freed here; nothing of it is kept.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_uint, c_uint32, c_ulong, c_void_p
from pathlib import Path

NO_TRANSACTION = 0
READ, WRITE = 1, 2  # enum xs_perm_type


class Permission(ctypes.Structure):
    """`struct xs_permissions`."""

    _fields_ = (("domid", c_uint), ("what", c_int))


FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "xs_open": (c_void_p, (c_ulong,)),
    "xs_close": (None, (c_void_p,)),
    "xs_directory": (c_void_p, (c_void_p, c_uint32, c_char_p, POINTER(c_uint))),
    "xs_read": (c_void_p, (c_void_p, c_uint32, c_char_p, POINTER(c_uint))),
    "xs_write": (c_bool, (c_void_p, c_uint32, c_char_p, c_char_p, c_uint)),
    "xs_mkdir": (c_bool, (c_void_p, c_uint32, c_char_p)),
    "xs_rm": (c_bool, (c_void_p, c_uint32, c_char_p)),
    "xs_get_permissions": (c_void_p, (c_void_p, c_uint32, c_char_p, POINTER(c_uint))),
    "xs_set_permissions": (c_bool, (c_void_p, c_uint32, c_char_p, POINTER(Permission), c_uint)),
    "xs_watch": (c_bool, (c_void_p, c_char_p, c_char_p)),
    "xs_read_watch": (c_void_p, (c_void_p, POINTER(c_uint))),
    "xs_check_watch": (c_void_p, (c_void_p,)),
    "xs_unwatch": (c_bool, (c_void_p, c_char_p, c_char_p)),
    "xs_fileno": (c_int, (c_void_p,)),
    "xs_transaction_start": (c_uint32, (c_void_p,)),
    "xs_transaction_end": (c_bool, (c_void_p, c_uint32, c_bool)),
    "xs_introduce_domain": (c_bool, (c_void_p, c_uint, c_ulong, c_uint)),
    "xs_release_domain": (c_bool, (c_void_p, c_uint)),
    "xs_resume_domain": (c_bool, (c_void_p, c_uint)),
    "xs_set_target": (c_bool, (c_void_p, c_uint, c_uint)),
    "xs_get_domain_path": (c_void_p, (c_void_p, c_uint)),
    "xs_is_domain_introduced": (c_bool, (c_void_p, c_uint)),
    "xs_control_command": (c_void_p, (c_void_p, c_char_p, c_void_p, c_uint)),
}


def load() -> ctypes.CDLL:
    """The library, its functions declared. OSError if it is not there."""
    library = ctypes.CDLL(ctypes.util.find_library("xenstore") or "libxenstore.so", use_errno=True)
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class LibXenstore:
    """One handle on the server at `socket_path`, by `xs_open(0)`."""

    def __init__(self, socket_path: Path) -> None:
        self._library = load()
        self._free = ctypes.CDLL(None).free
        self._free.argtypes = (c_void_p,)
        self._free.restype = None
        before = os.environ.get("XENSTORED_PATH")
        os.environ["XENSTORED_PATH"] = str(socket_path)
        try:
            self._handle = self._checked(self._library.xs_open(0))
        finally:
            if before is None:
                del os.environ["XENSTORED_PATH"]
            else:
                os.environ["XENSTORED_PATH"] = before

    def close(self) -> None:
        """Ends the connection, and the thread that read for it."""
        self._library.xs_close(self._handle)

    def read(self, path: bytes, tx: int = NO_TRANSACTION) -> bytes:
        size = c_uint()
        found = self._library.xs_read(self._handle, tx, path, byref(size))
        return self._taken(found, size.value)

    def directory(self, path: bytes, tx: int = NO_TRANSACTION) -> list[bytes]:
        """Longer ones come in parts; the library sees to that."""
        count = c_uint()
        found = self._library.xs_directory(self._handle, tx, path, byref(count))
        return self._strings(found, count.value)

    def write(self, path: bytes, value: bytes, tx: int = NO_TRANSACTION) -> None:
        self._checked(self._library.xs_write(self._handle, tx, path, value, len(value)))

    def mkdir(self, path: bytes, tx: int = NO_TRANSACTION) -> None:
        self._checked(self._library.xs_mkdir(self._handle, tx, path))

    def rm(self, path: bytes, tx: int = NO_TRANSACTION) -> None:
        self._checked(self._library.xs_rm(self._handle, tx, path))

    def get_permissions(self, path: bytes) -> list[tuple[int, int]]:
        count = c_uint()
        found = self._checked(
            self._library.xs_get_permissions(self._handle, NO_TRANSACTION, path, byref(count))
        )
        entries = (Permission * count.value).from_address(found)
        copied = [(entry.domid, entry.what) for entry in entries]
        self._free(found)
        return copied

    def set_permissions(self, path: bytes, entries: list[tuple[int, int]]) -> None:
        array = (Permission * len(entries))(*(Permission(*entry) for entry in entries))
        self._checked(
            self._library.xs_set_permissions(
                self._handle, NO_TRANSACTION, path, array, len(entries)
            )
        )

    def watch(self, path: bytes, token: bytes) -> None:
        self._checked(self._library.xs_watch(self._handle, path, token))

    def unwatch(self, path: bytes, token: bytes) -> None:
        self._checked(self._library.xs_unwatch(self._handle, path, token))

    def read_watch(self) -> list[bytes]:
        """The next event, path and token; waits for it."""
        count = c_uint()
        found = self._library.xs_read_watch(self._handle, byref(count))
        return self._strings(found, count.value)

    def check_watch(self) -> bool:
        """Whether an event was there, which is taken. OSError EAGAIN if there was none."""
        found = self._checked(self._library.xs_check_watch(self._handle))
        self._free(found)
        return True

    def fileno(self) -> int:
        """Readable when there is an event."""
        return int(self._library.xs_fileno(self._handle))

    def transaction_start(self) -> int:
        return self._checked(self._library.xs_transaction_start(self._handle))

    def transaction_end(self, tx: int, *, abort: bool = False) -> None:
        self._checked(self._library.xs_transaction_end(self._handle, tx, abort))

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        self._checked(self._library.xs_introduce_domain(self._handle, domid, gfn, port))

    def release(self, domid: int) -> None:
        self._checked(self._library.xs_release_domain(self._handle, domid))

    def resume(self, domid: int) -> None:
        self._checked(self._library.xs_resume_domain(self._handle, domid))

    def set_target(self, domid: int, target: int) -> None:
        self._checked(self._library.xs_set_target(self._handle, domid, target))

    def domain_path(self, domid: int) -> bytes:
        found = self._checked(self._library.xs_get_domain_path(self._handle, domid))
        return self._taken(found, len(ctypes.string_at(found)))

    def is_introduced(self, domid: int) -> bool:
        return bool(self._library.xs_is_domain_introduced(self._handle, domid))

    def control(self, verb: bytes) -> bytes:
        found = self._checked(self._library.xs_control_command(self._handle, verb, None, 0))
        return self._taken(found, len(ctypes.string_at(found)))

    def _checked(self, result: int | None) -> int:
        if not result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def _taken(self, address: int | None, size: int) -> bytes:
        address = self._checked(address)
        data = ctypes.string_at(address, size)
        self._free(address)
        return data

    def _strings(self, address: int | None, count: int) -> list[bytes]:
        address = self._checked(address)
        found = [each or b"" for each in (c_char_p * count).from_address(address)]
        self._free(address)
        return found
