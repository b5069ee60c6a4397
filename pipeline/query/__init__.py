"""What can be asked: profiles, the path of an event, the balance, health and metrics. Only reads."""

from pipeline.query.app import create_api

__all__ = ["create_api"]
