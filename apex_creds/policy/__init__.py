"""Who may use what: manifests, grants, and the pure decision over them.

Guarantee: nothing here does I/O; ``decide`` is total and default is deny.
"""
