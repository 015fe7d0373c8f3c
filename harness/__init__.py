"""What surrounds a run: arguments, processes, cached encodings, evaluation, report, resuming, pictures."""
import warnings

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch looks for it; nothing here needs it
