"""`millrace.yaml`: read, expanded, checked; every fault at once with its place and remedy."""
