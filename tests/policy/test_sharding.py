"""A sharded policy computes what the whole one does; here on one rank, in tests/test_ranks.py on two."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from maxk_lightning.policy import Policy, load_model
from maxk_lightning.policy.packing import pack
from maxk_lightning.policy.sharding import load_sharded, whole
from maxk_lightning.strategy import FSDP2Strategy

ROWS = pack([[5, 6, 7], [9, 8]], [[[8, 9], [10]], [[11, 12, 13]]])
CPU = torch.device("cpu")


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _load(policy: str, mesh: DeviceMesh, is_bf16: bool = False) -> tuple[Policy, Policy]:
    def build(has_weights: bool) -> Policy:
        return Policy(load_model(policy, has_weights=has_weights)).train()

    return load_sharded(build, mesh, CPU, is_bf16), build(True)


def test_sharded_log_probs_and_gradients_are_those_of_the_whole(random_policy: str, mesh: DeviceMesh) -> None:
    sharded, plain = _load(random_policy, mesh)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    ours, theirs = sharded(ROWS, 0.7), plain(ROWS, 0.7)
    torch.testing.assert_close(ours.logprobs_BT, theirs.logprobs_BT)
    torch.testing.assert_close(ours.entropies_BT, theirs.entropies_BT)
    ours.logprobs_BT.sum().backward()
    theirs.logprobs_BT.sum().backward()
    for (name, parameter), expected in zip(sharded.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(whole(parameter.grad), expected.grad, msg=name)
    weights = plain.state_dict()  # tied embeddings: both names, in the same order
    assert list(sharded.state_dict()) == list(weights)
    for name, weight in sharded.state_dict().items():
        assert torch.equal(whole(weight), weights[name]), name


def test_bf16_is_computed_with_but_not_stored(random_policy: str, mesh: DeviceMesh) -> None:
    sharded, plain = _load(random_policy, mesh, is_bf16=True)
    logprobs_BT = sharded(ROWS, 1.0).logprobs_BT
    logprobs_BT.sum().backward()
    parameters = list(sharded.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert {parameter.grad.dtype for parameter in parameters if parameter.grad is not None} == {torch.float32}
    assert {buffer.dtype for buffer in sharded.buffers()} == {torch.float32}  # rotary frequencies
    error = (logprobs_BT - plain(ROWS, 1.0).logprobs_BT).abs().max()
    assert logprobs_BT.dtype == torch.float32
    assert 1e-5 < error < 0.1 * logprobs_BT.abs().max()  # 8 bits of mantissa through two layers


def test_a_step_behind_a_forward_pass_without_gradients_is_seen(random_policy: str, mesh: DeviceMesh) -> None:
    """FSDP2's default keeps the root's weights gathered after such a pass, and computes with the old ones."""
    sharded, plain = _load(random_policy, mesh)
    for policy in (sharded, plain):
        policy(ROWS, 1.0).logprobs_BT.sum().backward()
        with torch.no_grad():
            before_BT = policy(ROWS, 1.0).logprobs_BT
        torch.optim.SGD(policy.parameters(), lr=1e-3).step()
    ours_BT, theirs_BT = sharded(ROWS, 1.0).logprobs_BT, plain(ROWS, 1.0).logprobs_BT
    torch.testing.assert_close(ours_BT, theirs_BT)
    assert (theirs_BT - before_BT).abs().max() > 1e-3


def test_what_fsdp2_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor_parallel_size is 2, must be 1"):
        FSDP2Strategy(tensor_parallel_size=2)
