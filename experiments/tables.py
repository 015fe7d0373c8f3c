"""Tables: reports of runs -> columns -> markdown, and the page experiments/README.md.

A table is (title, {row: {column: [a value for each seed]}}). A result is what SUITE.json holds: the question, the tables,
the comparisons, further sentences, and how all of this was made.
"""

import json
import re
from pathlib import Path
from statistics import mean, stdev

from experiments.comparisons import sentence
from experiments.suites import BUDGETS
from parts.files import read_json, write_text

RESULTS = Path(__file__).parent / "results"  # the project's own results, which its page shows
PAGE = Path(__file__).parent / "README.md"


# Reports -> columns

QUESTIONS = {  # column: (its data set; None: the one that the run is about, kind of its questions)
    "boxes": (None, "grounding"),
    "words": (None, "attribute"),
    "boxes by day": ("scenes-day", "grounding"),
    "words by day": ("scenes-day", "attribute"),
    "text": ("sums", "text"),
}


def when(report):
    """Which answers of a run count: the base model's if nothing was trained."""
    return "base" if report["method"] == "none" else "tuned"


def own_data(report):
    """The data set that a run is about: the first that it was evaluated on."""
    return next(iter(report[when(report)]["by_kind"]), "").partition(" ")[0]


def accuracy(report, column):
    """The accuracy in a column; None if it was not measured. "accuracy" is that of data sets without boxes and words."""
    if column == "accuracy":
        asked = [accuracy(report, name) for name in ("boxes", "words")]
        return report[when(report)]["accuracy"] if asked == [None, None] else None
    data, kind = QUESTIONS[column]
    return report[when(report)]["by_kind"].get(f"{data or own_data(report)} {kind}")


def main_column(report):
    """What rows are compared by: boxes, else words, else the accuracy of everything."""
    return next(column for column in ("boxes", "words", "accuracy") if accuracy(report, column) is not None)


COSTS = {  # column: (its name in a report, how it is written)
    "text logits": ("text_logit_max_change", ".2g"),
    "parameters": ("trainable_parameters", ",.0f"),
    "FLOPs a step": ("adapter_flops_per_step", ".2e"),
}
FORMS = {column: form for column, (_, form) in COSTS.items()}
FORMS |= {"learning rate": "g", "rates tried": ".0f"}  # any other column: ".2f"
FORMS |= dict.fromkeys((*QUESTIONS, "accuracy", "visual share", "FLOPs over LoRA's", "boxes on val"), "%")
FORMS |= {f"K = {budget}": "%" for budget in BUDGETS}


def measured(reports):
    """{row: [report of each seed]} -> the rows of a table: accuracies, then costs."""
    rows = {}
    for row, of_seeds in reports.items():
        rows[row] = {column: [accuracy(report, column) for report in of_seeds] for column in (*QUESTIONS, "accuracy")}
        rows[row] |= {column: [report[key] for report in of_seeds] for column, (key, _) in COSTS.items()}
    return rows


# Columns -> markdown


def cell(values, form):
    """The mean over the seeds, with the standard deviation where the seeds are several."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    factor, places, unit = (100, ".1f", " %") if form == "%" else (1, form, "")
    text = f"{factor * mean(values):{places}}"
    if len(values) > 1 and form in ("%", ".2f"):
        text += f" ± {factor * stdev(values):{places}}"
    return text + unit


def markdown(result):
    """A suite's question and tables; under them what its comparisons and its analysis say, and the command."""
    lines = [f"**{result['question']}**", ""]
    for title, rows in result["tables"]:
        if title:
            lines += [f"{title}:", ""]
        columns = list(next(iter(rows.values())))
        columns = [c for c in columns if any(row[c] != [None] * len(row[c]) for row in rows.values())]
        lines.append(f"| | {' | '.join(columns)} |")
        lines.append(f"|---|{'---|' * len(columns)}")
        for name, row in rows.items():
            cells = [cell(row[column], FORMS.get(column, ".2f")) for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"- {text}" for text in [*result["sentences"], *map(sentence, result["comparisons"])]]
    lines.append(f"- `{result['command']}`, {result['minutes']:.0f} minutes on {result['cores']} cores.")
    return "\n".join(lines) + "\n"


# A result -> files

MARKED = re.compile(r"^<!-- table: (\S+) -->\n(.*?)^<!-- end -->\n", re.DOTALL | re.MULTILINE)


def write_result(name, result, out):
    """Write NAME.json and the tables: into the page where these are the project's own results and the page has
    the two marks for them, else into NAME.md."""
    write_text(out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    page = PAGE.read_text(encoding="utf-8")
    if out == RESULTS and f"<!-- table: {name} -->" in page:
        write_text(PAGE, filled(page, RESULTS))
    else:
        write_text(out / f"{name}.md", markdown(result))
    print(f"\n{markdown(result)}\n  written to {out / name}.json")


def filled(page, results):
    """The text of a page with the tables between two marks made again from the files of the folder `results`: tables and
    sentences of a suite, its pictures, and a link to the numbers of every seed."""

    def table(match):
        name = match[1]
        if not (results / f"{name}.json").exists():
            return f"<!-- table: {name} -->\n\nNot measured yet: `python -m experiments {name}`.\n\n<!-- end -->\n"
        result = read_json(results / f"{name}.json")
        parts = [f"<!-- table: {name} -->\n", markdown(result)]
        parts += [f"![{result['question']}](results/{file.name})\n" for file in sorted(results.glob(f"{name}*.png"))]
        parts += [f"The numbers of every seed: [{name}.json](results/{name}.json).\n", "<!-- end -->\n"]
        return "\n".join(parts)

    return MARKED.sub(table, page)
