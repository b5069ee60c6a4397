"""Warehouses: what an event becomes in tables (pure), and one module per database."""
