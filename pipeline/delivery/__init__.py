"""Delivers resolved events to every destination: isolated, in order per profile, retried, accounted for."""
