"""What serves a guest from the other end of its rings: console, Xenstore, devices."""
