"""`splitserve plan`: choose the cut for a link, or say that there should be none."""

from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console

from splitserve.artifact import Artifact, Manifest, load_artifact
from splitserve.errors import UsageError
from splitserve.output import print_document
from splitserve.plan.decide import Decision, decide
from splitserve.plan.early import Early, early_document, expect_early, say_early
from splitserve.plan.limits import Limits, Powers
from splitserve.plan.offers import check_profile, make_offers, make_setup
from splitserve.plan.plot import draw_plans
from splitserve.plan.report import as_document, show
from splitserve.plan.sampled import State, forecast, states_of, typical_bps
from splitserve.plan.trace import read_trace
from splitserve.plan.units import MaybeBytes, MaybeSeconds, Rate, Rates, Seconds
from splitserve.plans import Link, PlanFile
from splitserve.profile import Profile, read_profile
from splitserve.settings import Names, Settings

EXIT_NO_SPLIT = 3


class Options(Settings):
    """Choose where to cut for a link, from profiles of the device and of the cloud.

    Every way to run the model is a candidate: whole on the device, whole in the cloud behind JPEG
    or WebP, split at every cut with every codec. Exit status 3 says "do not split".
    """

    model_config = SettingsConfigDict(
        cli_prog_name="splitserve plan",
        env_prefix="SPLITSERVE_PLAN_",
        cli_shortcuts={"as-json": "json", "output": "o"},
    )

    artifact: CliPositionalArg[Path]
    """Artifact folder."""
    edge_profile: Path
    """Profile of the device, made there by `splitserve profile`."""
    cloud_profile: Path | None = None
    """Profile of the cloud; by default the device's without its slowdown."""
    uplink: Rate = None
    """Rate from the device to the cloud: 5.85Mbit, 250kbit, or bits per second."""
    rtt: Seconds
    """Round trip of a small message: 50ms, or seconds."""
    downlink: Rate = None
    """Rate from the cloud to the device: adds the reply's transfer, which otherwise --rtt has to
    include."""
    deadline: MaybeSeconds = None
    """Nine of ten requests must be answered in it: 100ms, or seconds."""
    memory: MaybeBytes = None
    """Weights and largest features that the device can hold: 64MB, 64MiB, or bytes."""
    agreement: float = Field(default=98.0, ge=0, le=100)
    """Percent of answers that must be those of the unsplit model; 0 asks for nothing."""
    leakage_ceiling: float | None = Field(default=None, ge=0, le=5)
    """Highest level of leakage, 1 to 5, that `splitserve audit-leakage --write` may have found at a
    cut; cuts that were not audited are refused, and so is another codec than the audited one."""
    pin: Names = Field(default_factory=list)
    """The only positions allowed, comma-separated; `input` and `output` are positions too."""
    ban: Names = Field(default_factory=list)
    """Positions not allowed, comma-separated."""
    power_compute_w: float | None = Field(default=None, ge=0)
    """Watts of the device while it computes."""
    power_radio_w: float | None = Field(default=None, ge=0)
    """Watts of the device while it sends."""
    energy: float | None = Field(default=None, ge=0)
    """Most joules a request may take on the device; needs both powers."""
    trace: Path | None = None
    """File of lines `seconds,bits_per_second`: plans over a link that changes."""
    uplink_samples: Rates = Field(default_factory=list)
    """The same from equally likely rates: 1Mbit,5Mbit,20Mbit."""
    upload_budget: float | None = Field(default=None, ge=0, le=100)
    """Percent of the inputs to upload where a plan cuts at an exit; the exit answers the others on
    the device. Goes into the plan file; the times shown are those of inputs that are uploaded."""
    plot: Path | None = None
    """PNG file to draw latency against bandwidth into."""
    output: Path | None = None
    """File to write the plans into, for `splitserve agent --plan`."""
    all: bool = False
    """Show every candidate's figures, the refused ones too."""
    as_json: bool = False
    """Print one JSON document."""

    @model_validator(mode="after")
    def _complete(self) -> "Options":
        powers = self.power_compute_w, self.power_radio_w
        if None in powers and (self.energy is not None or powers != (None, None)):
            raise ValueError("energy needs both --power-compute-w and --power-radio-w")
        if self.trace and self.uplink_samples:
            raise ValueError("--trace and --uplink-samples both describe the link; give one")
        if self.uplink is None and not self.trace and not self.uplink_samples:
            raise ValueError("name the link: --uplink 5.85Mbit, --uplink-samples or --trace FILE")
        return self


def run(options: Options) -> int:
    """Plan, report, and exit 3 when the answer is not a split."""
    artifact = load_artifact(options.artifact)
    edge, cloud, is_native = _profiles(options, artifact)
    offers, lacking = make_offers(artifact, edge, cloud, is_native=is_native)
    setup = make_setup(edge, cloud, is_native=is_native)
    limits = _limits(options, artifact.manifest)
    states = _states(options)
    uplink_bps = options.uplink or typical_bps(states)
    reply_s = 8 * edge.reply_bytes / options.downlink if options.downlink else 0.0
    link = Link(uplink_bps=uplink_bps, rtt_s=options.rtt + reply_s)
    _warn(options, edge, lacking)
    decision = decide(offers, link, limits, setup, artifact.manifest)
    feasible = [verdict.offer.option for verdict in decision.verdicts if verdict.is_feasible]
    outlook = forecast(feasible, states, link.rtt_s) if states and feasible else None
    if options.plot:
        draw_plans(decision, f"{artifact.manifest.model.name}: every plan", options.plot)
    early = _plan_file(options, decision, artifact)
    if options.as_json:
        document = as_document(decision, setup, outlook, limits.powers)
        print_document(
            {"artifact_id": artifact.id.hex(), **document, "early": early_document(early)}
        )
    else:
        show(decision, setup, outlook, limits.powers, is_full=options.all)
        for line in say_early(early, options.upload_budget):
            Console().print(line, highlight=False, markup=False, soft_wrap=True)
    return 0 if decision.does_split else EXIT_NO_SPLIT


def _plan_file(options: Options, decision: Decision, artifact: Artifact) -> list[Early]:
    """Write the plans where that is wanted; return what exits are expected to answer early."""
    budget = options.upload_budget
    if not options.output and budget is None:
        return []
    plans = make_plan_file(decision, artifact, budget)
    early = [] if budget is None else expect_early(artifact.manifest, plans.options, budget)
    if options.output:
        options.output.write_text(plans.model_dump_json(indent=1) + "\n")
    return early


def make_plan_file(
    decision: Decision, artifact: Artifact, upload_budget: float | None = None
) -> PlanFile:
    """Members of the envelope and edge-only, the fewest bytes first."""
    kept = [
        verdict.offer.option
        for verdict in decision.verdicts
        if verdict.is_on_envelope or verdict.offer.option.is_local
    ]
    return PlanFile(
        artifact_id=artifact.id.hex(),
        options=tuple(sorted(kept, key=lambda option: option.bytes_up)),
        expected=decision.link,
        upload_budget=upload_budget,
    )


def _profiles(options: Options, artifact: Artifact) -> tuple[Profile, Profile, bool]:
    """Both profiles, and whether the cloud's times are to be taken without stretching."""
    edge = read_profile(options.edge_profile)
    check_profile(edge, artifact, "--edge-profile")
    if options.cloud_profile is None:
        return edge, edge, True
    cloud = read_profile(options.cloud_profile)
    check_profile(cloud, artifact, "--cloud-profile")
    return edge, cloud, False


def _limits(options: Options, manifest: Manifest) -> Limits:
    for flag, names in (("--pin", options.pin), ("--ban", options.ban)):
        for name in names:
            if name not in manifest.positions:
                known = ", ".join(manifest.positions)
                raise UsageError(f"{flag}: no position {name!r} here; there are: {known}")
    powers = None
    if options.power_compute_w is not None and options.power_radio_w is not None:
        powers = Powers(options.power_compute_w, options.power_radio_w, options.energy)
    return Limits(
        agreement=options.agreement,
        deadline_s=options.deadline,
        memory_bytes=options.memory,
        leakage=options.leakage_ceiling,
        pins=tuple(options.pin),
        bans=tuple(options.ban),
        powers=powers,
    )


def _states(options: Options) -> list[State]:
    if options.trace:
        return states_of(read_trace(options.trace))
    return [State(1.0, rate) for rate in options.uplink_samples]


def _warn(options: Options, edge: Profile, lacking: list[str]) -> None:
    notes = []
    if options.cloud_profile is None:
        without = " without its slowdown" if edge.slowdown > 1 else ""
        notes.append(
            f"no --cloud-profile: the cloud is taken to be the device's machine{without}"
            f" ({edge.machine.processor})"
        )
    if edge.pictures.kind == "noise":
        notes.append(
            "the device's profile was taken on noise: agreement of jpeg, webp, affine-u8 and raw is"
            " unknown; profile with --images DIR"
        )
    if lacking:
        notes.append(f"left out, for the cloud's profile lacks them: {', '.join(lacking)}")
    console = Console(stderr=True)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
