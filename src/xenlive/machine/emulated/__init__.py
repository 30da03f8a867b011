"""The emulated machine: real PVH kernels on a CPU emulator, with Python as their hypervisor."""
