"""Dedupe, identity, profiles, store and delivery: everything between the log and the destinations."""
