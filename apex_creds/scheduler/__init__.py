"""Rotation: what is due, done in the background, on time, on use and on events."""
