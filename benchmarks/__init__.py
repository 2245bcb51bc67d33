"""What apex-creds costs beside its peers: ``make bench`` or ``python -m benchmarks.invoke``."""
