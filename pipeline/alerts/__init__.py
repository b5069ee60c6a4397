"""Tells people when deliveries fail, sources fall silent, queues grow or the books do not balance."""
