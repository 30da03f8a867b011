"""Xenstore without I/O: store, permissions, watches, transactions, server core, state stream."""
