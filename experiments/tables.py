"""Tables: reports -> columns -> markdown and a picture.

A table is (title, {row: {column: [a value for each seed]}}). A result is what SUITE.json holds: the question, the tables,
sentences, and how they were made.
"""

import json
import re
from pathlib import Path
from statistics import mean, stdev

from experiments.charts import KINDS, Panel, blocks
from experiments.suites import FEW
from parts.files import InputError, read_json, reading, write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments/results"  # the project's own results, which its page shows
PAGE = ROOT / "experiments/README.md"


# Reports -> columns


def by_kind(report):
    """{"data set kind": accuracy}: the base model's if nothing was trained."""
    return report["base" if report["method"] == "none" else "tuned"]["by_kind"]


def accuracy_of(kind):
    """A function: report -> accuracy on this kind of question, None if there was none."""
    return lambda report: by_kind(report).get(kind)


def own_accuracy(kind):
    """The same in the run's own data set: the first that it was evaluated on, in whatever look that is."""

    def value(report):
        first = next(iter(by_kind(report)), "").partition(" ")[0]
        return by_kind(report).get(f"{first} {kind}")

    return value


BOXES, WORDS = own_accuracy("grounding"), own_accuracy("attribute")


def accuracy(report):
    """What is compared: the accuracy of boxes in the run's own data set, or of everything if it has no boxes."""
    boxes = BOXES(report)
    return report["base" if report["method"] == "none" else "tuned"]["accuracy"] if boxes is None else boxes


def accuracies(reports):
    """{row: reports} -> {row: [accuracy of each seed]}."""
    return {row: [accuracy(report) for report in found] for row, found in reports.items()}


def undivided(report):
    """The accuracy of data sets that are not of boxes and words; None for others."""
    return accuracy(report) if BOXES(report) is None and WORDS(report) is None else None


MEASURES = {  # column: (value of a report, how it is written)
    "boxes": (BOXES, "%"),
    "words": (WORDS, "%"),
    "accuracy": (undivided, "%"),
    "boxes by day": (accuracy_of("scenes-day grounding"), "%"),
    "words by day": (accuracy_of("scenes-day attribute"), "%"),
    "text": (accuracy_of("sums text"), "%"),
    "text logits": (lambda report: report["text_logit_max_change"], ".2g"),
    "parameters": (lambda report: report["trainable_parameters"], ",.0f"),
    "FLOPs a step": (lambda report: report["adapter_flops_per_step"], ".2e"),
    "ms a step": (lambda report: report["step_ms"], ".0f"),
}
FORMS = {column: form for column, (_, form) in MEASURES.items()}
FORMS |= {"visual share": "%", "FLOPs over LoRA's": "%", "lost accuracy": "%"}  # any other column: ".2f"


def values(reports, column):
    """A column of MEASURES: a value for each report."""
    value, _ = MEASURES[column]
    return [value(report) for report in reports]


def measured(reports):
    """{row: reports} -> the rows of a table with the columns of MEASURES."""
    return {row: {column: values(found, column) for column in MEASURES} for row, found in reports.items()}


# Columns -> markdown


def cell(values, form):
    """The mean over the seeds, with the standard deviation where there are several."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    factor, places, unit = (100, ".1f", " %") if form == "%" else (1, form, "")
    text = f"{factor * mean(values):{places}}"
    if len(values) > 1 and form in ("%", ".2f"):
        text += f" ± {factor * stdev(values):{places}}"
    return text + unit


def filled_columns(rows):
    """The columns of a table that have a value in any row."""
    first = next(iter(rows.values()))
    return [column for column in first if any(value is not None for row in rows.values() for value in row[column])]


def markdown(result):
    """A suite's question and tables, and under them what its comparisons and its analysis say."""
    lines = [f"**{result['question']}**", ""]
    for title, rows in result["tables"]:
        if title:
            lines += [f"{title}:", ""]
        columns = filled_columns(rows)
        lines.append(f"| | {' | '.join(columns)} |")
        lines.append(f"|---|{'---|' * len(columns)}")
        for name, row in rows.items():
            cells = [cell(row[column], FORMS.get(column, ".2f")) for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"- {sentence}" for sentence in result["sentences"]]
    lines.append(f"- `{result['command']}`, {result['minutes']:.0f} minutes on {result['cores']} cores.")
    return "\n".join(lines) + "\n"


# Columns -> a picture

OVERLAP = (f"overlap of {FEW} heads (Jaccard)", "rank correlation")  # columns of two suites
COLUMNS = {  # suite: the columns that its picture shows, where a table has them; of the others: the first of each table
    "main": ("boxes", "boxes by day", "text"),
    "looks": ("boxes", "words"),
    "drift": OVERLAP,
    "stability": ("boxes", *OVERLAP),
}


def panels(suite, title, rows):
    """The panels that show a table: one for each of its columns that are to be seen."""
    there = filled_columns(rows) or list(next(iter(rows.values())))
    columns = [column for column in there if column in COLUMNS.get(suite, ())] or there[:1]
    return [Panel(f"{title}: {c}" if title else c, FORMS.get(c, ".2f"), lines(rows, c)) for c in columns]


def lines(rows, column):
    """{row: {column: values}} -> {line: {series: values}}. Rows "fog, base", "fog, LoRA", ... are one line."""
    found = {}
    for name, row in rows.items():
        line, _, kind = name.rpartition(", ")
        if line and kind in KINDS:
            found.setdefault(line, {})[kind] = row[column]
        else:
            found[name] = {"": row[column]}
    return found


def draw(file, suite, result):
    """The picture of a suite: a block for each of its tables."""
    blocks(file, result["question"], [panels(suite, title, rows) for title, rows in result["tables"]])


# Markdown -> files


MARKED = re.compile(r"^<!-- table: (\S+) -->\n(.*?)^<!-- end -->\n", re.DOTALL | re.MULTILINE)


def places(page):
    """The suites whose tables a page has a place for: between two marks, each alone on its line."""
    return [suite for suite, _ in MARKED.findall(page)]


def filled(page, results):
    """The text of a page with every marked table made again, with its pictures, from the files of the folder `results`.
    Raises InputError for a mark without an end."""

    def table(match):
        suite, old = match.groups()
        if "<!-- table:" in old:
            raise InputError(f"the table of {suite} has no <!-- end -->")
        if (results / f"{suite}.json").exists():
            new = measured_section(suite, results)
        else:
            new = f"Not measured yet: `python -m experiments {suite} --publish`.\n"
        return f"<!-- table: {suite} -->\n\n{new}\n<!-- end -->\n"

    page = MARKED.sub(table, page)
    if len(places(page)) < len(re.findall(r"^<!-- table:", page, re.MULTILINE)):
        raise InputError("the last table has no <!-- end -->")
    return page


def measured_section(suite, results):
    """The tables and sentences of a suite, its pictures, and a link to the numbers of every seed."""
    with reading(results / f"{suite}.json", "the results of a suite"):
        result = read_json(results / f"{suite}.json")
        tables = markdown(result)
    pictures = [f"![{result['question']}](results/{file.name})\n" for file in sorted(results.glob(f"{suite}*.png"))]
    numbers = f"The numbers of every seed: [{suite}.json](results/{suite}.json).\n"
    return "\n".join([tables, *pictures, numbers])


def refresh_page():
    """Fill experiments/README.md from the project's own results, and draw their pictures again."""
    page = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, filled(page, RESULTS))
    for suite in places(page):
        if (RESULTS / f"{suite}.json").exists():
            draw(RESULTS / f"{suite}.png", suite, read_json(RESULTS / f"{suite}.json"))


def is_published(out):
    """Whether a folder is that of the project's own results."""
    return out.resolve() == RESULTS.resolve()


def write_suite(suite, result, out):
    """Write SUITE.json, SUITE.png and the tables: into the page if it has a place for them and these are the project's own
    results, else into SUITE.md. Returns the files."""
    data, picture, text = (out / f"{suite}.{ending}" for ending in ("json", "png", "md"))
    write_text(data, json.dumps(result, indent=1) + "\n")
    draw(picture, suite, result)
    if is_published(out) and suite in places(PAGE.read_text(encoding="utf-8")):
        refresh_page()
        return [data, picture, PAGE]
    write_text(text, markdown(result))
    return [data, picture, text]
