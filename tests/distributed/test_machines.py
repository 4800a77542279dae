"""Two machines of one process each, through torchrun's rendezvous: here two launchers side by side."""

import os
import subprocess
import sys

from helpers import REPOSITORY, free_port, rows, tiny_config, wait_for_listener
from test_processes import FIRST_STEP_FP32, check_close

from glioma_dist.training import loop


def test_two_launchers_train_one_model(shards, tmp_path, runtime):
    config = tiny_config(shards, tmp_path / "one", max_steps=2, eval_every=None)
    loop.train(config, runtime)
    file = REPOSITORY / "accelerate_configs" / "multi_node.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    port = free_port()
    machine = ["--mixed_precision", "no", "--num_processes", "2"]
    machine += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    script = ["train.py", "--config", str(tmp_path / "one" / "config.json"), "--out", str(tmp_path / "two")]
    launchers = []
    try:
        for number in ("0", "1"):
            launchers.append(
                subprocess.Popen(
                    [*launch, "--config_file", str(file), *machine, "--machine_rank", number, *script],
                    cwd=REPOSITORY,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env={**os.environ, "ACCELERATE_USE_CPU": "true"},
                )
            )
            # Here both machines have the first one's address, and the second would take the port if it came first.
            wait_for_listener(port)
        outputs = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(outputs)
    assert "10 images, batch 4 on 2 processes (cpu)" in outputs[0] + outputs[1]
    check_close(rows(tmp_path / "two")[:1], rows(tmp_path / "one")[:1], FIRST_STEP_FP32)
