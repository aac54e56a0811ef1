"""`prepare allen`: lists of experiments, their files from a bucket, and the published study's choice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from allen_samples import write_session
from tests.sources.file_server import serve_files

from poyo_ssl import protocol
from poyo_ssl.cli import main
from poyo_ssl.data.recording import RecordingMetadata, open_recordings
from poyo_ssl.errors import RecordingError
from poyo_ssl.sources.allen_list import (
    ExperimentFilter,
    experiment_path,
    published_arm,
    published_experiments,
    read_experiments,
    select_experiments,
)

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real" / "allen_metadata"


def record(number, *, line="Sst-IRES-Cre", area="VISp", depth=275, session="A", mouse="222426", failed=False):
    """Return an experiment as ophys_experiments.json has it."""
    lines = [("reporter", "Ai148(TIT2L-GC6f-ICL-tTA2)"), ("driver", "Camk2a-tTA"), ("driver", line)]
    donor = {
        "external_donor_name": mouse,
        "date_of_birth": "2016-01-01T00:00:00Z",
        "sex": "M",
        "transgenic_lines": [{"transgenic_line_type_name": kind, "name": name} for kind, name in lines],
    }
    return {
        "id": number,
        "experiment_container_id": 7,
        "experiment_container": {"failed": failed},
        "stimulus_name": f"three_session_{session}" if len(session) < 3 else session,
        "targeted_structure": {"acronym": area},
        "imaging_depth": depth,
        "date_of_acquisition": "2016-04-10T23:20:58Z",
        "specimen": {"donor": donor},
    }


RECORDS = [
    record(501574837, line="Vip-IRES-Cre", session="B", mouse="3"),
    record(501574836, line="Cux2-CreERT2"),
    record(501574838, depth=375, area="VISl"),
    record(501574839, failed=True),
    record(501574840, session="OPHYS_1_images_A"),
]


@pytest.fixture
def bucket(tmp_path):
    """Run a server that holds the list and the files of the first two experiments."""
    made = tmp_path / "made"
    made.mkdir()
    with serve_files() as server:
        server.files["/visual/ophys_experiments.json"] = json.dumps(RECORDS).encode()
        for number, session in ((501574836, "three_session_A"), (501574837, "three_session_B")):
            _, path = write_session(made, session, recording_id=str(number))
            server.files[f"/visual/ophys_experiment_data/{number}.nwb"] = path.read_bytes()
        yield server


@pytest.fixture
def run(bucket, tmp_path, capsys):
    """Return a function that runs the command on a cache folder and gives exit code and words."""

    def command(*arguments):
        address = [f"--address={bucket.address}/visual/"] if "--download" in arguments else []
        code = main(["prepare", "allen", str(tmp_path / "cache"), *arguments, *address])
        return code, " ".join(capsys.readouterr().err.split())

    return command


def test_filters(tmp_path):
    path = tmp_path / "ophys_experiments.json"
    path.write_text(json.dumps(RECORDS))
    experiments = read_experiments(path)
    assert [one.experiment_id for one in experiments] == list(range(501574836, 501574841))

    def ids(**wanted):
        return [one.experiment_id - 501574830 for one in select_experiments(experiments, ExperimentFilter(**wanted))]

    assert ids() == [6, 7, 8]
    assert ids(cre_line=("Sst-IRES-Cre", "Vip-IRES-Cre")) == [7, 8]
    assert ids(area=("VISl",)) == ids(min_depth_um=300) == [8]
    assert ids(max_depth_um=275, session_type=("three_session_A",)) == ids(session_type=("A",), area=("VISp",)) == [6]
    one = experiments[0]
    assert RecordingMetadata(**one.metadata()).indicator == "GCaMP6f"
    assert (one.age_days, one.recording_date, one.subject_id) == (100.0, "2016-04-10", "222426")


def test_containers_share_what_is_written_once(tmp_path):
    whole = record(1)
    inner = {key: whole[key] for key in ("id", "stimulus_name", "date_of_acquisition")}
    shared = {key: whole[key] for key in ("specimen", "targeted_structure", "imaging_depth")}
    path = tmp_path / "experiment_containers.json"
    path.write_text(json.dumps([shared | {"id": 7, "failed": False, "ophys_experiments": [inner]}]))
    (tmp_path / "ophys_experiments.json").write_text(json.dumps([whole]))
    assert read_experiments(path) == read_experiments(tmp_path / "ophys_experiments.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "holds no list of records"),
        ("[3]", "record 3 has no 'specimen'"),
        ([record(1) | {"imaging_depth": "deep"}], "record 1 has 'deep' as 'imaging_depth'"),
        ([record(1) | {"targeted_structure": None}], "record 1 has no 'targeted_structure'"),
        ([record(1) | {"id": "../../etc/passwd"}], r"has '../../etc/passwd' as 'id'"),
        ([{"id": 7, "ophys_experiments": "none"}], "record 7 has 'none' as 'ophys_experiments'"),
    ],
)
def test_lists_that_are_damaged_name_record_and_field(tmp_path, content, message):
    path = tmp_path / "ophys_experiments.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(RecordingError, match=message):
        read_experiments(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "manifest.json is not JSON"),
        ("[]", "manifest.json has no list 'manifest'"),
        ('{"manifest": [{"type": "dir", "key": "BASEDIR"}]}', "manifest.json has no record of type 'manifest_version'"),
        (
            '{"manifest": [{"type": "manifest_version", "value": "0.2.1"}]}',
            r"manifest.json: record 'manifest_version' has '0.2.1' as 'value' .allowed: 1.3.; give the cache",
        ),
    ],
)
def test_a_cache_of_another_layout_is_refused(tmp_path, content, message, capsys):
    (tmp_path / "ophys_experiments.json").write_text(json.dumps(RECORDS))
    (tmp_path / "manifest.json").write_text('{"manifest": [{"type": "manifest_version", "value": "1.3"}]}')
    assert main(["prepare", "allen", str(tmp_path), "--list"]) == 0
    (tmp_path / "manifest.json").write_text(content)
    capsys.readouterr()
    assert main(["prepare", "allen", str(tmp_path), "--list"]) == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)


def test_a_mouse_without_a_cre_line_is_unknown(tmp_path):
    lost = record(1)
    lost["specimen"]["donor"]["transgenic_lines"].pop()
    (tmp_path / "ophys_experiments.json").write_text(json.dumps([lost]))
    assert read_experiments(tmp_path / "ophys_experiments.json")[0].cre_line == "unknown"


@pytest.mark.parametrize("number", [-1, 10**13])
def test_names_are_digits(tmp_path, number):
    assert experiment_path(tmp_path, 501574836) == tmp_path / "ophys_experiment_data" / "501574836.nwb"
    with pytest.raises(RecordingError, match="experiment id"):
        experiment_path(tmp_path, number)


def test_list_fetches_the_list_and_nothing_else(run, bucket, tmp_path):
    assert run("--list")[0] == 2
    code, said = run("--list", "--download", "--session_type", "A", "B")
    assert code == 0
    assert "3 experiments of 2 mice (Cux2-CreERT2 1, Sst-IRES-Cre 1, Vip-IRES-Cre 1)" in said
    assert [path for path, _ in bucket.seen] == ["/visual/ophys_experiments.json"]
    code, said = run("--list", "--min_depth_um", "500")
    assert code == 2
    assert "none of 5 experiments" in said
    assert not (tmp_path / "cache" / "ophys_experiment_data").exists()


def test_download_and_convert_goes_on_and_names_what_is_lost(run, bucket, tmp_path):
    bucket.script = [{}, {"break_after": 50_000}]
    output = tmp_path / "data"
    code, said = run(str(output), "--download", "--workers", "1")
    assert code == 2
    assert "501574838.nwb: the server answers 404 Not Found" in said
    assert "1 of 3 files could not be fetched, 501574838.nwb first" in said
    assert "2 written, 0 unchanged, 0 failed" in said
    assert "1 of 3 experiments have no file" in said
    assert [one.recording_id for one in open_recordings(output)] == ["501574836", "501574837"]
    fetched = len(bucket.seen)
    code, said = run(str(output), "--download", "--workers", "1", "--cre_line", "Cux2-CreERT2")
    assert code == 0
    assert "0 written, 1 unchanged, 0 failed" in said
    assert len(bucket.seen) == fetched


def test_the_published_arms_follow_the_cre_line_in_the_file(run, tmp_path):
    folder = tmp_path / "cache" / "ophys_experiment_data"
    folder.mkdir(parents=True)
    recording, _ = write_session(folder, recording_id="501574836")
    write_session(folder, recording_id="501021421", metadata=replace(recording.metadata, cre_line="Vip-IRES-Cre"))
    write_session(folder, recording_id="123456789")
    code, said = run(str(tmp_path / "data"), "--published", "--workers", "1")
    assert code == 0
    assert "431 of 433 experiments have no file" in said
    assert "pretraining: 1 of 134 published recordings" in said
    assert "fine-tuning: 1 of 299 published recordings" in said
    assert (tmp_path / "data" / "arms.csv").read_text().splitlines() == [
        "recording_id,cre_line,arm",
        "501021421,Vip-IRES-Cre,pretraining",
        "501574836,Cux2-CreERT2,fine-tuning",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "prepare allen without an output"),
        (["--list", "--cre_line", "Sst-IRES-Crew"], "did you mean 'Sst-IRES-Cre'?"),
        (["--list", "--session_type", "D"], "session type 'D'"),
        (["--list", "--min_depth_um", "300", "--max_depth_um", "200"], "depths from 300 to 200 um"),
        (["--download", "--published", "--address", "file:///etc"], "address 'file:///etc'"),
        (["--list", "--area", "VISp"], "no list of experiments in"),
    ],
)
def test_mistakes(tmp_path, capsys, arguments, message):
    assert main(["prepare", "allen", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("poyo-ssl: ")
    assert list(tmp_path.iterdir()) == []


def test_the_published_choice():
    assert len(set(published_experiments())) == 433
    assert 501574836 in published_experiments()
    lines = ("Vip-IRES-Cre", "Cux2-CreERT2", "unknown")
    assert [published_arm(line) for line in lines] == ["pretraining", "fine-tuning", ""]


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="the Allen's lists are not beside the checkout")
def test_the_real_list():
    experiments = read_experiments(REAL / "experiment_containers.json")
    assert len(experiments) == 648
    assert {one.cre_line for one in experiments} <= set(protocol.CRE_LINES)
    known = select_experiments(experiments, ExperimentFilter(session_type=("A",)), published_experiments())
    assert len(known) == 157
    assert (REAL / "paper_experiments.csv").read_text().split()[1:] == [str(n) for n in published_experiments()]
