"""Runs the offline cells of a notebook in this folder: `python run_notebook.py NOTEBOOK [OLD NEW]...`, where each OLD is
replaced by NEW. A cell that needs a GPU says so in its first line and is left out."""

import json
import sys
import types
from pathlib import Path

WRITE = "%%writefile "

display = types.ModuleType("IPython.display")
display.Image = lambda file: Path(file).read_bytes()  # a picture that is missing is an error
display.display = lambda shown: print(f"displayed {len(shown)} bytes")
sys.modules |= {"IPython": types.ModuleType("IPython"), "IPython.display": display}

names = {"__name__": "__main__"}
for cell in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "code" and source.startswith(WRITE):
        file, text = source.removeprefix(WRITE).split("\n", 1)
        Path(file).write_text(text + "\n", encoding="utf-8")
    elif cell["cell_type"] == "code" and not source.startswith("# GPU"):
        for old, new in zip(sys.argv[2::2], sys.argv[3::2]):
            source = source.replace(old, new)
        exec(source, names)  # noqa: S102 (our own notebook)
