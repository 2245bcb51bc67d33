"""Where audit events go beside the log's own file, and which.

Guarantee: a destination never holds up what is audited: each has a bounded queue and a
thread; what is lost is counted and recorded. See ``hub`` for those that are required.
"""

from __future__ import annotations

from apex_creds.audit.sinks.base import Destination, Line, Sink
from apex_creds.audit.sinks.hub import Destinations
from apex_creds.audit.sinks.journald import JournalSink
from apex_creds.audit.sinks.levels import Level
from apex_creds.audit.sinks.opening import open_destinations
from apex_creds.audit.sinks.parse import from_environment, parse
from apex_creds.audit.sinks.streams import CallbackSink, StreamSink
from apex_creds.audit.sinks.syslog import SyslogSink

__all__ = [
    "CallbackSink",
    "Destination",
    "Destinations",
    "JournalSink",
    "Level",
    "Line",
    "Sink",
    "StreamSink",
    "SyslogSink",
    "from_environment",
    "open_destinations",
    "parse",
]
