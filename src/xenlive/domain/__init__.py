"""What a domain has: configuration, grants, event channels, both ends of its 9pfs device."""
