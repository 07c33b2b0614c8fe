"""As a program under torchrun: the loss under FSDP2 has the gradients of one process, with and without an adapter."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from instdiff.training import losses
from instdiff.training.losses import Halves, Reference, TargetLoss


def model_of(lora: bool) -> tuple[Any, Any]:
    """A model that is not the reference any more, and the reference."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    start = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))
    model = copy.deepcopy(start)
    if lora:
        how = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return get_peft_model(model, how), start
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model, start


def prepared(model: Any, start: Any, lora: bool) -> Any:
    causal = model.get_base_model() if lora else model
    halves = Halves(causal)
    copied = Reference.copy_of(start, torch.device("cpu"), torch.float32)
    causal.forward = TargetLoss(halves, "asft", Reference(halves, model.disable_adapter) if lora else copied, 0.5)
    return model


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids))["loss"]
    return loss


def check(lora: bool) -> None:
    ids = torch.randint(3, 60, (4, 10), generator=torch.Generator().manual_seed(1))
    model, start = model_of(lora)
    alone = prepared(copy.deepcopy(model), start, lora)
    loss = loss_of(alone, ids)
    loss.backward()
    prepared(model, start, lora)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model.get_base_model() if lora else model).model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for _ in range(2):
        model.zero_grad()
        share = loss_of(model, ids.chunk(dist.get_world_size())[dist.get_rank()])
        (share * dist.get_world_size()).backward()
    total = share.detach().clone()
    dist.all_reduce(total)
    torch.testing.assert_close(total, loss.detach(), rtol=1e-6, atol=0)
    whole = {name: weight.grad for name, weight in alone.named_parameters() if weight.grad is not None}
    mine = {name: weight.grad.full_tensor() for name, weight in model.named_parameters() if weight.grad is not None}
    assert mine.keys() == whole.keys() and whole
    for name, gradient in whole.items():
        assert float((mine[name] - gradient).norm() / gradient.norm()) < 1e-6, name


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for lora in (False, True):
        check(lora)
    losses.CHUNK_BYTES = 4 * 64 * 3
    for lora in (False, True):
        check(lora)
    if dist.get_rank() == 0:
        print("equal")
    dist.destroy_process_group()
