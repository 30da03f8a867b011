"""The hosted machine: a domain is a process, its RAM a memfd, kexec an execve.

Two sides, which share `hypercall.py` (the channel between them) and nothing else:

* the guest side, `guest.py`: loaded by the domain process;
* the host side: `hypervisor.py` (one domain's resources, without I/O of its own), `ninepfs.py` (its
  9pfs device), `host.py` (the process around them), `places.py` (its files), `control.py` (who
  asks it what).

`image.py` says what an image is and how a process is entered with one; both sides use it.
"""
