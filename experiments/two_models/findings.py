"""What a run shows and what it does not, in sentences that are read off its numbers."""

import math
from collections.abc import Mapping, Sequence

from experiments.running.intervals import Number, differs_from_0
from experiments.running.wording import listed, show
from experiments.two_models.results import CHECKS, RIVALS

FAR = 0.2  # B ends so far below plain training where its training has failed
NOTHING = 0.05  # accuracy that A hardly misses

VALLEY_HEADING = "Why the L2 anchor fails at some strengths"
AGAINST = {
    "plain": "plain training",
    "L2 anchor": "the L2 anchor at its best strength",
    "frozen": "frozen layers",
}


def accuracy(number: Mapping[str, float]) -> str:
    return f"{100 * number['mean']:.1f}"


def with_interval(number: Number) -> str:
    return show(number, 1, 100)


def points(value: float) -> str:
    """With its sign; with a digit more where one would leave only that."""
    digits = 1 if abs(100 * value) >= 0.1 else 2
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def difference(number: Mapping[str, float]) -> str:
    """In points, with its interval, or that it cannot be told from none."""
    between = f"({points(number['low'])} to {points(number['high'])})"
    if differs_from_0(number):
        return f"{points(number['mean'])} {between}"
    return f"not distinguishable {between}"


def as_power(strength: float) -> str:
    """10⁵ for 100,000; 0.03 stays as it is."""
    exponent = round(math.log10(strength)) if strength > 0 else 0
    if abs(exponent) > 2 and math.isclose(strength, 10.0**exponent):
        return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{strength:g}"


# --- What holds, and what does not ----------------------------------------------------------------


def claims(summary: Mapping) -> str:
    """A paragraph a condition, then what limits them."""
    conditions = summary["conditions"]
    paragraphs = [of_condition(c) for c in conditions if c["shared_layers"] == 4]
    fewer = [c for c in conditions if c["shared_layers"] < 4]
    if fewer:
        lost = [f"{c['name']}, {difference(c['plain_loses'])}" for c in fewer]
        paragraphs.append(
            "**Fewer shared layers**, A converged. What plain training of B costs A, in points: "
            + "; ".join(lost)
            + "."
        )
    return "\n\n".join([*paragraphs, "The limits:\n\n" + "\n".join(limits(summary))])


def of_condition(condition: Mapping) -> str:
    lost = condition["plain_loses"]
    first = (
        f"Plain training of B costs A {100 * lost['mean']:.1f} points "
        f"({points(lost['low'])} to {points(lost['high'])})."
        if differs_from_0(lost) and lost["mean"] > 0
        else "What plain training of B costs A is not distinguishable from nothing "
        f"({points(lost['low'])} to {points(lost['high'])} points), so that nothing can be said "
        "about preventing it."
    )
    compared = [
        f"Against {AGAINST[rival]}, WPL leaves A {gained(found['a'])}, and B {gained(found['b'])}."
        for rival in RIVALS
        if (found := condition["differences"].get(f"WPL − {rival}"))
    ]
    return " ".join([f"**{condition['name']}.**", first, *compared])


def gained(number: Mapping[str, float]) -> str:
    between = f"({points(number['low'])} to {points(number['high'])})"
    if not differs_from_0(number):
        return f"not distinguishably different {between}"
    way = "better" if number["mean"] > 0 else "worse"
    return f"{abs(100 * number['mean']):.1f} points {way} {between}"


def limits(summary: Mapping) -> list[str]:
    """As items of a list."""
    regime, settings = summary["regime"], summary["configuration"]
    found = [
        "- A and B learn the same images. What A has learned, once it has converged, is as good "
        "for B: freezing it, or holding all of it, is then a rival that costs B little or nothing.",
        "- Strengths were chosen on validation images but on the same seeds, and the intervals do "
        "not account for the choice.",
    ]
    if regime["forgetting"]:
        converged = regime["forgetting"]["A converged"]
        cells = [value for row in converged for value in row]
        gentle = sum(value < NOTHING for value in cells)
        found.append(
            f"- Forgetting needs a rough optimiser. In {gentle} of the {len(cells)} settings of "
            "the map below, plain training costs a converged A less than "
            f"{100 * NOTHING:.0f} points."
        )
    if settings["b_learning_rate"] is None:
        found.append(
            "- The setting used here was chosen where plain training forgets most, in the mean "
            "over the conditions, while B still reaches "
            f"{100 * settings['map_min_accuracy']:.0f} % in every run, on seeds of its own. It "
            "lies at the edge of stability: seeds differ widely, and single runs differ between "
            "machines."
        )
    else:
        found.append(
            f"- B's learning rate, {regime['learning_rate']:g}, and momentum, "
            f"{regime['momentum']:g}, are rough on purpose. With gentler ones A hardly forgets; "
            "with rougher ones B often does not learn, WPL or not."
        )
    if settings["seeds"] <= 3:
        found.append(
            f"- {settings['seeds']} seeds show what happens, not how much: intervals are wide."
        )
    return found


# --- Where the L2 anchor fails --------------------------------------------------------------------


def valley(summary: Mapping) -> str:
    """What becomes of B at strengths of the L2 anchor at which its training fails, and why."""
    condition = next(c for c in summary["conditions"] if c["name"] == "A converged")
    plain, anchors = condition["plain"], condition["L2 anchor"]["at_each_strength"]
    failed = [found for found in anchors if fails(found, plain)]
    if not failed:
        text = "With A converged, the L2 anchor fails at no strength."
    else:
        text = "\n\n".join([what_happens(condition, failed), why(summary, condition)])
    tables = [units(condition), trained_otherwise(summary, "L2 anchor")]
    return "\n\n".join([text, *tables, wpl_too(summary), trained_otherwise(summary, "WPL")])


def fails(found: Mapping, plain: Mapping) -> bool:
    return found["final_b"]["mean"] < plain["final_b"]["mean"] - FAR


def own_dead(found: Mapping) -> float:
    """The share of dead units in the hidden layers that are B's alone."""
    return sum(found["dead_b"][4:]) / len(found["dead_b"][4:])


def shared_dead(found: Mapping) -> float:
    return sum(found["dead_b"][:4]) / 4


def what_happens(condition: Mapping, failed: Sequence[Mapping]) -> str:
    plain, seeds = condition["plain"], condition["seeds"]
    worst = min(failed, key=lambda found: found["final_b"]["mean"])
    wpl = condition["WPL"]["at_each_strength"]
    lowest = min(accuracy_of_b(found) for found in wpl)
    return (
        f"With A converged, the L2 anchor at the strengths "
        f"{listed([as_power(found['strength']) for found in failed])} leaves B more than "
        f"{100 * FAR:.0f} points below plain training; weaker and stronger anchors do not. **B's "
        f"training fails there: its own layers die.** At strength {as_power(worst['strength'])}, "
        f"{100 * own_dead(worst):.0f} % of the units in the two hidden layers that are B's alone "
        f"are dead at the end: they give 0 for every image, so that no gradient reaches them, or "
        f"are no longer finite (plain training: {100 * own_dead(plain):.0f} %). B's loss ends at "
        f"{loss(worst)} in the median over seeds, where plain training has {loss(plain)} and "
        f"guessing {math.log(10):.2f}; in {worst['diverged']} of {seeds} seeds it is no longer "
        f"finite. With WPL, B ends at {lowest:.1f} % or more at every strength."
    )


def of_method(summary: Mapping, method: str) -> dict:
    return {n: rows for n, rows in summary["checks"].items() if CHECKS[n].method == method}


def accuracy_of_b(found: Mapping) -> float:
    return 100 * found["final_b"]["mean"]


def why(summary: Mapping, condition: Mapping) -> str:
    """Which of the other trainings fail, too; and what that says where it is clear."""
    outcome = {}
    for name, rows in of_method(summary, "L2 anchor").items():
        # Each against plain training in its own setting: the row of strength 0.
        bad = [as_power(row["strength"]) for row in rows[1:] if fails(row, rows[0])]
        lowest = min(rows[1:], key=accuracy_of_b)
        said = (
            f"fails at {listed(bad)}" if bad else f"B ends at {accuracy_of_b(lowest):.1f} % or more"
        )
        outcome[name] = (bad, f"{name}: {said}")
    text = "The same anchors, trained otherwise: " + "; ".join(s for _, s in outcome.values()) + "."
    form_matters = not outcome["additive form"][0]
    rate_matters = not outcome["a quarter of the learning rate"][0]
    here = [
        as_power(found["strength"])
        for found in condition["L2 anchor"]["at_each_strength"]
        if fails(found, condition["plain"])
    ]
    better = " The proximal form, used here, fails at fewer strengths."
    if not set(here) < set(outcome["additive form"][0]):
        better = ""
    if form_matters or not rate_matters:
        return text
    return (
        f"{text} So neither the proximal step nor its interplay with momentum is to blame, since "
        "the additive form, which goes through momentum like any gradient, fails alike; the length "
        f"of the steps is.{better}\n\nWhat we take from this, without having tested it further: at "
        "this learning rate training is at the edge of stability. Plain training gets by because "
        "the shared layers give way and move to where the loss is less steep, which is also how A "
        "is lost. Layers that are held fast do not swing, and add nothing to the instability. An "
        "anchor in between does neither: it keeps the shared layers where the loss is steep, but "
        "loosely enough to swing, and B's own layers, which nothing holds, are thrown about until "
        "they are dead. WPL can fail in the same way: notebook 01, with fewer images, shows "
        "strengths at which it does."
    )


def units(condition: Mapping) -> str:
    rows = [("plain", condition["plain"])]
    for method in ("L2 anchor", "WPL"):
        rows += [
            (f"{method}, {as_power(found['strength'])}", found)
            for found in condition[method]["at_each_strength"]
        ]
    rows.append(("frozen", condition["frozen"]))
    lines = [
        f"| {name} | {accuracy(found['final_a'])} | {accuracy(found['final_b'])} "
        f"| {100 * shared_dead(found):.0f} | {100 * own_dead(found):.0f} "
        f"| {loss(found)} | {found['diverged']} |"
        for name, found in rows
    ]
    return f"""A converged, all four layers shared. Accuracies and dead units in percent; B's loss
at the end, in the median over seeds, and in how many seeds, of {condition["seeds"]}, it is not
finite.

| method, strength | A | B | dead, shared layers | dead, B's own | loss of B | not finite |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
""" + "\n".join(lines)


def loss(found: Mapping) -> str:
    return "∞" if found["loss_b"] is None else f"{found['loss_b']:.2f}"


def wpl_too(summary: Mapping) -> str:
    """Whether WPL fails, too, with longer steps."""
    ((name, rows),) = of_method(summary, "WPL").items()
    bad = [as_power(row["strength"]) for row in rows[1:] if fails(row, rows[0])]
    ends = [accuracy_of_b(row) for row in rows[1:]]
    text = (
        f"Is WPL proof against this? With {name}, B ends at {accuracy_of_b(rows[0]):.1f} % after "
        f"plain training, and at {min(ends):.1f} to {max(ends):.1f} % with WPL, by its strength. "
    )
    if bad:
        return (
            f"{text}At {listed(bad)} B ends more than {100 * FAR:.0f} points below plain training."
        )
    return f"{text}At no strength does B end more than {100 * FAR:.0f} points below plain training."


def trained_otherwise(summary: Mapping, method: str) -> str:
    """Accuracies of B by how a method is trained, a line a strength."""
    regime, checks = summary["regime"], of_method(summary, method)
    condition = next(c for c in summary["conditions"] if c["name"] == "A converged")
    here = {found["strength"]: found for found in condition[method]["at_each_strength"]}
    used = f"learning rate {regime['learning_rate']:g}, momentum {regime['momentum']:g}, proximal"
    columns = {used: {0.0: condition["plain"]} | here}
    columns |= {n: {row["strength"]: row for row in rows} for n, rows in checks.items()}
    strengths = [row["strength"] for row in next(iter(checks.values()))]
    lines = [
        f"| {f'{method}, {as_power(s)}' if s else 'plain'} | "
        + " | ".join(
            with_interval(rows[s]["final_b"]) if s in rows else "–" for rows in columns.values()
        )
        + " |"
        for s in strengths
    ]
    head = f"| accuracy of B | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}\n"
    return head + "\n".join(lines)
