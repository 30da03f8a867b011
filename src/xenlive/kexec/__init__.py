"""Handing over: the module, its placement in the start info, checks, steps that can be undone."""

from __future__ import annotations

from xenlive.kexec.module import KexecModule, Record

__all__ = ["KexecModule", "Record"]
