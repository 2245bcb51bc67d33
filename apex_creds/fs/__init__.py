"""Private files: opened, created, replaced and erased, each checked on its open descriptor.

Everything that touches the disk stands on this, and this on nothing but the errors.
"""
