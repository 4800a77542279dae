"""The Kubernetes files against the models that Kubernetes, JobSet and Kubeflow Trainer publish."""

import re

import pytest
import yaml
from test_job_files import FILES

NAMES = [name for name in FILES if name.startswith("kubernetes")]
VERSION = "1.31"
"""The oldest Kubernetes that docs/guides/kubernetes.md names."""


def documents(name: str, change=str) -> list[dict]:
    return list(yaml.safe_load_all(change(FILES[name].read_text())))


def with_kueue(text: str) -> str:
    """As the guide says: without the # before the label."""
    changed = re.sub(r"# (kueue\.x-k8s\.io/queue-name: )", r"\1", text)
    assert changed != text
    return changed


def wrong(text: str) -> str:
    """With a field that no model has."""
    return text.replace("restartPolicy:", "restartPolice:")


def kind_of(document: dict):
    """The model of a document."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api: the models")
    names = {
        "Service": None,
        "Job": "IoK8sApiBatchV1JobSpec",
        "JobSet": "JobsetV1alpha2JobSetSpec",
        "TrainingRuntime": "TrainerV1alpha1TrainingRuntimeSpec",
        "TrainJob": "TrainerV1alpha1TrainJobSpec",
    }
    name = names[document["kind"]]
    return None if name is None else getattr(models, name)


def lost(given: object, read: object, where: str = "") -> list[str]:
    """What a model did not take: these models drop what they do not know."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [line for key, value in given.items() for line in lost(value, read.get(key), f"{where}.{key}")]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        return [line for pair in zip(given, read, strict=True) for line in lost(*pair, f"{where}[]")]
    return [] if given == read else [where]


def faults(document: dict) -> list[str]:
    model = kind_of(document)
    return [] if model is None else lost(document["spec"], model.from_dict(document["spec"]).to_dict())


@pytest.mark.parametrize("change", [str, with_kueue])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_what_the_models_take(name, change):
    for document in documents(name, change):
        assert faults(document) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_mistyped_field_is_found(name):
    assert [line for document in documents(name, wrong) for line in faults(document)] != []


@pytest.mark.parametrize("document", documents("kubernetes_job.yaml"), ids=lambda document: document["kind"])
def test_the_schema_of_kubernetes_takes_a_plain_job(document):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate: schemas")
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_names_fit_together():
    """Pods find the first one by a name that Kubernetes makes of those of the job and the service."""
    service, job = documents("kubernetes_job.yaml")
    (args,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--main_process_ip {job['metadata']['name']}-0.{service['metadata']['name']} " in args
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    (jobset,) = documents("kubernetes_jobset.yaml")
    spec, (replicated,) = jobset["spec"], jobset["spec"]["replicatedJobs"]
    (args,) = replicated["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    first = f"{jobset['metadata']['name']}-{replicated['name']}-0-0.{spec['network']['subdomain']}"
    assert f"--main_process_ip {first} " in args
    runtime, trainjob = documents("kubernetes_trainjob.yaml")
    assert trainjob["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert trainjob["spec"]["runtimeRef"]["kind"] == runtime["kind"]


@pytest.mark.parametrize("name", ["kubernetes_job.yaml", "kubernetes_jobset.yaml"])
def test_numbers_fit_together(name):
    """Nodes, GPUs and processes, which stand in several places."""
    text = FILES[name].read_text()
    nodes = {
        int(each)
        for each in re.findall(r"(?:completions|parallelism): (\d+)|--num_machines (\d+)", text)
        for each in each
        if each
    }
    (gpus,) = map(int, re.findall(r"nvidia\.com/gpu: (\d+)", text))
    (processes,) = map(int, re.findall(r"--num_processes (\d+)", text))
    assert len(nodes) == 1
    assert processes == gpus * nodes.pop()
