"""Plugins behind a wall: a process without network, files or secrets; see docs/ISOLATION.md."""
