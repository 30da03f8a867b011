"""xenlive: live update for Xen stub domains. The code is replaced, the memory stays."""

__version__ = "0.1.0"
