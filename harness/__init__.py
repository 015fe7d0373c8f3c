"""What surrounds a run: arguments, processes, cached encodings, evaluation, report, resuming, pictures."""
