"""The paper's tables, its review's demands and its open questions: see __main__.py."""
