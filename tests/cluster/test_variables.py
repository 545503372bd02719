"""A launcher's variables."""

import pytest

from r2rank_jax.cluster.variables import Place, TimeLimits, read_job
from r2rank_jax.errors import UsageError

THREE = {"R2RANK_COORDINATOR": "10.0.0.1:1234", "R2RANK_PROCESSES": "4", "R2RANK_PROCESS": "3"}


def test_no_variables_mean_a_job_of_its_own():
    assert read_job({"PATH": "/bin", "R2RANK_JOIN_S": "nonsense"}) is None


def test_a_launcher_gives_place_devices_and_limits():
    job = read_job(THREE | {"R2RANK_LOCAL_DEVICES": "2,3", "R2RANK_JOIN_S": "30"})
    assert job is not None
    assert job.place == Place(host="10.0.0.1", port=1234, processes=4, process=3)
    assert job.place.address == "10.0.0.1:1234"
    assert job.devices == (2, 3)
    assert job.limits == TimeLimits(join_s=30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"R2RANK_COORDINATOR": None}, "needs R2RANK_COORDINATOR"),
        ({"R2RANK_PROCESS": None, "R2RANK_PROCESSES": None}, "R2RANK_PROCESSES and R2RANK_PROCESS"),
        ({"R2RANK_COORDINATOR": "somewhere"}, "HOST:PORT"),
        ({"R2RANK_COORDINATOR": ":80"}, "HOST:PORT"),
        ({"R2RANK_COORDINATOR": "a:70000"}, "from 1 to 65535"),
        ({"R2RANK_COORDINATOR": "a:²"}, "HOST:PORT"),
        ({"R2RANK_PROCESSES": "0"}, "at least 1, got '0'"),
        ({"R2RANK_PROCESSES": "two"}, "at least 1, got 'two'"),
        ({"R2RANK_PROCESS": "-1"}, "at least 0, got '-1'"),
        ({"R2RANK_PROCESS": "4"}, "below R2RANK_PROCESSES=4, got 4"),
        ({"R2RANK_JOIN_S": "soon"}, "R2RANK_JOIN_S"),
        ({"R2RANK_HEARTBEAT_S": "0"}, "R2RANK_HEARTBEAT_S"),
        ({"R2RANK_END_S": ""}, "R2RANK_END_S"),
        ({"R2RANK_LOCAL_DEVICES": "0,x"}, "R2RANK_LOCAL_DEVICES"),
        ({"R2RANK_LOCAL_DEVICES": "1,1"}, "different numbers"),
        ({"R2RANK_CLUSTER": "slurm"}, "must be auto or unset"),
        ({"R2RANK_CLUSTER": "auto"}, "got R2RANK_COORDINATOR as well"),
    ],
)
def test_wrong_variables_are_refused(changes, words):
    environment = {name: value for name, value in (THREE | changes).items() if value is not None}
    with pytest.raises(UsageError, match=words) as refused:
        read_job(environment)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("tasks", "devices"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, ()),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x16)"}, ()),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,2"}, None),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ()),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "R2RANK_LOCAL_DEVICES": "0"}, (0,)),
        ({}, None),
    ],
)
def test_a_process_alone_on_its_node_takes_all_devices(tasks, devices):
    job = read_job({"R2RANK_CLUSTER": "auto"} | tasks)
    assert job is not None and job.place is None
    assert job.devices == devices
