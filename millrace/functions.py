"""What function files import: `from millrace.functions import Drop, Invalid, Retry`."""

from schemas.functions import Drop, Invalid, Retry

__all__ = ["Drop", "Invalid", "Retry"]
