"""Hooks for agent runtimes, one file per runtime; ``apexagent`` is the first.

Guarantee: a hook is one call, changes nothing for plugins that declare no credentials, and
can be taken back exactly.
"""
