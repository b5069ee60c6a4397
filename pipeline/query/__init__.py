"""What can be asked: profiles, the path of an event, the balance, health and metrics. Only reads."""
