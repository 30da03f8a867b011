"""9P2000.u without I/O: the protocol of the 9pfs device.

`messages.py` is the table of messages, `codec.py` turns them into bytes and back, `client.py` and
`server.py` are the two ends, `tree.py` says what a server needs of the files it exports.
"""
