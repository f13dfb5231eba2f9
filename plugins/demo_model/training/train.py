"""Train the demo model from scratch on generated text; see the README beside this file.

Each core is a process of one thread with a batch of its own, and the processes average their
gradients: far less waiting than several threads within each small operator.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from batches import batches, sample, tensors
from induction import seed_copying
from network import Config, Network
from text import BOS, END, EOS
from tokenizer import save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

MODEL = Path(__file__).parent.parent / "src" / "tramontane_demo_model" / "model"


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return a linear warm-up followed by a cosine to a fiftieth of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def average_gradients(network: Network) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def loss_of(network: Network, tokens: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean cross-entropy of the next token."""
    logits = network(tokens[:, :-1])  # [B, T - 1, vocab]
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    counted = weights[:, 1:].flatten()
    return (losses * counted).sum() / counted.sum()


def train(rank: int, arguments: argparse.Namespace, rendezvous: str) -> None:
    """Train as process `rank`; the first one prints the loss and writes the files."""
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)  # the same first weights in every process
    processes = arguments.processes
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=processes)
    config = Config()
    network, first = Network(config), 0
    decayed = [p for p in network.parameters() if p.dim() == 2]
    plain = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.peak, betas=(0.9, 0.98), fused=True)
    if arguments.resume:
        saved = torch.load(arguments.checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    tokenizer = Tokenizer.from_file(str(arguments.output / "tokenizer.json"))
    if not arguments.resume:
        seed_copying(network, sample(tokenizer, arguments.seed))
    bos, eos, end = map(tokenizer.token_to_id, (BOS, EOS, END))

    def save(step: int) -> None:
        network.save(arguments.output, bos, [end, eos])
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, arguments.checkpoint)

    # Processes, and runs that go on from a checkpoint, each have text of their own.
    seed = (arguments.seed + first) * processes + rank
    stream = batches(tokenizer, seed, arguments.tokens, config.max_position_embeddings, first)
    started, seen, losses = time.monotonic(), 0, []
    for step in range(first, arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.peak)
        tokens, weights = tensors(next(stream))
        loss = loss_of(network, tokens, weights)
        loss.backward()
        average_gradients(network)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += tokens.numel() * processes
        losses.append(loss.item())
        if rank == 0 and (step + 1) % 100 == 0:
            elapsed = time.monotonic() - started
            print(
                f"step {step + 1}/{arguments.steps} loss {sum(losses) / len(losses):.4f} "
                f"{seen / elapsed:.0f} tokens/s {elapsed:.0f} s",
                flush=True,
            )
            losses.clear()
        if rank == 0 and ((step + 1) % 500 == 0 or step + 1 == arguments.steps):
            save(step + 1)
    dist.destroy_process_group()


def main() -> None:
    """Train the tokenizer, then the network in several processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a process's batch")
    parser.add_argument("--peak", type=float, default=2.5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=MODEL)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/demo_model.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    arguments = parser.parse_args()

    arguments.output.mkdir(parents=True, exist_ok=True)
    arguments.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.resume:
        context = Config().max_position_embeddings
        save_tokenizer(train_tokenizer(arguments.seed), arguments.output, context)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        mp.spawn(train, (arguments, rendezvous), nprocs=arguments.processes)


if __name__ == "__main__":
    main()
