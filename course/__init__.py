"""A course in ten lessons, with exercises that check themselves: `python -m course`."""
