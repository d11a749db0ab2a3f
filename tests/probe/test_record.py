"""Recordings: what is written comes back, without names and ids."""

from __future__ import annotations

import json

import machines
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from willitrun_probe.errors import ProbeError
from willitrun_probe.gpus.spec import ABSENT, Libraries, parse_answer, parse_spec, write_line
from willitrun_probe.machine import Machine
from willitrun_probe.record import open_recording, parse_files, read_recording, write_files
from willitrun_probe.recorder import record
from willitrun_probe.roots import Roots

lines = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n"), max_size=20)
paths = st.from_regex(r"/[a-z0-9:./-]{1,20}", fullmatch=True)


@given(
    st.dictionaries(paths, st.lists(lines, max_size=4)),
    st.dictionaries(paths, st.from_regex(r"[a-z./]+", fullmatch=True)),
)
def test_files_survive_writing_and_reading(contents, links):
    files = {path: "".join(f"{line}\n" for line in text) for path, text in contents.items()}
    back, linked, failures = parse_files(write_files(files, links, {"/a b": "EACCES"}))
    assert {path: data.decode() for path, data in back.items()} == files
    assert linked == links
    assert failures == {"/a b": "EACCES"}


values = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.text(
        st.characters(min_codepoint=32, max_codepoint=0x17F, exclude_categories=("Cc", "Zs", "Cs", "Cf")), max_size=12
    ),
)


@given(st.one_of(st.lists(values, max_size=6), st.integers(1, 999)))
def test_answers_survive_writing_and_reading(answer):
    spec = parse_spec(write_line("gpu0", "nvmlDeviceGetName", answer))
    assert spec["gpu0", "nvmlDeviceGetName"].answer == answer


def test_spec_ranges_waits_and_actions():
    spec = parse_spec("# c\ngpu0-2/mig1 f:3 = ~250 !15\ngpu1/mig1 f:3 = 7\nnonsense\n")
    assert sorted(target for target, _ in spec) == ["gpu0/mig1", "gpu1/mig1", "gpu2/mig1"]
    assert spec["gpu1/mig1", "f:3"].answer == [7]
    assert spec["gpu2/mig1", "f:3"] == (0.25, "", 15)
    assert parse_answer(' 0x10 "a b" -1 HANG').action == "HANG"
    assert parse_answer(" 010 word").answer == ["010", "word"]


def recorded(name: str, folder, **options: bool) -> tuple[Machine, Machine]:
    """Record a replayed machine again and replay that."""
    found = machines.recording(name)
    made = record(
        str(folder), roots=found.roots, libraries=found.libraries, environment=found.environment, timeout_s=10,
        now=found.observed, **options,
    )  # fmt: skip
    return made, open_recording(folder)


@pytest.mark.parametrize(
    "name", ["h100x8-nvlink", "a100-mig", "mi300x-spx", "laptop-hybrid", "driver-mismatch", "apple-m1"]
)
def test_recording_of_a_recording_is_the_same_machine(name, tmp_path):
    made, again = recorded(name, tmp_path / "r", keep_ids=True)
    assert again.gpus == made.gpus
    assert (again.cpu, again.memory, again.disks) == (made.cpu, made.memory, made.disks)
    assert {f.code for f in again.findings} == {f.code for f in made.findings}
    assert again.shape_hash == made.shape_hash


def test_redaction_takes_names_and_ids_out(tmp_path):
    made, again = recorded("rtx3090-shared", tmp_path / "r")
    text = "".join(path.read_text() for path in (tmp_path / "r").iterdir())
    assert "Xorg" not in text
    assert "ab" * 32 not in text
    assert " 4242 " not in text
    assert again.name == "recorded"
    assert again.shape_hash == made.shape_hash
    assert [one.pid for one in again.gpus[0].holders or ()] == [1000, 1001]
    assert [one.bytes for one in again.gpus[0].holders or ()] == [6291456000, 100000000]


def test_redaction_of_this_machine(tmp_path):
    environment = {"HOME": "/home/somebody", "SECRET_TOKEN": "hunter2", "HF_HOME": "/home/somebody/hf"}
    record(
        str(tmp_path / "r"),
        roots=Roots(),
        libraries=Libraries(ABSENT, ABSENT),
        environment=environment,
        timeout_s=10,
        now=0,
    )
    text = "".join(path.read_text(errors="replace") for path in (tmp_path / "r").iterdir())
    assert "somebody" not in text
    assert "hunter2" not in text
    assert read_recording(tmp_path / "r").environment == {"HOME": "/home/user", "HF_HOME": "/home/user/hf"}


def test_replay_of_this_machine_is_this_machine(tmp_path):
    made = record(
        str(tmp_path / "r"), roots=Roots(), libraries=Libraries(ABSENT, ABSENT), environment={}, timeout_s=10, now=0
    )
    again = open_recording(tmp_path / "r")
    assert msgspec.structs.replace(again, name="", sources=()) == msgspec.structs.replace(made, name="", sources=())


def test_unique_ids_of_amd_cards_become_stand_ins(tmp_path):
    _, again = recorded("mi100", tmp_path / "r")
    assert again.gpus[0].uuid is not None
    text = (tmp_path / "r" / "files.txt").read_text()
    assert "1234567890abcdef" not in text
    assert "/kfd/proc/888" not in text
    assert again.gpus[0].uuid == "GPU-0000000000000001"
    assert [one.bytes for one in again.gpus[0].holders or ()] == [2 * 1024**3]


@pytest.mark.parametrize("text", [None, "", "[]", '{"schema": "other/1"}', "\0"])
def test_what_is_no_recording(text, tmp_path):
    if text is not None:
        (tmp_path / "recording.json").write_text(text)
    with pytest.raises(ProbeError) as error:
        read_recording(tmp_path)
    assert error.value.exit_code == 4


FACTS = ("environment", "observed", "space", "access", "architecture", "system", "origin")
odd = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(FACTS), odd))
def test_recordings_with_odd_facts_can_be_read(tmp_path_factory, facts):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "recording.json").write_text(json.dumps({**facts, "schema": "willitrun.recording/1"}))
    (folder / "files.txt").write_text("")
    assert open_recording(folder).gpus in ((), machines.machine("nothing").gpus) or facts.get("system") == "Darwin"


def test_recording_does_not_overwrite(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ProbeError, match="not empty"):
        record(str(tmp_path), roots=Roots(), libraries=Libraries(), environment={}, timeout_s=1, now=0)
