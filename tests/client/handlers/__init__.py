"""Tiny handlers, archived one by one; each does one thing that a client must cope with."""
