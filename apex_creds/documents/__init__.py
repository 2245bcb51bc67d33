"""Every document of a vault: loaded and committed one way, over any storage."""
