"""Training by several processes; the cases stand in ``training_group_cases.py``."""

import subprocess
import sys

import pytest
import torch.distributed


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo"
)
def test_several_processes_train_as_one(tmp_path):
    command = [sys.executable, "-m", "tests.training_group_cases"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "3", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    try:
        for rank in ranks:
            printed, errors = rank.communicate(timeout=240)
            assert rank.returncode == 0, errors
            assert "all cases agree" in printed
    finally:
        for rank in ranks:
            rank.kill()
