"""All that is declared in this room, as data: for whoever prints it or writes it in C.

    Group "the kexec module"  ── constants  KEXEC_EYE_CATCHER, KEXEC_MAX_RECORDS, …
                              └─ structures kexec_module  ── fields eye_catcher, n_pages, …

Specification: the files of this room, each of which names its own. ELF is not here, as every system
has `elf.h`.

**Invariants.** Nothing is declared here: names, offsets and numbers are those of the layouts, so
that they can't drift apart. Names are unique over all groups, the order is that of declaration.
"""

from __future__ import annotations

from xenlive.abi import (
    grant_table,
    kexec_module,
    start_info,
    xen9pfs,
    xencons,
    xs_ring,
    xs_state,
    xs_wire,
)
from xenlive.abi.layout import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from xenlive.abi.layout import Field

# `struct` codes and what they are in C.
_C_TYPES = {
    "B": "uint8_t",
    "b": "int8_t",
    "H": "uint16_t",
    "h": "int16_t",
    "I": "uint32_t",
    "i": "int32_t",
    "Q": "uint64_t",
    "q": "int64_t",
}

# What a constant's name begins with outside of its file, and beginnings that say it already.
_GROUPS: tuple[tuple[ModuleType, str, tuple[str, ...]], ...] = (
    (kexec_module, "KEXEC_", ()),
    (xen9pfs, "9PFS_", ()),
    (start_info, "HVM_START_INFO_", ("XEN_HVM_",)),
    (grant_table, "GNTTAB_", ("GNTTAB_", "GTF_")),
    (xencons, "XENCONS_", ()),
    (xs_ring, "XENSTORE_RING_", ("XENSTORE_",)),
    (xs_wire, "XS_", ("XS_", "XENSTORE_", "DOMID_")),
    (xs_state, "XS_STATE_", ("XS_STATE_",)),
)

# What follows a structure and has no size of its own.
_FOLLOWED_BY = {
    "kexec_module": "uint8_t pg2rec[n_pages]; at recs_off struct kexec_module_rec[n_records]",
    "kexec_sealed": "two slots of equal size, each a struct kexec_sealed_slot and payload",
    "kexec_sealed_slot": "the payload",
    "xen_9pfs_data_intf": "uint32_t ref[1 << ring_order]",
    "xsd_sockmsg": "len bytes of payload",
    "xs_state_preamble": "records up to the one of type END",
    "xs_state_record_header": "length bytes of body, and padding to a multiple of 8",
    "xs_state_connection": "data_in_len and data_out_len bytes",
    "xs_state_watch": "path and token",
    "xs_state_watch_ext": "path and token",
    "xs_state_node": "struct xs_state_node_perm[perm_n], path and data",
    "xs_state_glb_quota": "the quota",
    "xs_state_domain": "the quota",
}

# What a structure's fields are held to, for those who read or write it elsewhere.
_RULES = {
    "kexec_sealed": (
        "Each slot has half of what the record has behind this. The slot with the highest",
        "generation counts if its checksum matches (0: it is void), else the other one if that",
        "does; else the record is left alone. checksum is CRC-32 (zlib's) over kind, flags,",
        "generation and payload as they lie there, and then, with bit 0 of flags, over the pages",
        "that the record owns, in the order of their indices. An update writes the slot that does",
        "not count: generation 0, payload, checksum, and last, with one store of 4 bytes, a",
        "generation one above that of the slot that counts.",
    ),
    "kexec_resize": (
        "The journal of a resize by k = n_large - n_small pages; one record at most. Of pg2rec,",
        "positions below boundary (but for its highest bit) have the form of the small module,",
        "those from it on that of the large one: large[j + k] = small[j]. boundary goes down to 0,",
        "or with its highest bit set up to n_large, by at most k at a time: the owners are copied,",
        "then boundary is stored. A step may be done again; before turning round the step in",
        "progress is finished. Free and new pages belong to this record meanwhile. At the end",
        "n_pages is stored, the record's pages get 255, and the record is deleted. Who attaches",
        "goes on to the end that fits the size which the module was handed over with.",
    ),
}

# Positions in an array that only our code has: byte offsets are in the structures.
_LEFT_OUT = {"IN_CONS", "IN_PROD", "OUT_CONS", "OUT_PROD", "RING_ORDER", "REF0"}


class Structure:
    """A layout by its C name; `packed` if a C compiler would place its fields differently."""

    __slots__ = ("followed_by", "layout", "name", "packed", "rules")

    def __init__(self, name: str, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self.followed_by = _FOLLOWED_BY.get(name, "")
        self.rules = _RULES.get(name, ())
        self.packed = _needs_packing(layout)


class Group:
    """What one file declares: `title` is what it is for, `constants` are numbers and strings."""

    __slots__ = ("constants", "file", "structures", "title")

    def __init__(
        self,
        file: str,
        title: str,
        constants: dict[str, int | bytes],
        structures: list[Structure],
    ) -> None:
        self.file = file
        self.title = title
        self.constants = constants
        self.structures = structures


def groups() -> list[Group]:
    """Everything, in the order of `_GROUPS`."""
    return [_group(module, prefix, bare) for module, prefix, bare in _GROUPS]


def c_type(field: Field) -> tuple[str, int]:
    """A field's type in C and how many of these, 0 for a single one."""
    if field.code.endswith("s"):
        return "uint8_t", field.size
    return _C_TYPES[field.code], 0


def _group(module: ModuleType, prefix: str, bare: tuple[str, ...]) -> Group:
    constants: dict[str, int | bytes] = {}
    structures = []
    for name, value in vars(module).items():
        if isinstance(value, Layout):
            c_name = value.ctype.removeprefix("struct ") or name.lower()
            structures.append(Structure(c_name, value))
        elif type(value) in (int, bytes) and name not in _LEFT_OUT:
            constants[name if name.startswith(bare) else prefix + name] = value
    title = (module.__doc__ or module.__name__).partition("\n")[0].rstrip(".")
    return Group(module.__name__.rpartition(".")[2], title, constants, structures)


def _needs_packing(layout: Layout) -> bool:
    """Whether a field, or the next structure of an array, is not at a multiple of its alignment."""
    align = 1
    for field in layout.fields:
        own = 1 if field.code.endswith("s") else field.size
        if field.offset % own:
            return True
        align = max(align, own)
    return layout.size % align > 0
