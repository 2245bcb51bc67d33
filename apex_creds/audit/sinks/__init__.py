"""Where audit events go beside the log's own file, and which.

Guarantee: a destination never holds up what is audited: each has a bounded queue and a
thread; what is lost is counted and recorded. See ``fan_out`` for those that are required.
"""

from __future__ import annotations

from apex_creds.audit.sinks.base import CallbackSink, Destination, Level, Line, Sink, StreamSink
from apex_creds.audit.sinks.fan_out import Destinations
from apex_creds.audit.sinks.sink_factory import from_environment, open_destinations, parse
from apex_creds.audit.sinks.system_logs import JournalSink, SyslogSink

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
