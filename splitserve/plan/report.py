"""The decision as tables, and as one JSON document."""

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitserve.plan.bound import Setup, best_rate_bps, can_win, max_gain
from splitserve.plan.decide import Decision, Verdict, Worth, split_bands
from splitserve.plan.limits import Powers, p90_s
from splitserve.plan.offers import Offer
from splitserve.plan.sampled import Forecast
from splitserve.plan.sentence import say
from splitserve.plan.units import show_ms, show_rate
from splitserve.plans import latency_s, throughput

SHOWN = 10  # plans, besides members of the envelope
SHOWN_OUTLOOKS = 5


def as_document(
    decision: Decision, setup: Setup, forecast: Forecast | None, powers: Powers | None
) -> dict[str, Any]:
    """Everything that is shown, as data."""
    answer = decision.answer
    return {
        "link": decision.link.model_dump(),
        "answer": answer.option.name if answer else None,
        "does_split": decision.does_split,
        "sentence": say(decision),
        "envelope": [stretch.model_dump() for stretch in decision.envelope],
        "split_bands": [list(band) for band in split_bands(decision)],
        "plans": [_row(verdict, decision, powers) for verdict in decision.verdicts],
        "here": _worth(decision.here, decision, setup),
        "at_best": _worth(decision.at_best, decision, setup),
        "machines": {
            "before_s": setup.before_s,
            "edge_s": setup.edge_s,
            "cloud_s": setup.cloud_s,
            "ratio": _finite(setup.ratio),
            "saved_s": setup.saved_s,
        },
        "forecast": _forecast(forecast) if forecast else None,
    }


def show(
    decision: Decision,
    setup: Setup,
    forecast: Forecast | None,
    powers: Powers | None,
    *,
    is_full: bool,
) -> None:
    """Print tables; in full, with every candidate in them."""
    console = Console()
    console.print(_envelope_table(decision))
    console.print(_plan_table(decision, powers, is_full=is_full))
    console.print("Why the others lost on this link:")
    for line in [*reasons(decision), "", *_worth_lines(decision, setup)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if forecast:
        console.print(_forecast_table(forecast))
        console.print(_forecast_line(forecast), highlight=False, markup=False, soft_wrap=True)
    console.print(say(decision), style="bold", highlight=False, markup=False, soft_wrap=True)


def _envelope_table(decision: Decision) -> Table:
    table = Table(title="the fastest plan on every link", box=SIMPLE_HEAD)
    table.add_column("plan", overflow="fold", min_width=18)
    for name in ("from", "to"):
        table.add_column(name, justify="right", no_wrap=True)
    for stretch in decision.envelope:
        end = "" if stretch.to_bps is None else show_rate(stretch.to_bps)
        start = show_rate(stretch.from_bps) if stretch.from_bps else "0"
        table.add_row(escape(stretch.option), start, end)
    return table


def _plan_table(decision: Decision, powers: Powers | None, *, is_full: bool) -> Table:
    link = decision.link
    title = f"at {show_rate(link.uplink_bps)}, round trip {show_ms(link.rtt_s)}"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("plan", overflow="fold", min_width=19)
    for name in ["kB", "agree %", "ms", "p90 ms", "req/s", *(["J"] if powers else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    shown = 0
    for verdict in decision.verdicts:
        shown += verdict.is_feasible
        if not (is_full or verdict.is_on_envelope or (verdict.is_feasible and shown <= SHOWN)):
            continue
        option = verdict.offer.option
        energy = [f"{powers.energy_j(option, link):.3g}"] if powers else []
        table.add_row(
            escape(option.name),
            f"{option.bytes_up / 1e3:,.1f}",
            "" if option.agreement is None else f"{option.agreement:.1f}",
            f"{1e3 * latency_s(option, link):,.1f}",
            f"{1e3 * p90_s(option, link):,.1f}",
            f"{throughput(option, link):,.1f}",
            *energy,
            _mark(verdict),
            style="bold" if verdict.reason is None else "" if verdict.is_feasible else "dim",
        )
    return table


def _mark(verdict: Verdict) -> str:
    if verdict.reason is None:
        return "<-"
    if not verdict.is_feasible:
        return "refused"
    return "envelope" if verdict.is_on_envelope else ""


def reasons(decision: Decision) -> list[str]:
    """Why the others lost, those of one kind together: `kind: plan (detail), plan (detail)`."""
    kinds: dict[str, list[str]] = {}
    for verdict in decision.verdicts:
        if verdict.reason:
            kind, _, detail = verdict.reason.partition(": ")
            name = verdict.offer.option.name
            kinds.setdefault(kind, []).append(f"{name} ({detail})" if detail else name)
    return [f"- {kind}: {', '.join(names)}" for kind, names in kinds.items()]


def _worth_lines(decision: Decision, setup: Setup) -> list[str]:
    here, best = decision.here, decision.at_best
    if here is None:
        return []
    lines = [f"here  {_say_worth(here)}"]
    if best:
        lines.append(f"B*    at {show_rate(best.rate_bps)}: {_say_worth(best)}")
        facts = _closed_form(best, decision, setup)
        if facts and facts["rate_bps"]:
            lines.append(
                f"      in closed form {facts['max_gain']:.2f} at {show_rate(facts['rate_bps'])}:"
                f" f {facts['share']:.2f}, rho {facts['rho']:.2f}, g {setup.ratio:.1f},"
                f" D {show_ms(setup.saved_s)}, R {show_ms(decision.link.rtt_s)}"
            )
    return lines


def _say_worth(worth: Worth) -> str:
    return (
        f"best split {worth.split.option.name} {show_ms(worth.split_s)}, better extreme"
        f" {worth.extreme.option.name} {show_ms(worth.extreme_s)}: gain {worth.gain:.2f};"
        f" these cuts could reach {worth.bound:.2f} ({worth.reached:.0%} reached),"
        f" any network {worth.limit:.2f}"
    )


def _closed_form(worth: Worth, decision: Decision, setup: Setup) -> dict[str, Any] | None:
    """The textbook's answer for the best split at B* against the best upload there."""
    upload = _upload(decision, worth.rate_bps)
    if upload is None or not upload.option.bytes_up:
        return None
    rtt_s, share = decision.link.rtt_s, worth.split.edge_share
    rho = worth.split.option.bytes_up / upload.option.bytes_up
    return {
        "upload": upload.option.name,
        "share": share,
        "rho": rho,
        "rate_bps": best_rate_bps(setup, rtt_s, upload.option.bytes_up),
        "max_gain": max(1.0, max_gain(setup, rtt_s, share, rho)),
        "can_win": can_win(setup, rtt_s, share, rho),
    }


def _upload(decision: Decision, rate_bps: float) -> Offer | None:
    """The fastest feasible upload at a rate."""
    link = decision.link.model_copy(update={"uplink_bps": rate_bps})
    uploads = [
        verdict.offer
        for verdict in decision.verdicts
        if verdict.is_feasible and verdict.offer.position == 0
    ]
    return min(uploads, key=lambda offer: latency_s(offer.option, link), default=None)


def _worth(worth: Worth | None, decision: Decision, setup: Setup) -> dict[str, Any] | None:
    if worth is None:
        return None
    return {
        "rate_bps": worth.rate_bps,
        "split": worth.split.option.name,
        "extreme": worth.extreme.option.name,
        "split_s": worth.split_s,
        "extreme_s": worth.extreme_s,
        "gain": worth.gain,
        "bound": worth.bound,
        "reached": worth.reached,
        "limit": worth.limit,
        "closed_form": _closed_form(worth, decision, setup),
    }


def _row(verdict: Verdict, decision: Decision, powers: Powers | None) -> dict[str, Any]:
    option, link = verdict.offer.option, decision.link
    return {
        **option.model_dump(),
        "latency_s": latency_s(option, link),
        "latency_p90_s": p90_s(option, link),
        "throughput": _finite(throughput(option, link)),
        "energy_j": powers.energy_j(option, link) if powers else None,
        "is_split": verdict.offer.is_split,
        "is_feasible": verdict.is_feasible,
        "is_on_envelope": verdict.is_on_envelope,
        "reason": verdict.reason,
    }


def _forecast(forecast: Forecast) -> dict[str, Any]:
    return {
        "states": len(forecast.states),
        "best_mean": forecast.best_mean.name,
        "best_p95": forecast.best_p95.name,
        "plans": [
            {"name": one.name, "mean_s": _finite(one.mean_s), "p95_s": _finite(one.p95_s)}
            for one in forecast.outlooks
        ],
        "switching_mean_s": _finite(forecast.switching_mean_s),
        "switching_p95_s": _finite(forecast.switching_p95_s),
    }


def _forecast_table(forecast: Forecast) -> Table:
    table = Table(title=f"over {len(forecast.states)} states of the link", box=SIMPLE_HEAD)
    table.add_column("plan", overflow="fold", min_width=18)
    for name in ("expected ms", "p95 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = list(forecast.outlooks[:SHOWN_OUTLOOKS])
    if forecast.best_p95 not in shown:
        shown.append(forecast.best_p95)
    for one in shown:
        table.add_row(escape(one.name), _ms(one.mean_s), _ms(one.p95_s))
    switching = (_ms(forecast.switching_mean_s), _ms(forecast.switching_p95_s))
    table.add_section()
    table.add_row("the fastest in each state", *switching)
    return table


def _forecast_line(forecast: Forecast) -> str:
    mean, p95 = forecast.best_mean, forecast.best_p95
    if mean.name == p95.name:
        return f"Over these states {mean.name} is best in expectation and in p95."
    return (
        f"Over these states {mean.name} is best in expectation ({_ms(mean.mean_s)} ms),"
        f" {p95.name} in p95 ({_ms(p95.p95_s)} ms)."
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}" if math.isfinite(seconds) else "never"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
