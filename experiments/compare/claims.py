"""What the numbers show and what they do not, in sentences."""

from experiments.compare.plan import ARMS
from experiments.compare.saved import Saved
from experiments.compare.tables import of_kind
from experiments.compare.wording import label
from experiments.running.intervals import difference, differs_from_0, is_above_0
from experiments.running.measures import FORGETTING, amount, change
from experiments.running.wording import NOT_DISTINGUISHABLE, listed, percent

WHERE = {"controller": "with the controller", "uniform": "at random"}
KINDS = {
    "forgetting_mean": "the mean of all",
    "forgetting_best5": "the best 5",
    "forgetting_max": "the maximum",
}


def in_short(saved: Saved) -> str:
    """A paragraph a question, its answer first."""
    error = saved.task.error
    answers = [
        forgetting(saved),
        compared(saved, "tau_within_epoch", "an epoch keeps the order of its architectures {}"),
        compared(saved, "err2_mean", f"the shared weights are {{}} (mean {error}, err2)"),
        cells(saved),
        judge(saved),
        limits(saved),
    ]
    return "\n".join(f"- {answer}" for answer in answers if answer)


def forgetting(saved: Saved) -> str:
    pairs = saved.summary["wpl_against_plain"]
    lower = [p["sampler"] for p in pairs if any((r or 0) > 0 for r in p["reduction"].values())]
    if not lower:
        lead = "Whether WPL lowers forgetting cannot be told."
    else:
        others = [WHERE[p["sampler"]] for p in pairs if p["sampler"] not in lower]
        only = f" {WHERE[lower[0]]}; {others[0]} it cannot be told" if others else ""
        lead = f"Plain search forgets, and WPL forgets less{only}."
    return " ".join([f"**{lead}**", *(of_sampler(saved, pair) for pair in pairs)])


def of_sampler(saved: Saved, pair: dict) -> str:
    """What a sampler makes plain search forget, and what WPL takes off."""
    plain, wpl = (of_kind(saved, method, pair["sampler"]) for method in ("none", "wpl"))
    shares = {name: share for name, share in pair["reduction"].items() if share is not None}
    above = [name for name in FORGETTING if is_above_0(plain[name])]
    unclear = [name for name in above if name not in shares]
    rest = [name for name in FORGETTING if name not in above]
    where, rise = WHERE[pair["sampler"]].capitalize(), f"the {saved.task.error} rises by"

    def amounts(names):
        unit = " points" if saved.unit == "%" else ""
        return listed([f"{amount(saved.task, n, plain[n])}{unit} ({KINDS[n]})" for n in names])

    said = []
    if above:
        said.append(f"{where}, plain search forgets: {rise} {amounts(above)}.")
    if shares:
        parts = listed([f"{percent(share)} ({KINDS[name]})" for name, share in shares.items()])
        said.append(f"WPL takes off {parts}.")
    if any(share > 1 and wpl[name]["high"] < 0 for name, share in shares.items()):
        said.append(
            "More than 100 %: with WPL, architectures end the epoch better than their own "
            "training left them."
        )
    if unclear:
        names = listed([KINDS[name] for name in unclear])
        said.append(f"What WPL changes in that ({names}) is {NOT_DISTINGUISHABLE}.")
    if rest:
        else_ = "What else it forgets" if above else f"{where}, what plain search forgets"
        said.append(f"{else_}, {amounts(rest)}, is {NOT_DISTINGUISHABLE}.")
    return " ".join(said)


def compared(saved: Saved, name: str, claim: str) -> str:
    """A measure of plain search and of WPL, with the verdict first."""
    written = change if name.startswith("tau") else amount  # of a tau, 0 has a meaning
    said = [verdict(saved, name, claim)]
    for pair in saved.summary["wpl_against_plain"]:
        plain, wpl = (
            written(saved.task, name, of_kind(saved, method, pair["sampler"])[name])
            for method in ("none", "wpl")
        )
        between = change(saved.task, name, pair["difference"][name])
        where = WHERE[pair["sampler"]].capitalize()
        said.append(f"{where}: plain {plain}; WPL {wpl}; WPL − plain {between}.")
    return " ".join(said)


def verdict(saved: Saved, name: str, claim: str) -> str:
    """Whether WPL makes something better, in words: ``claim`` with a place for them."""
    effects = {}
    for pair in saved.summary["wpl_against_plain"]:
        number, better = pair["difference"].get(name), "better"
        if number is None or not differs_from_0(number):
            better = ""
        elif (number["mean"] > 0) != name.startswith("tau"):
            better = "worse"
        effects[WHERE[pair["sampler"]]] = better
    told = {where: effect for where, effect in effects.items() if effect}
    if not told:
        return f"**Whether {claim.format('better')} with WPL cannot be told.**"
    if len(set(effects.values())) == 1:
        return f"**With WPL {claim.format(next(iter(told.values())))}.**"
    said = [f"{claim.format(effect)} {where}" for where, effect in told.items()]
    said += [f"{where} it cannot be told" for where, effect in effects.items() if not effect]
    return f"**With WPL {'; '.join(said)}.**"


def cells(saved: Saved) -> str:
    """Whether cells that WPL found are better, and any of them than random ones."""
    key = saved.key("test")
    if all(arm[key]["mean"] is None for arm in saved.summary["arms"]):
        return ""
    said = compared(saved, key, f"the cells that are found are {{}} (test {saved.task.error})")
    return " ".join([said, *against_random(saved, key)])


def against_random(saved: Saved, key: str) -> list[str]:
    random = next((cell for cell in saved.summary["others"] if cell["name"] == "random"), None)
    if random is None:
        return []
    found = {arm["name"]: difference(arm[key], random[key]) for arm in saved.summary["arms"]}
    told = {name: number for name, number in found.items() if differs_from_0(number)}
    runs = random["runs"]
    if not told:
        return [f"None of the kinds of cells can be told from {runs} random ones."]
    names = listed([f"{label(name)} ({amount(saved.task, key, n)})" for name, n in told.items()])
    return [f"These can be told from {runs} random cells, by their difference: {names}."]


def judge(saved: Saved) -> str:
    """Whether the shared weights order random cells as training alone does."""
    name = "tau_training_alone"
    arms = [saved.arm(arm).get(name) for arm in ARMS]
    known = [tau for tau in arms if tau and tau["mean"] is not None]
    if not known:
        return (
            "**Whether shared weights rank random cells as training alone does was not measured "
            "here**, or on too few cells."
        )
    told = sum(map(is_above_0, known))
    lead = "Shared weights rank random cells somewhat as training alone does"
    if not told:
        lead = "Whether shared weights rank random cells as training alone does cannot be told"
    elif told < len(known):
        lead += f", in {told} of {len(known)} kinds of search as far as can be told"
    return f"**{lead}.** {compared(saved, name, 'they do so {}').replace('**', '')}"


def limits(saved: Saved) -> str:
    seeds = saved.config.seeds
    smaller = (
        " The sizes are not the paper's: what differs is listed below."
        if "paper" in saved.task.searches and saved.config.preset != "paper"
        else ""
    )
    return (
        f"**What they cannot show.** Every kind of search was run with {seeds} seeds: an effect "
        "that cannot be told from 0 may still be there. And of many differences where there is "
        "nothing, one in twenty is told from 0 all the same." + smaller
    )
