"""Forgetting: deleting people and single ids, suppressing them, and the proof of it."""
