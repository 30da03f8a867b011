"""The hypervisor: what Xen keeps of a domain, and what its hypercalls answer."""
