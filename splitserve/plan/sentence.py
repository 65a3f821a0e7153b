"""The decision in plain words."""

from splitserve.plan.decide import Decision, split_bands
from splitserve.plan.units import show_ms, show_rate
from splitserve.plans import latency_s

HARDLY = 1.05  # a gain that other machines and other days undo


def say(decision: Decision) -> str:
    """One sentence: the answer, and why."""
    link, answer = decision.link, decision.answer
    where = f"at {show_rate(link.uplink_bps)} and {show_ms(link.rtt_s)}"
    if answer is None:
        return f"Do not split {where}: no plan keeps to every limit{_nearest(decision)}."
    takes = show_ms(latency_s(answer.option, link))
    here = decision.here
    if answer.is_split:
        gain = ""
        if here and here.split is answer:
            beaten = f"{here.extreme.option.name} ({show_ms(here.extreme_s)})"
            gain = f", {here.gain:.2f} times as fast as {beaten}"
            gain += "; that is next to nothing" if here.gain < HARDLY else ""
        return f"Split {where}: {answer.option.name} answers in {takes}{gain}."
    return f"Do not split {where}: {answer.option.name} answers in {takes}, {_why(decision)}."


def _nearest(decision: Decision) -> str:
    """What the fastest option fell over."""
    for verdict in decision.verdicts:
        if verdict.reason:
            return f" (the fastest, {verdict.offer.option.name}: {verdict.reason})"
    return ""


def _why(decision: Decision) -> str:
    splits = [verdict for verdict in decision.verdicts if verdict.offer.is_split]
    feasible = [verdict for verdict in splits if verdict.is_feasible]
    if not splits:
        return "and the artifact has no cut to split at"
    if not feasible:
        first = splits[0]
        return f"and no split keeps to the limits ({first.offer.option.name}: {first.reason})"
    here = decision.here
    if here is None:
        return "and nothing is left to compare a split with"
    best = f"the best split, {here.split.option.name}, in {show_ms(here.split_s)}"
    return f"{best}; {_where_it_pays(decision)}{_bytes(decision)}"


def _where_it_pays(decision: Decision) -> str:
    bands = split_bands(decision)
    if not bands:
        return "a split is the fastest on no link"
    shown = " and ".join(
        f"from {show_rate(low)}{f' to {show_rate(high)}' if high else ' up'}" for low, high in bands
    )
    most = ""
    if decision.at_best:
        at = show_rate(decision.at_best.rate_bps)
        most = f", at most {decision.at_best.gain:.2f} times as fast (at {at})"
    return f"a split pays {shown}{most}"


def _bytes(decision: Decision) -> str:
    """Say so when every split sends more than the smallest upload of the picture."""
    options = [v.offer for v in decision.verdicts if v.is_feasible and not v.offer.option.is_local]
    splits = [offer.option.bytes_up for offer in options if offer.is_split]
    uploads = {offer.option.name: offer.option.bytes_up for offer in options if not offer.is_split}
    if not splits or not uploads:
        return ""
    name = min(uploads, key=lambda one: uploads[one])
    if min(splits) < uploads[name]:
        return ""
    sent, upload = min(splits) / 1e3, uploads[name] / 1e3
    return f"; every split sends more ({sent:.3g} kB and up) than {name} ({upload:.3g} kB)"
