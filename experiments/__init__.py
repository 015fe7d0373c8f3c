"""The paper's tables, its review's demands and its open questions: see __main__.py."""

import warnings

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch looks for it; nothing here needs it
