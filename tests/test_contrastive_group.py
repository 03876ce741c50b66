"""Losses of a batch that is spread over two processes, unevenly; the cases stand in ``contrastive_group_cases.py``."""

import subprocess
import sys

import pytest
import torch.distributed


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo"
)
def test_averaged_gradients_are_those_of_one_process(tmp_path):
    command = [sys.executable, "-m", "tests.contrastive_group_cases"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            printed, errors = rank.communicate(timeout=240)
            assert rank.returncode == 0, errors
            assert "all cases agree" in printed
    finally:
        for rank in ranks:
            rank.kill()
