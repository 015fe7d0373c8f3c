"""Tables: reports -> columns -> markdown and a picture. A table is (title, {row: {column: [a value a seed]}})."""

from statistics import mean, stdev

from files import read_json, write_text
from harness import figures


def kinds(report):
    return report["tuned"]["by_kind"] or report["base"]["by_kind"]


def accuracy(report):
    return report["base" if report["method"] == "none" else "tuned"]["accuracy"]


MEASURES = {  # column: (value of a report or None, how it is written)
    "new look": (accuracy, "%"),
    "day grounding": (lambda r: kinds(r).get("scenes-day grounding"), "%"),
    "attributes": (lambda r: kinds(r).get("scenes-day attribute"), "%"),
    "text": (lambda r: kinds(r).get("sums text"), "%"),
    "text logits": (lambda r: r["text_logit_max_change"], ".2g"),
    "parameters": (lambda r: r["trainable_parameters"], ",.0f"),
    "FLOPs a step": (lambda r: r["adapter_flops_per_step"], ".2e"),
    "ms a step": (lambda r: r["step_ms"], ".0f"),
}  # fmt: skip
FORMS = {column: form for column, (_, form) in MEASURES.items()} | {
    "visual share": "%",
    "FLOPs over LoRA's": "%",
    "lost accuracy": "%",
}


def written(values, form):
    """The mean over the seeds, with the standard deviation if there are several."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    factor, places, unit = (100, ".1f", " %") if form == "%" else (1, form, "")
    spread = f" ± {factor * stdev(values):{places}}" if len(values) > 1 and form in ("%", ".2f") else ""
    return f"{factor * mean(values):{places}}{spread}{unit}"


def markdown(result):
    """A suite's tables, and under them what its comparisons and its analysis say."""
    lines = [f"**{result['question']}**", ""]
    for title, rows in result["tables"]:
        columns = [c for c in next(iter(rows.values())) if any(v is not None for r in rows.values() for v in r[c])]
        lines += [f"{title}:", ""] if title else []
        lines += [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        for name, row in rows.items():
            cells = [written(row[c], FORMS.get(c, ".2f")) for c in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"- {sentence}" for sentence in result["sentences"]]
    lines.append(f"- `{result['command']}`, {result['minutes']:.0f} minutes on {result['cores']} cores.")
    return "\n".join(lines) + "\n"


def render(file):
    """SUITE.json -> SUITE.md and SUITE.png beside it."""
    result, panels = read_json(file), []
    write_text(file.with_suffix(".md"), markdown(result))
    for title, found in result["tables"]:
        column = next(iter(next(iter(found.values()))))
        shown = f"{title}: {column}" if title else "accuracy in the new look"
        panels.append((shown, {name: row[column] for name, row in found.items()}))
    figures.dots(file.with_suffix(".png"), result["question"], panels)
