"""The event log: one interface, two implementations (`embedded`, `kafka`), one contract suite over both."""

from pipeline.log.contract import Batch, Log, Record, Start, Subscription, open_log

__all__ = ["Batch", "Log", "Record", "Start", "Subscription", "open_log"]
