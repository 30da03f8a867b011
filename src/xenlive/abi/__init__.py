"""Exact layouts of what is shared with others: one file a format, each field declared once."""
