"""A run at az://, gs:// and hf://, against emulators of these stores: Microsoft's Azurite, gcp-storage-emulator, and
the stand-in for the Hugging Face hub in tests/hub_server.py. The first two are slow tests:

npm install -g azurite; pip install adlfs gcsfs gcp-storage-emulator
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import cv2
import fsspec
import pytest
from helpers import draw_sample, draw_shards, free_port, tiny_config, wait_for_listener
from hub_server import REPOSITORY, serve_hub

from glioma_dist import EvaluateConfig, PredictConfig, evaluate, predict, train
from glioma_dist.config.paths import Url
from glioma_dist.data.shards.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes")  # adlfs through aiohttp
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of Azurite: the same for everybody, and published."""
GCS = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="cells").run()
"""
MIB = 2**20


def needs(*modules: str, program: str | None = None) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing or (program and shutil.which(program) is None):
        pytest.skip(f"{', '.join([*missing, *([program] if program else [])])}: see the first lines of this file")


@pytest.fixture(params=[pytest.param("az", marks=pytest.mark.slow), pytest.param("gs", marks=pytest.mark.slow), "hf"])
def root(request, tmp_path, monkeypatch):
    """URL of an empty bucket or repository."""
    if request.param == "hf":
        with serve_hub(monkeypatch):
            yield Url(f"hf://{REPOSITORY}")
        return
    files = fsspec.get_filesystem_class(request.param)
    files.clear_instance_cache()  # those of another test have its port
    with serve_bucket(request.param, tmp_path, monkeypatch) as url:
        yield url
    files.clear_instance_cache()


@contextmanager
def serve_bucket(scheme, tmp_path, monkeypatch):
    port = free_port()
    if scheme == "az":
        needs("adlfs", program="azurite-blob")
        from azure.storage.blob import BlobServiceClient

        command = ["azurite-blob", "--silent", "--location", tmp_path / "az", "--blobPort", str(port)]
        command += ["--skipApiVersionCheck"]
        place = f"http://127.0.0.1:{port}/{ACCOUNT}"
        connection = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={place};"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    else:
        needs("gcsfs", "gcp_storage_emulator")
        command = [sys.executable, "-c", GCS, str(port)]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_listener(port)
        if scheme == "az":
            BlobServiceClient.from_connection_string(connection).create_container("cells")
        yield Url(f"{scheme}://cells")
    finally:
        server.kill()
        server.wait()


def test_objects_are_written_listed_read_and_removed(root, tmp_path):
    store = Store(root / "run")
    store.check()
    assert store.names("") == []
    store.put("a/b.txt", b"hello")
    store.put("c.txt", b"1")
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (40 * MIB // 256))
    store.put_file("large", large)
    assert sorted(store.names("")) == ["a/b.txt", "c.txt", "large"]
    assert sorted(store.entries()) == ["a", "c.txt", "large"]
    assert store.read_all("large", 100 * MIB) == large.read_bytes()
    assert store.read_optional("missing", MIB) is None
    store.remove(["a/b.txt", "large", "missing"])
    assert store.names("") == ["c.txt"]


def test_another_machine_resumes_a_run_and_its_best_is_evaluated_and_predicted_with(root, tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    for split, numbers in {"train": range(8), "val": range(8, 11)}.items():
        draw_shards(shards / split, numbers)
    local = tiny_config(shards, tmp_path / "local")
    train(local)
    there = replace(local, out=root / "run")
    for machine, steps in (("one", 3), ("two", local.max_steps)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        train(replace(there, max_steps=steps))
    store = Store(root / "run")
    newest = json.loads(store.read_all("checkpoints.json", MIB))["last"][0]["name"]
    for name in ("model.safetensors", "optimizer.safetensors"):
        expected = (local.out / "last" / name).read_bytes()
        assert store.read_all(f"checkpoints/{newest}/{name}", 100 * MIB) == expected, name
    best = root / "run" / "best"
    scores = evaluate(EvaluateConfig(best, str(shards / "val"), out=root / "scores.json", workers=0))
    assert json.loads(Store(root).read_all("scores.json", MIB))["dice_mean"] == scores.mean_dice
    cv2.imwrite(str(tmp_path / "field.png"), draw_sample(0).image)
    Store(root / "images").put_file("field.png", tmp_path / "field.png")
    predict(PredictConfig(best, str(root / "images"), root / "preds"))
    assert {"field.mask.png", "field.overlay.png", "summary.csv"} <= set(Store(root / "preds").names(""))
