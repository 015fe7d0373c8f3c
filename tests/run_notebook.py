"""Runs the offline cells of a notebook in this folder: `python run_notebook.py NOTEBOOK [OLD NEW]...`, where each OLD is
replaced by NEW. A cell that needs the network or a GPU says so in its first line and is left out."""

import json
import sys
import types
from pathlib import Path

WRITE = "%%writefile "


def main(notebook, *replaced):
    display = types.ModuleType("IPython.display")
    display.Image = lambda file: Path(file).read_bytes()  # a picture that is missing is an error
    display.display = lambda shown: print(f"displayed {len(shown)} bytes")
    sys.modules |= {"IPython": types.ModuleType("IPython"), "IPython.display": display}

    names = {"__name__": "__main__"}
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        first = source.splitlines()[0]
        if cell["cell_type"] != "code" or (first.startswith("#") and "network" in first):
            continue
        if first.startswith(WRITE):
            Path(first.removeprefix(WRITE)).write_text(source.split("\n", 1)[1] + "\n", encoding="utf-8")
            continue
        for old, new in zip(replaced[::2], replaced[1::2]):
            source = source.replace(old, new)
        exec(source, names)  # noqa: S102 (our own notebook)


if __name__ == "__main__":
    main(*sys.argv[1:])
