"""Embedded worlds: everything flowrl needs to run without a hub or a GPU."""
