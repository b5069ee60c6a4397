"""Mappings from events to payloads: the reference's directives, checked and compiled once.

What the reference leaves open, and where we differ on purpose, stands in `pipeline/language/README.md`.
"""

from pipeline.language.mapping.compiling import Mapped, MappingError, MappingFault, compile_mapping

__all__ = ["Mapped", "MappingError", "MappingFault", "compile_mapping"]
