"""The suite `selection`: does it matter which heads are chosen? Asked of several skills, at several budgets.

The hypothesis, fixed before any run: averaged over the skills, at 1 and 3 heads, probed heads are better than random heads
and than those with the largest weight norm, by an interval that excludes 0. On boxes in fog alone they are not.
"""

from experiments.comparisons import compare, spearman
from experiments.loading import load_subject, scene_scores
from experiments.runs import of_seed, run_all, run_selections, selection_flag
from experiments.suites import BUDGETS, SKILLS
from experiments.tables import accuracy, main_column
from probe import random_heads, select_heads

CRITERIA = ("rank1", "gate", "exact", "weight-norm", "attention-mass")


def largest(values, count):
    """{(layer, head): value} -> the `count` heads with the largest values, {layer: [heads]}."""
    heads = {}
    for layer, head in sorted(sorted(values, key=values.get, reverse=True)[:count]):
        heads.setdefault(layer, []).append(head)
    return heads


def gains_alone(skill, config, setup):
    """{(layer, head): what the head gains alone over the base}, layer by layer, with one seed, on the split "val": what is
    chosen by these gains is compared on "test"."""
    flags, seed = f"{SKILLS[skill]} --eval-split val", setup.seeds[0]
    heads = [(layer, head) for layer in range(config.layers) for head in range(config.value_heads)]
    runs = [f"{flags} --method none --base"]
    for layer, head in heads:
        runs.append(of_seed(f"{flags} {selection_flag({layer: [head]}, setup)}", seed, setup.rates))
    reports = run_all(runs, setup, f"{skill}, every head alone")
    base, *tuned = [accuracy(report, main_column(report)) for report in reports]
    return {head: gain - base for head, gain in zip(heads, tuned)}


def selections(scores, alone, budget, config, seeds):
    """{criterion: [{layer: [heads]} of each seed]}, by scores {criterion: [L, G of each seed]}. No quota: over all layers."""
    chosen = {name: [select_heads(s, budget) for s in of_seeds] for name, of_seeds in scores.items()}
    chosen["rank1, no quota"] = [largest(dict(zip(alone, s.flatten().tolist())), budget) for s in scores["rank1"]]
    chosen["random"] = [random_heads(config, budget, seed) for seed in seeds]
    chosen["best alone"] = [largest(alone, budget)] * len(seeds)
    return chosen


def pooled(trained, criterion, skills):
    """{scene: [scores]} of each seed, over the skills and the budgets of the hypothesis."""
    pools = {}  # {number of the seed: {scene: [scores]}}
    for (skill, name, budget), reports in trained.items():
        if skill in skills and name == criterion and budget <= 3:
            for i, report in enumerate(reports):
                for scene, scores in scene_scores(report, main_column(report)).items():
                    pools.setdefault(i, {}).setdefault(scene, []).extend(scores)
    return list(pools.values())


def selecting(_, setup):
    trained, alone_table, probes = {}, {}, {}  # trained: {(skill, criterion, budget): [report of each seed]}
    for skill, flags in SKILLS.items():
        subject = load_subject(setup, flags, split="train", limit=1200)
        config = subject.vlm.config
        scores = {}
        for name in CRITERIA:
            scores[name] = [subject.probe(64, seed, name) for seed in setup.seeds]

        # Every head alone. Do the scores of a criterion say as much? Do its two heads hold the best one?
        alone = gains_alone(skill, config, setup)
        ((best_layer, (best,)),) = largest(alone, 1).items()
        for (layer, head), gain in alone.items():
            alone_table.setdefault(f"{skill}, layer {layer}", {})[f"head {head}"] = [100 * gain]
        for name, of_seeds in scores.items():
            row, pairs = probes.setdefault(name, {}), [select_heads(s, 2) for s in of_seeds]
            row[f"{skill}: rank correlation"] = [spearman(list(alone.values()), s.flatten().tolist()) for s in of_seeds]
            row[f"{skill}: best head in two"] = [float(best in pair.get(best_layer, [])) for pair in pairs]

        # Train the heads of every criterion.
        for budget in BUDGETS:
            for name, chosen in selections(scores, alone, budget, config, setup.seeds).items():
                trained[skill, name, budget] = run_selections(chosen, setup, flags)

    # A table for each skill.
    tables = {skill: {} for skill in SKILLS}
    for (skill, name, budget), reports in trained.items():
        values = [accuracy(report, main_column(report)) for report in reports]
        tables[skill].setdefault(name, {})[f"K = {budget}"] = values
    tables["Gain of every head alone, in points"] = alone_table
    tables["Scores against these gains, and how often the best head is one of two"] = probes

    # The hypothesis, and the other criteria.
    comparisons = []
    for skills in (list(SKILLS), ["boxes-fog"]):
        rank1, column = pooled(trained, "rank1", skills), " and ".join(skills) + ", 1 and 3 heads"
        for name in tables[skills[0]]:
            if name != "rank1":
                comparisons.append(compare("rank1", name, column, rank1, pooled(trained, name, skills)))
    return {"tables": list(tables.items()), "comparisons": comparisons}
