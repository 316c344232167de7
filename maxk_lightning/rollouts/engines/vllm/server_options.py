"""Options of servers, and which of them exclude each other."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import torch

from maxk_lightning.rollouts.engines.vllm.launch import is_this_machine

Transfer = Literal["nccl", "ipc", "file"]
WireDtype = Literal["bfloat16", "float16", "float32"]
LOOPBACK = "127.0.0.1"
CACHE_BYTES = "kv-cache-memory-bytes"


def wire_dtype_of(chosen: WireDtype | None, server_args: Mapping[str, Any]) -> torch.dtype:
    """Return the type in which weights travel: the chosen one, else the server's, also if called half or float."""
    named = {"half": "float16", "float": "float32", **{name: name for name in get_args(WireDtype)}}
    dtype: torch.dtype = getattr(torch, chosen or named.get(str(server_args.get("dtype")), "bfloat16"))
    return dtype


def urls_of(url: str | None, urls: list[str] | None) -> list[str]:
    """Return the URLs of all servers that are not started here; ValueError for both options, or equal URLs."""
    if urls is None:
        return [] if url is None else [url]
    if url is not None:
        raise ValueError("rollout.engine: give url or urls, not both")
    if not urls or len(set(urls)) < len(urls):
        raise ValueError(f"rollout.engine.urls is {urls}, must be one URL or more, each of another server")
    return urls


def check_address(url: str, master_address: str) -> None:
    """Refuse an address of this machine alone for a server on another machine; ValueError."""
    host = urlsplit(url).hostname or ""
    if is_this_machine(host) or master_address not in (LOOPBACK, "localhost", "::1"):
        return
    raise ValueError(
        f"rollout.engine.master_address is {master_address}, where the server at {url} would look for itself; give "
        "the address by which it reaches this machine"
    )


def check_shared(urls: Sequence[str], gpus: str | None, server_args: Mapping[str, Any]) -> None:
    """Refuse options with which server and policy cannot share a GPU; ValueError."""
    if urls or gpus is not None:
        raise ValueError("rollout.engine.transfer: ipc is for a server started here, on the GPU of this process")
    if CACHE_BYTES not in server_args:
        raise ValueError(
            f"rollout.engine.server_args: with transfer: ipc give {CACHE_BYTES}, e.g. {4 << 30}: without, vLLM takes "
            "92 % of the GPU that the policy is on"
        )
