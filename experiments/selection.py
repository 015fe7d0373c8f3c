"""The suite `selection`: does it matter which heads are chosen? Asked of several skills, at several budgets.

The hypothesis, fixed before any run: averaged over the skills, at 1 to 3 heads, probed heads are better than random heads
and than those with the largest weight norm, by an interval that excludes 0. On boxes in fog alone they are not.
"""

from statistics import fmean

from experiments import charts
from experiments.comparisons import compare, spearman
from experiments.loading import load_subject, scene_scores
from experiments.runs import of_seed, run_all, run_selections, selection_flag
from experiments.suites import BUDGETS, SKILLS
from experiments.tables import accuracy, main_column
from experiments.trained import by_head, largest
from probe import random_heads, select_heads

CRITERIA = ("rank1", "gate", "exact", "weight-norm", "attention-mass")
SMALL = (1, 2, 3)  # budgets of the hypothesis


def scores_of_seed(subject, seed):
    """{criterion: scores [L, G]}. The last two ask how noisy the probe is; no heads are trained by them."""
    scores = {criterion: subject.probe(64, seed, criterion) for criterion in CRITERIA}
    scores["rank1, 256 examples"] = subject.probe(256, seed)
    scores["rank1, sum of 4 probes"] = sum(subject.probe(64, seed + 1000 * i) for i in range(4))
    return scores


def gains_alone(skill, config, setup):
    """{(layer, head): what the head gains alone over the base}, a mean of two seeds, on the split "val": what is chosen by
    these gains is compared on "test"."""
    flags, seeds = f"{SKILLS[skill]} --eval-split val", setup.seeds[:2]
    heads = [(layer, head) for layer in range(config.layers) for head in range(config.value_heads)]
    runs = [f"{flags} --method none --base"]
    for layer, head in heads:
        chosen = f"{flags} {selection_flag({layer: [head]}, setup)}"
        runs += [of_seed(chosen, seed, setup.rates) for seed in seeds]
    reports = run_all(runs, setup, f"{skill}, every head alone")
    base, *tuned = [accuracy(report, main_column(report)) for report in reports]
    return {head: fmean(tuned[i * len(seeds) :][: len(seeds)]) - base for i, head in enumerate(heads)}


def selections(scores, alone, budget, config, seeds):
    """{criterion: [{layer: [heads]} of each seed]}. scores: {criterion: [L, G]} of each seed."""
    chosen = {name: [select_heads(of_seed[name], budget) for of_seed in scores] for name in CRITERIA}
    chosen["rank1, top of all layers"] = [largest(by_head(of_seed["rank1"]), budget) for of_seed in scores]
    chosen["random"] = [random_heads(config, budget, seed) for seed in seeds]
    chosen["best alone"] = [largest(alone, budget)] * len(seeds)
    return chosen


def pooled(trained, criterion, skills):
    """{scene: [scores]} of each seed, over the skills and the small budgets."""
    seeds = []
    for key, of_seeds in trained.items():
        skill, name, budget = key
        if skill in skills and name == criterion and budget in SMALL:
            seeds = seeds or [{} for _ in of_seeds]
            for pool, report in zip(seeds, of_seeds):
                for scene, scores in scene_scores(report, main_column(report)).items():
                    pool.setdefault(scene, []).extend(scores)
    return seeds


def selecting(_, setup):
    trained, alone_table, probes = {}, {}, {}
    for skill, flags in SKILLS.items():
        subject = load_subject(setup, flags, split="train", limit=1200)
        config = subject.vlm.config
        scores = [scores_of_seed(subject, seed) for seed in setup.seeds]
        alone = gains_alone(skill, config, setup)

        # Every head alone; and do the criteria's scores say as much?
        for (layer, head), gain in alone.items():
            alone_table.setdefault(f"{skill}, layer {layer}", {})[f"head {head}"] = [100 * gain]
        (best,) = largest(alone, 1).items()
        for name in scores[0]:
            each = [by_head(of_seed[name]) for of_seed in scores]
            row = probes.setdefault(name, {})
            row[f"{skill}: rank correlation"] = [spearman(list(alone.values()), list(s.values())) for s in each]
            pairs = [select_heads(of_seed[name], 2) for of_seed in scores]
            row[f"{skill}: finds the best"] = [float(best[1][0] in pair.get(best[0], [])) for pair in pairs]

        # Train the heads of every criterion.
        for budget in BUDGETS:
            for name, chosen in selections(scores, alone, budget, config, setup.seeds).items():
                trained[skill, name, budget] = run_selections(chosen, setup, flags)

    # A table and a panel for each skill.
    tables, panels = [], {}
    for skill in SKILLS:
        rows, curves = {}, {}
        for (of_skill, name, budget), reports in trained.items():
            if of_skill == skill:
                values = [accuracy(report, main_column(report)) for report in reports]
                rows.setdefault(name, {})[f"K = {budget}"] = values
                curves.setdefault(name, []).append((budget, fmean(values)))
        tables.append((skill, rows))
        panels[skill] = ("K", "accuracy", curves)
    charts.curves(setup.out / "selection-budgets.png", "Does it matter which heads are chosen?", panels)

    # The hypothesis, and the other criteria.
    comparisons = []
    for skills in (tuple(SKILLS), ("boxes-fog",)):
        rank1 = pooled(trained, "rank1", skills)
        for name in tables[0][1]:
            if name != "rank1":
                where = "all skills" if len(skills) > 1 else skills[0]
                theirs = pooled(trained, name, skills)
                comparisons.append(compare("rank1, 1 to 3 heads", name, where, rank1, theirs))
    tables.append(("Gain of every head alone, in points", alone_table))
    tables.append(("Do the scores agree with these gains? Are the best two of a criterion the best head and another?", probes))
    return {"tables": tables, "comparisons": comparisons}
