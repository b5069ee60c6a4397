"""The profile API: one person or account by any of its ids, or many by what they are like."""
