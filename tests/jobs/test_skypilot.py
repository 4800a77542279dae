"""skypilot.yaml as SkyPilot's own parser reads it."""

import pytest
import yaml
from test_job_files import FILES


@pytest.fixture
def sky(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return pytest.importorskip("sky", reason="pip install skypilot (large, so no extra has it)")


def test_skypilot_reads_the_task(sky, tmp_path):
    content = yaml.safe_load(FILES["skypilot.yaml"].read_text())
    content["file_mounts"] = {}  # whose buckets it would look for
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(content))
    task = sky.Task.from_yaml(str(tmp_path / "task.yaml"))
    (resources,) = task.resources
    assert (task.num_nodes, resources.use_spot) == (2, True)
    assert resources.job_recovery["recover_on_exit_codes"] == [69, 75]
    assert resources.job_recovery["max_restarts_on_errors"] == 0


def test_the_schema_of_skypilot_takes_all_of_it(sky):
    from sky.utils import common_utils, schemas

    content = yaml.safe_load(FILES["skypilot.yaml"].read_text())
    common_utils.validate_schema(content, schemas.get_task_schema(), "skypilot.yaml: ")
    for mount in content["file_mounts"].values():
        common_utils.validate_schema(mount, schemas.get_storage_schema(), "skypilot.yaml: ")
    content["resources"]["use_spots"] = True
    with pytest.raises(ValueError, match="use_spots"):
        common_utils.validate_schema(content["resources"], schemas.get_resources_schema(), "skypilot.yaml: ")
