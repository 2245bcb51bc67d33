"""Who may use what: manifests, grants, and the pure decision over them.

Guarantee: ``decide`` is pure and total, and default is deny; only ``source`` reads a file.
"""
