"""Spans and metrics over the OpenTelemetry API; plain strings and numbers in."""
