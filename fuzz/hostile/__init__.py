"""Hostile input for everything that reads what another kernel, a file or an operator left."""
