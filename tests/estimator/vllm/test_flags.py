from __future__ import annotations

from willitrun_estimator.vllm.flags import flag_list, known_flags, unknown_flags


def test_flags_come_and_go_with_the_releases():
    assert "--nnodes" not in known_flags((0, 11))
    assert "--nnodes" in known_flags((0, 12))
    assert "--swap-space" in known_flags((0, 17))
    assert "--swap-space" not in known_flags((0, 18))
    assert "--max-model-len" in known_flags((0, 10))
    assert known_flags((0, 99)) == known_flags((0, 33))


def test_unknown_options_of_a_command_are_named():
    argv = ["vllm", "serve", "m", "--max-model-len", "8192", "--no-enable-prefix-caching", "--made-up=1", "-O3"]
    assert unknown_flags(argv, (0, 33)) == ["--made-up"]
    assert unknown_flags([*argv, "--nnodes", "2"], (0, 11)) == ["--made-up", "--nnodes"]


def test_the_shipped_list_covers_every_minor_release_since_0_10():
    assert flag_list().versions[0] == "0.10"
    assert flag_list().versions[-1] == "0.33"
    assert len(flag_list().versions) == 24
    assert len(flag_list().flags) > 300
