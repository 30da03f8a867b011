"""Guest physical memory: addresses, the one door to it, and the map that says what is where."""
