"""Cluster profiles: their schema, what they make of a case, and how the site is known."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kernels.shapes import KNOWN
from kernels.strategies import Parallel, TensorParallel, ZeroOffload
from orchestrator.case import Case
from orchestrator.clusters.cluster import (
    PROFILES,
    Cluster,
    cluster_names,
    json_schema,
    load_cluster,
)
from orchestrator.clusters.detect import detect
from orchestrator.errors import InputError
from orchestrator.slurm.resources import Resources, resources

GIB = 2**30


def case_of(gpus: int) -> Case:
    return Case(
        model="llama-2-7b",
        random=KNOWN["llama-2-7b"],
        label="tensor",
        strategy=Parallel(tensor=TensorParallel(degree=gpus)),
        gpus=gpus,
    )


def sol(gpus: int = 1, cases: int = 1, **changes: Any) -> Resources:
    return resources(load_cluster("sol", changes), case_of(gpus), cases)


@pytest.mark.parametrize("name", cluster_names())
def test_every_profile_that_ships_is_valid_and_named_as_its_file(name: str) -> None:
    assert load_cluster(name).name == name


@pytest.mark.parametrize("name", cluster_names())
def test_every_profile_that_ships_satisfies_the_schema_for_editors(name: str) -> None:
    described = yaml.safe_load((PROFILES / f"{name}.yaml").read_text())
    jsonschema.validate(described, json_schema())


def test_the_schema_that_ships_is_the_one_of_the_code() -> None:
    shipped = json.loads((PROFILES / "cluster.schema.json").read_text())
    assert shipped == json_schema(), "`orch clusters --schema` prints it"


def test_up_to_four_hours_go_to_htc_and_longer_ones_to_public() -> None:
    assert (sol(case_time="4h").partition, sol(case_time="4h").qos) == ("htc", "public")
    assert sol(case_time="4h", cases=2).partition == "public"
    assert sol(case_time="7d").time_s == 7 * 86400


def test_a_time_that_no_partition_takes_is_refused_with_what_each_takes() -> None:
    with pytest.raises(
        InputError, match=r"htc, QOS public takes at most 04:00:00.*public"
    ):
        sol(case_time="8d")


def test_a_pack_asks_for_the_time_of_all_its_cases() -> None:
    assert sol(cases=5).time_s == 5 * sol().time_s


def test_each_gpu_brings_its_share_of_cores_and_memory() -> None:
    one, four = sol(1), sol(4)
    assert (one.cpus_per_task, one.memory_mib) == (12, 120 * 1024)
    assert (four.cpus_per_task, four.memory_mib) == (48, 480 * 1024)
    assert (four.nodes, four.gpus) == (1, "--gpus=a100:4")


def test_more_gpus_than_a_node_has_are_spread_evenly_over_nodes() -> None:
    assert (sol(8).nodes, sol(8).ranks_per_node) == (2, 4)
    assert (sol(6).nodes, sol(6).ranks_per_node) == (2, 3)
    assert sol(6).gpus == "--gpus-per-node=a100:3"


def test_a_gpu_variant_is_pinned_by_its_type_or_feature() -> None:
    assert sol(device="a100-80").constraint == "a100_80"
    assert sol(device="a100-20").gpus == "--gpus=a100.20gb:1"
    assert sol(device="cpu").gpus is None


def test_slices_of_one_gpu_are_not_combined() -> None:
    profile = load_cluster("sol", {"device": "a100-20"})
    reason = profile.unsuitable(case_of(2))
    assert reason is not None
    assert "cannot talk to each other" in reason
    assert profile.unsuitable(case_of(1)) is None


def test_a_device_with_a_partition_of_its_own_goes_there() -> None:
    assert sol(device="gh200").partition == "arm"


def test_a_qos_that_is_not_for_everyone_is_taken_only_when_named() -> None:
    debug = sol(qos="debug", case_time="10min")
    assert (debug.partition, debug.qos) == ("public", "debug")
    with pytest.raises(InputError, match="takes at most 00:15:00"):
        sol(qos="debug", case_time="20min")


def test_memory_is_that_of_the_device_and_what_a_node_can_give() -> None:
    profile = load_cluster("sol")
    assert profile.device_memory_bytes == 79 * GIB
    assert profile.host_memory_bytes(case_of(2)) == 480 * GIB
    assert profile.host_memory_bytes(case_of(8)) == 480 * GIB


def test_weights_that_wait_in_main_memory_ask_for_more_than_the_share_of_a_gpu() -> (
    None
):
    profile = load_cluster("sol")
    large = Case(
        model="llama-2-70b",
        random=KNOWN["llama-2-70b"],
        label="zero-offload",
        strategy=Parallel(zero_offload=ZeroOffload()),
        gpus=1,
    )
    assert 129 < resources(profile, large).memory_mib / 1024 <= 480
    in_files = Parallel(zero_offload=ZeroOffload(source="disk"))
    on_disk = large.model_copy(update={"strategy": in_files})
    assert resources(profile, on_disk).memory_mib == 120 * 1024


def test_ranks_on_cores_share_the_memory_they_ask_for() -> None:
    profile = load_cluster("sol", {"device": "cpu"})
    assert profile.device_memory_bytes == 30 * GIB


def test_cases_per_job_is_refused_where_one_job_runs_them_all() -> None:
    with pytest.raises(InputError, match="cases_per_job is for Slurm, got 4"):
        load_cluster("local", {"cases_per_job": 4})


def test_a_users_file_changes_a_profile_a_little(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: sol\naccount: grp_x\ndevices: {a100: {cpus: 6}}\n")
    mine = load_cluster(str(file))
    assert (mine.account, mine.devices["a100"].cpus) == ("grp_x", 6)
    assert mine.devices["a100"].memory_bytes == 79 * GIB


def test_a_users_file_extends_another_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: sol\nthrottle: 3\n")
    (tmp_path / "top.yaml").write_text("extends: ./base.yaml\ncases_per_job: 2\n")
    top = load_cluster(tmp_path / "top.yaml")
    assert (top.throttle, top.cases_per_job) == (3, 2)


def test_profiles_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: ./b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ./a.yaml\n")
    with pytest.raises(InputError, match="leads back to this profile"):
        load_cluster(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trottle: 3", "2:1: unknown key 'trottle'; did you mean 'throttle'"),
        ("devices: {a100: {memry: 1GiB}}", "devices.a100: unknown key 'memry'; did you"),
        ("devices: {a100: {mem: 1GiB}}", "did you mean 'host_memory'? valid: about, constraint"),
        ("modules: [cuda]", "unknown key 'modules'; did you mean 'setup'?"),
        ("extend: sol", "unknown key 'extend'; did you mean 'extends'?"),
        ("confidence: sure", "must be one of tested, documented, unverified, got 'sure'"),
        ("devices: {a100: {memory: '1,5 GiB'}}", "must be greater than or equal to 1048576"),
        ("devices: {a100: {memory: 5 parsecs}}", "must be a size such as 16GiB or 500 MB"),
        ("case_time: 3 weeks", "must be a number and a unit"),
        ("throttle: yes", "throttle: must be a whole number, got true"),
        ("device: a1000", "device must be one of devices, got 'a1000'; did you mean 'a100'"),
        ("throttle: 1\nthrottle: 2", "3:1: duplicate key 'throttle'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_profile_is_said_with_place_and_way_out(
    tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: sol\n{text}\n")
    with pytest.raises(InputError) as raised:
        load_cluster(str(file))
    assert says in str(raised.value)


def test_a_profile_that_lacks_keys_is_told_all_of_them_and_their_values(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("kind: local\ncases_per_job: 0\n")
    with pytest.raises(InputError) as raised:
        load_cluster(str(file))
    assert str(raised.value).replace(f"{file}:", "").splitlines() == [
        "1:1: about: is missing",
        "1:1: confidence: is missing; one of tested, documented, unverified",
        "1:1: name: is missing",
        "2:16: cases_per_job: must be greater than 0, got 0",
    ]


def test_times_are_read_as_slurm_writes_them_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: sol\ncase_time: 02:00:00\npoll: 5m\n")
    mine = load_cluster(str(file))
    assert (mine.case_time_s, mine.poll_s) == (7200, 300)


def test_an_unknown_cluster_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'sol'"):
        load_cluster("sool")


def test_an_account_that_a_site_demands_must_be_given() -> None:
    profile = load_cluster("sol", {"account_required": True})
    with pytest.raises(InputError, match="takes no job without an account"):
        resources(profile, case_of(1))


def _detected(tmp_path: Path, conf: str | None, **environment: str) -> Cluster:
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    known = {"PATH": str(tmp_path), **environment}
    if conf is not None:
        (tmp_path / "slurm.conf").write_text(conf)
        known["SLURM_CONF"] = str(tmp_path / "slurm.conf")
    return detect(known)


def test_sol_is_known_by_its_cluster_name(tmp_path: Path) -> None:
    assert _detected(tmp_path, "# x\nclustername = Sol\n").name == "sol"
    assert _detected(tmp_path, None, SLURM_CLUSTER_NAME="sol").name == "sol"


def test_a_slurm_that_nobody_described_is_any_slurm(tmp_path: Path) -> None:
    assert _detected(tmp_path, "ClusterName=elsewhere\n").name == "slurm"


def test_a_machine_without_slurm_is_local(tmp_path: Path) -> None:
    assert detect({"PATH": str(tmp_path)}).name == "local"
