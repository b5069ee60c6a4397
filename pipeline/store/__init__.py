"""The database: one schema for SQLite and PostgreSQL, every statement in this folder."""
