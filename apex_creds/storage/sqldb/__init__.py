"""What the SQL storage is made of: where it is, its tables, its statements, its errors.

Guarantee: nothing above ``storage`` imports from here, and nothing here is imported before
a vault in a database is opened: the core works without the extra ``apex-creds[sql]``.
"""

from __future__ import annotations
