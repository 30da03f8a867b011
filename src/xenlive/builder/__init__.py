"""Images of the hosted machine, built from the installed package.

images.py     a folder or a zipapp, of byte code
compiled.py   a folder whose busiest modules are machine code
"""
