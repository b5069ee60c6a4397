"""The languages of the configuration: filters over events, and mappings from events to payloads. Pure."""
