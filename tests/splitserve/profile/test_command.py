"""`splitserve profile` from a shell: what it measures fits together."""

import json
from pathlib import Path

import pytest
from graphs import fork_net, write_model

from splitserve.artifact import load_artifact
from splitserve.cli import main
from splitserve.errors import UsageError
from splitserve.profile import Profile, read_profile

Capture = pytest.CaptureFixture[str]
FAST = ("--rounds", "8", "--warm-up", "1", "--threads", "1", "--idle-ms", "0")
QUALITIES = ("--jpeg-qualities", "50,90", "--webp-qualities", "80")


def take(artifact: Path, target: Path, *more: str) -> Profile:
    assert main(["profile", str(artifact), "-o", str(target), *FAST, *QUALITIES, *more]) == 0
    return read_profile(target)


@pytest.fixture(scope="module")
def noise(calibrated_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return take(calibrated_artifact, tmp_path_factory.mktemp("profile") / "p.json")


@pytest.fixture(scope="module")
def seen(
    calibrated_artifact: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Profile:
    target = tmp_path_factory.mktemp("profile") / "p.json"
    return take(calibrated_artifact, target, "--images", str(pictures))


def test_every_position_is_measured_and_consistent(noise: Profile, calibrated_artifact: Path):
    manifest = load_artifact(calibrated_artifact).manifest
    assert tuple(place.name for place in noise.places) == manifest.positions
    first, last = noise.places[0], noise.places[-1]
    assert first.head.median_s == last.tail.median_s == 0
    assert first.tail.median_s > 0
    assert last.head.median_s > 0
    for place in noise.places[1:-1]:  # a busy machine may turn neighbours around, not the ends
        assert 0 < place.head.median_s < 3 * last.head.median_s
        assert 0 < place.tail.median_s < 3 * first.tail.median_s
        assert place.head.p90_s >= place.head.median_s
        assert place.head.count == 8
        assert not place.is_predicted
    weights = [place.weights_bytes for place in noise.places]
    assert weights[0] == 0
    assert weights[-1] == sum(segment.bytes for segment in manifest.segments)
    features = [place.features_bytes for place in noise.places]
    assert features == sorted(features)
    assert noise.resident_bytes


def test_every_codec_is_a_candidate_everywhere(noise: Profile, calibrated_artifact: Path):
    manifest = load_artifact(calibrated_artifact).manifest
    want = {("output", "none", None), ("input", "jpeg", 50), ("input", "jpeg", 90),
            ("input", "webp", 80)}  # fmt: skip
    for name in manifest.positions[:-1]:
        want |= {(name, "raw", None), (name, "affine-u8", None)}
    for cut in manifest.cuts:
        assert cut.calibration
        want |= {(cut.name, "step-ans", rate.floor) for rate in cut.calibration.rates}
    assert {candidate.key for candidate in noise.candidates} == want
    for candidate in noise.candidates:
        assert candidate.edge.median_s > candidate.encode.median_s or candidate.codec == "none"
        assert candidate.bytes_p95 >= candidate.bytes_mean * 0.5


def test_bytes_are_those_of_whole_frames(seen: Profile, calibrated_artifact: Path):
    manifest = load_artifact(calibrated_artifact).manifest
    (raw,) = [c for c in seen.candidates if c.key == ("input", "raw", None)]
    exact = manifest.inputs[0].elements() * 2
    assert exact + 64 < raw.bytes_mean < exact + 200
    assert 10 * 4 + 64 < seen.reply_bytes < 10 * 4 + 200


def test_noise_tells_no_agreement_but_the_manifests(noise: Profile):
    assert noise.pictures.kind == "noise"
    for candidate in noise.candidates:
        if candidate.codec == "step-ans":
            assert candidate.agreement
            assert candidate.agreement.value == candidate.quality
            assert candidate.agreement_on == 100
        else:
            assert candidate.agreement is None


def test_pictures_tell_the_agreement_of_the_other_codecs(seen: Profile):
    assert (seen.pictures.kind, seen.pictures.count) == ("files", 5)
    for candidate in seen.candidates:
        if candidate.codec in ("jpeg", "webp", "affine-u8", "raw"):
            assert candidate.agreement
            assert candidate.agreement_on == 5
    (local,) = [c for c in seen.candidates if c.codec == "none"]
    assert local.is_lossless
    lossless = [c for c in seen.candidates if c.is_lossless and c.agreement]
    assert all(c.agreement.value == 100 for c in lossless if c.agreement)
    sizes = {c.quality: c.bytes_mean for c in seen.candidates if c.codec == "jpeg"}
    assert sizes[50] < sizes[90]


def test_unmeasured_cuts_are_predicted_and_say_so(calibrated_artifact: Path, tmp_path: Path):
    names = load_artifact(calibrated_artifact).manifest.positions[1:-1]
    profile = take(calibrated_artifact, tmp_path / "p.json", "--cuts", names[0])
    assert [place.is_predicted for place in profile.places[1:-1]] == [
        name != names[0] for name in names
    ]
    for place in profile.places:
        if place.is_predicted:
            assert place.head.count == 0
            assert 0 < place.head.median_s <= profile.places[-1].head.median_s * 3
    for candidate in profile.candidates:
        is_predicted = profile.place(candidate.cut).is_predicted
        assert (candidate.edge.count == 0) == is_predicted
        assert candidate.encode.count == (0 if candidate.codec == "none" else 8)
        assert candidate.edge.p90_s >= candidate.edge.median_s > 0
    assert profile.prediction is None


def test_the_prediction_error_is_reported(noise: Profile, capsys: Capture):
    cuts = len(noise.places) - 2
    assert (noise.prediction is not None) == (cuts >= 2)
    if noise.prediction:
        assert noise.prediction.cuts == cuts
        assert noise.prediction.head_median <= noise.prediction.head_worst


def test_a_slowdown_stretches_and_is_stated_as_measured(
    calibrated_artifact: Path, tmp_path: Path, capsys: Capture
):
    profile = take(calibrated_artifact, tmp_path / "p.json", "--slowdown", "4")
    assert profile.slowdown == 4
    assert 3.5 < profile.slowdown_measured < 8  # a sleep of microseconds takes longer than asked
    local = profile.candidates[0].edge
    assert local.median_s > 3 * local.native_median_s
    assert f"measured {profile.slowdown_measured:.2f}" in capsys.readouterr().err


def test_the_document_goes_round(noise: Profile, tmp_path: Path, capsys: Capture):
    again = Profile.model_validate_json(noise.model_dump_json())
    assert again == noise
    assert json.loads(noise.model_dump_json())["schema_version"] == 1


def test_json_is_one_document_and_writes_no_file(
    calibrated_artifact: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", str(calibrated_artifact), "--json", *FAST]) == 0
    out, err = capsys.readouterr()
    profile = Profile.model_validate_json(out)
    assert profile.artifact_id == load_artifact(calibrated_artifact).id.hex()
    assert not list(tmp_path.iterdir())
    assert "no --images: measuring on noise" in err


def test_tables_are_shown_and_the_default_file_is_written(
    tiny_artifact: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", str(tiny_artifact), *FAST]) == 0
    out, err = capsys.readouterr()
    assert "head ms (p90)" in out
    assert "input jpeg 95" in out
    assert "profile.json written" in err
    assert read_profile(tmp_path / "profile.json").rounds == 8


def test_cuts_of_several_tensors_are_carried_whole(calibrated_fork: Path, tmp_path: Path):
    profile = take(calibrated_fork, tmp_path / "p.json")
    (raw,) = [c for c in profile.candidates if c.key == ("a+b", "raw", None)]
    assert raw.bytes_mean > 2 * (2 * 8 * 8) * 2
    assert {c.quality for c in profile.candidates if c.key[:2] == ("a+b", "step-ans")} == {
        99.9, 99.0, 95.0,
    }  # fmt: skip


def test_a_model_without_pictures_is_fed_noise(tmp_path: Path, capsys: Capture):
    artifact = tmp_path / "artifact"
    model = write_model(fork_net(reads_image_late=True), tmp_path / "fork.onnx")
    assert main(["split", str(model), "-o", str(artifact)]) == 0
    profile = take(artifact, tmp_path / "p.json")
    assert profile.picture.count == profile.normalise.count == 0
    assert not {c.codec for c in profile.candidates} & {"jpeg", "webp"}
    assert profile.candidates[0].edge.median_s > 0
    assert main(["profile", str(artifact), "--images", str(tmp_path)]) == 2
    assert "--images: this model takes no pictures" in capsys.readouterr().err


def test_an_unknown_cut_names_the_known_ones(tiny_artifact: Path, capsys: Capture):
    assert main(["profile", str(tiny_artifact), "--cuts", "nowhere"]) == 2
    assert "--cuts: no cut 'nowhere' here; there are: " in capsys.readouterr().err


def test_a_folder_without_pictures_is_a_wrong_call(
    tiny_artifact: Path, tmp_path: Path, capsys: Capture
):
    assert main(["profile", str(tiny_artifact), "--images", str(tmp_path)]) == 2
    assert "no .jpg" in capsys.readouterr().err


def test_a_damaged_picture_is_named(tiny_artifact: Path, tmp_path: Path, capsys: Capture):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert main(["profile", str(tiny_artifact), "--images", str(tmp_path)]) == 1
    assert "broken.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version": 2}', "[]", "\x00"])
def test_what_is_no_profile_is_refused_with_the_fix(tmp_path: Path, content: str):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="make one with: splitserve profile"):
        read_profile(path)


def test_a_missing_profile_names_the_fix(tmp_path: Path):
    with pytest.raises(UsageError, match="make one with: splitserve profile"):
        read_profile(tmp_path / "none.json")


def test_help_shows_the_flags(capsys: Capture):
    assert main(["profile", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--images", "--cuts", "--slowdown", "--rounds", "--json"):
        assert flag in out
