"""The composition root: command line, configuration, roles and their supervisor. Nobody imports it."""
