"""A course in eight lessons, with exercises that check themselves: `python -m course`."""
