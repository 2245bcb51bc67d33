"""Private files: opened, created, replaced and erased without being led astray.

Everything that touches the disk stands on this, and this on nothing but the errors.
"""
