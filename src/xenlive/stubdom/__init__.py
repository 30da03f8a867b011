"""The Xenstore stub domain: booting from a start info, and the loop that serves clients."""
