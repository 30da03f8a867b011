"""What a hosted domain process runs: the kernel, and the installed xenlive as an image.

The folder itself is an image (`machine/hosted/image.py`): it has a `__main__.py`.
"""
