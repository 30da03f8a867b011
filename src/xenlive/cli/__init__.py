"""Commands: each module holds one or two, and `main.py` the table of all; no work is done here."""
