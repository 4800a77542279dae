"""The Dockerfile, built by buildah on a root that debootstrap makes, and a training in the image with little /dev/shm.

The libraries are not downloaded: those of the environment that runs the tests are mounted, and pip finds them there.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import REPOSITORY, draw_shards

PYTHON_OF_DEBIAN = {"bookworm": (3, 11), "trixie": (3, 13)}
SUITE = next((name for name, version in PYTHON_OF_DEBIAN.items() if version == sys.version_info[:2]), None)
LIBRARIES = sysconfig.get_paths()["purelib"]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
INSIDE = """
id -u
bash "$(glioma-dist configs jobs/launch.sh)" runs/x glioma-dist train --data.train shards --out runs/x \
    --data.size 512x512 --data.workers 2 --model.encoder mit_tiny --batch-size 4 --max-steps 2
echo "code $?"
bash "$(glioma-dist configs jobs/launch.sh)" runs/x glioma-dist train --data.train nowhere --out runs/y
echo "code $?"
touch /opt/glioma-dist/x 2> /dev/null || echo "cannot write to the program"
"""
"""A batch has 2 MB, twice as much as the /dev/shm there."""


def missing() -> str | None:
    """Why no image can be built here; None where one can."""
    if os.geteuid() != 0:
        return "debootstrap needs root"
    if SUITE is None:
        return f"no Debian has Python {sys.version_info[0]}.{sys.version_info[1]}, which the mounted libraries need"
    lacking = [
        name for name in ("buildah", "debootstrap", "unshare", "chroot") if shutil.which(name, path=PATH) is None
    ]
    return f"no {lacking[0]}: apt-get install buildah debootstrap" if lacking else None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture
def root(tmp_path):
    """The files of the image, with a container's work on top."""

    def call(*words: str | Path) -> str:
        given = [str(word) for word in words]
        ended = subprocess.run(given, env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            pytest.fail(f"{' '.join(given)}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}")
        return ended.stdout.strip()

    def buildah(*words: str | Path) -> str:
        return call(
            "buildah", "--root", tmp_path / "store", "--runroot", tmp_path / "run", "--storage-driver=vfs", *words
        )

    include = "--include=python3,python3-venv,ca-certificates"
    call("debootstrap", "--variant=minbase", include, SUITE, tmp_path / "debian")
    base = buildah("from", "scratch")
    try:
        buildah("add", "--quiet", base, tmp_path / "debian", "/")
        shutil.rmtree(tmp_path / "debian")
        buildah("config", "--env", "PYTHONPATH=/libraries", "--env", "PIP_CERT=/etc/ssl/certs/host.crt", base)
        buildah("commit", "--quiet", "--rm", base, "localhost/base:tests")
        mounts = ["--volume", f"{LIBRARIES}:/libraries:ro", "--volume", f"{CERTIFICATES}:/etc/ssl/certs/host.crt:ro"]
        arguments = [
            "--build-arg",
            "BASE=localhost/base:tests",
            "--build-arg",
            "EXTRAS=",
            "--tag",
            "localhost/ours:tests",
        ]
        buildah("build", "--isolation", "chroot", "--network", "host", *mounts, *arguments, REPOSITORY)
        yield Path(buildah("mount", buildah("from", "--pull-never", "localhost/ours:tests")))
    finally:
        buildah("umount", "--all")
        buildah("rm", "--all")
        buildah("rmi", "--all", "--force")
        # debootstrap leaves it mounted where it is stopped.
        subprocess.run(["umount", tmp_path / "debian" / "proc"], capture_output=True, check=False)
        shutil.rmtree(tmp_path, ignore_errors=True)


def test_the_image_trains_as_no_root_with_little_shared_memory(root, tmp_path):
    data = tmp_path / "data"
    draw_shards(data / "shards", range(8), width=512, height=512)
    for path in (data, *data.rglob("*")):
        path.chmod(0o777)
    for name in ("libraries", "data"):
        (root / name).mkdir(exist_ok=True)
    (root / "opt" / "inside.sh").write_text(INSIDE)
    variables = "HOME=/home/glioma PATH=/opt/glioma-dist/bin:/usr/bin:/bin PYTHONPATH=/libraries OMP_NUM_THREADS=1"
    script = f"""
        set -e
        mount --bind {LIBRARIES} {root}/libraries
        mount --bind {data} {root}/data
        mount --rbind /dev {root}/dev
        mount -t tmpfs -o size=1m,mode=1777 tmpfs {root}/dev/shm
        mount -t proc proc {root}/proc
        env -i {shutil.which("chroot", path=PATH)} --userspec=10001:10001 {root} /usr/bin/env {variables} \
            ACCELERATE_USE_CPU=true bash -c 'cd /data; bash /opt/inside.sh'
    """
    ended = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    said = ended.stdout + ended.stderr
    assert "10001\n" in ended.stdout, said
    assert "runs/x: finished, exit code 0" in ended.stdout, said
    assert "code 0\n" in ended.stdout
    assert "code 2\n" in ended.stdout, said
    assert "cannot write to the program" in ended.stdout
