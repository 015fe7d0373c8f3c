"""The method with one thing changed. Importing this adds its adapter to METHODS and its criteria to CRITERIA."""

from variants import ablations, criteria

__all__ = ["ablations", "criteria"]
