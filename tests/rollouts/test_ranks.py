"""What all ranks do together ends on all of them when one fails."""

import socket
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from maxk_lightning.rollouts.ranks import RankError, Ranks


def test_a_single_rank_keeps_its_error() -> None:
    assert Ranks().together(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        Ranks().together(lambda: 1 // 0)


def test_all_ranks_raise_what_one_of_them_met_and_go_on(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(_rank, (port, tmp_path), nprocs=2, start_method="fork")  # without the imports
    for rank in (0, 1):
        said = (tmp_path / str(rank)).read_text().splitlines()
        assert said == [
            "rank 1: ZeroDivisionError: integer division or modulo by zero",
            "rank 0: KeyError: 'x'; rank 1: KeyError: 'x'",
            f"3 from {rank}",
        ]


def _rank(rank: int, port: int, directory: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    said = []
    for make in (lambda: 1 // (1 - rank), lambda: {}["x"]):
        with pytest.raises(RankError) as error:
            ranks.together(make)
        said.append(str(error.value))
    said.append(f"{ranks.together(lambda: 3)} from {rank}")
    (directory / str(rank)).write_text("\n".join(said))
    dist.destroy_process_group()
